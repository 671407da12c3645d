"""The paper's idea against its formulas: head, angular margin, schedules of both, and our reading of m-HE."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.errors import UserError
from advsphere.hypersphere import AngularMargin, HypersphereConfig, HypersphereHead, attach_head, m_he
from advsphere.losses import Loss, cross_entropy, kl, log_odds, margin
from advsphere.objectives import ALP, PGDAT, TRADES, Crafting, FastAT, FreeAT, Objective, Standard
from advsphere.rng import Rng
from advsphere.schedule import Constant, Cosine, Linear, Steps
from tests.laws import conv_net, global_randomness_untouched, images, labels

LOSSES = pytest.mark.parametrize("loss", [log_odds, cross_entropy, margin])


def features(dtype: torch.dtype = torch.float32, *, spread: float = 3.0) -> Tensor:
    """(8, 16), of lengths from small to large."""
    z = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (z * torch.logspace(-spread, spread, 8, dtype=torch.float64)[:, None]).to(dtype)


def new_head(scale: float = 15.0, *, seed: int = 1, **switches: bool) -> HypersphereHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = HypersphereHead(16, 5, scale=scale, **switches)
        head.weight.data.mul_(torch.logspace(-2, 2, 5)[:, None])
    return head


def cosines(z: Tensor, weight: Tensor, *, fn: bool = True, wn: bool = True) -> Tensor:
    """Entry by entry, in float64."""
    z, weight = z.double(), weight.detach().double()
    rows = [torch.stack([(a @ b) / (a.norm() if fn else 1) / (b.norm() if wn else 1) for b in weight]) for a in z]
    return torch.stack(rows)


@pytest.mark.parametrize("scale", [0.5, 15.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_logits_are_scale_times_cosine(scale: float, dtype: torch.dtype, autocast: bool) -> None:
    """To 1e-5 of the scale also where the features come in low precision, and where autocast is on."""
    head, z = new_head(scale), features(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = head(z)
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (logits - scale * cosines(z, head.weight)).abs().max() <= 1e-5 * scale
    assert logits.abs().max() <= scale * (1 + 1e-6)


@pytest.mark.parametrize("fn", [False, True])
@pytest.mark.parametrize("wn", [False, True])
def test_each_normalisation_can_be_switched_off(fn: bool, wn: bool) -> None:
    head, z = new_head(normalize_features=fn, normalize_weights=wn), features()
    expected = 15.0 * cosines(z, head.weight, fn=fn, wn=wn)
    assert torch.allclose(head(z).double(), expected, rtol=1e-5, atol=1e-5 * 15)
    longer, heavier = head(3 * z), head(z)
    assert torch.allclose(longer, heavier * (1 if fn else 3), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        head.weight.mul_(3)
    assert torch.allclose(head(z), heavier * (1 if wn else 3), rtol=1e-4, atol=1e-4)


def test_gradients_pass_through_the_normalisation() -> None:
    """So that they are at right angles to what is normalised, and equal those of the formula."""
    head, z = new_head(2.0).double(), features(torch.float64, spread=0.5).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z, w: torch.func.functional_call(head, {"weight": w}, z), (z, head.weight))
    head(z)[:, 2].sum().backward()
    assert z.grad is not None and (z.grad * z).sum(1).abs().max() < 1e-9
    assert head.weight.grad is not None and (head.weight.grad * head.weight).sum(1).abs().max() < 1e-9
    before = head.weight.detach().clone()
    head(z)
    assert torch.equal(head.weight, before), "a forward does not overwrite the weights"


def test_zero_and_tiny_features_are_finite() -> None:
    head = new_head(1000.0)
    z = torch.cat([torch.zeros(1, 16), features()[:1] * 1e-18]).requires_grad_(True)
    cross_entropy(head(z), torch.tensor([0, 1])).sum().backward()
    assert head(z).isfinite().all() and z.grad is not None and z.grad.isfinite().all()
    assert head.weight.grad is not None and head.weight.grad.isfinite().all()


def test_tokens_are_normalised_one_by_one() -> None:
    """As a linear layer, the head acts on the last dimension."""
    head, z = new_head(), features().view(2, 4, 16)
    assert torch.allclose(head(z), head(z.flatten(0, 1)).view(2, 4, 5), atol=1e-5)


def test_the_scale_is_saved_and_not_trained() -> None:
    head, other = new_head(12.5), new_head(1.0, seed=2)
    assert set(head.state_dict()) == {"weight", "scale"} and set(dict(head.named_parameters())) == {"weight"}
    other.load_state_dict(head.state_dict())
    assert float(other.scale) == 12.5 and torch.equal(other(features()), head(features()))


@pytest.mark.parametrize("scale", [0.0, -3.0, float("nan"), float("inf")])
def test_a_scale_that_makes_no_sense_is_refused(scale: float) -> None:
    with pytest.raises(UserError, match="scale s is"):
        new_head(scale)


def test_attaching_keeps_weights_mode_and_type_and_draws_nothing() -> None:
    model = conv_net().double().eval()
    weight, body = model[-1].weight.detach().clone(), list(model)[:-1]
    with global_randomness_untouched():
        attach_head(model, scale=9.0, normalize_weights=False)
    head = model[-1]
    assert isinstance(head, HypersphereHead) and torch.equal(head.weight, weight) and head.weight.dtype == torch.float64
    assert not head.training and head.weight.requires_grad and not head.normalize_weights and head.normalize_features
    assert all(a is b for a, b in zip(list(model)[:-1], body, strict=True))
    assert "scale=9" in repr(head) and "normalize_weights=False" in repr(head)
    attach_head(model, scale=4.0)
    assert float(model[-1].scale) == 4.0, "a second time replaces the first"


# --- the angular margin ---


def naive_margin_loss(cos: Tensor, y: Tensor, s: float, m: float) -> list[float]:
    """-log e^(s (cos_y - m)) / (e^(s (cos_y - m)) + sum_{j != y} e^(s cos_j)), as printed in the paper."""
    values = []
    for row, label in zip(cos.double(), y.tolist(), strict=True):
        own = torch.exp(s * (row[label] - m))
        others = sum(torch.exp(s * row[j]) for j in range(len(row)) if j != label)
        values.append(float(-torch.log(own / (own + others))))
    return values


@pytest.mark.parametrize(("s", "m"), [(1.0, 0.0), (15.0, 0.2), (20.0, 0.3), (64.0, 0.5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_angular_margin_is_the_papers_loss(s: float, m: float, dtype: torch.dtype) -> None:
    head, z, y = new_head(s), features(), torch.arange(8) % 5
    logits = (s * cosines(z, head.weight)).to(dtype)
    expected = naive_margin_loss(logits.double() / s, y, s, m)
    tolerance = {torch.float64: 1e-6, torch.float32: 2e-5, torch.bfloat16: 2e-5}[dtype]
    values = AngularMargin(head, m)(logits, y)
    assert values.shape == (8,) and values.tolist() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_angular_margin_follows_the_current_scale_and_margin() -> None:
    head, y = new_head(10.0), torch.arange(8) % 5
    criterion, z = AngularMargin(head, 0.2), features()
    for s, m in ((10.0, 0.2), (30.0, 0.2), (30.0, 0.4), (5.0, 0.0)):
        head.scale.fill_(s)
        criterion.margin = m
        expected = naive_margin_loss(cosines(z, head.weight), y, s, m)
        assert criterion(head(z), y).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_with_soft_labels_each_class_has_its_share_of_the_margin() -> None:
    head = HypersphereHead(4, 5, scale=8.0)
    criterion, z, y = AngularMargin(head, 0.3), torch.randn(6, 5), torch.arange(6) % 5
    torch.testing.assert_close(criterion(z, F.one_hot(y, 5).float()), criterion(z, y))
    half = (F.one_hot(y, 5) + F.one_hot((y + 1) % 5, 5)) / 2
    expected = -(half * F.log_softmax(z - 8.0 * 0.3 * half, 1)).sum(1)
    torch.testing.assert_close(criterion(z, half), expected)


def test_the_margin_finds_the_head_of_a_network() -> None:
    network = attach_head(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), scale=5.0)
    assert AngularMargin(network, 0.2).head is network[1]
    with pytest.raises(UserError, match=r"no hypersphere head; call attach_head\(network, scale=15\) first"):
        AngularMargin(nn.Linear(4, 3), 0.2)


def test_without_margin_it_is_cross_entropy() -> None:
    head, y = new_head(), torch.arange(8) % 5
    assert torch.equal(AngularMargin(head, 0.0)(head(features()), y), cross_entropy(head(features()), y))


@LOSSES
def test_neither_zero_nor_infinite_with_a_scale_of_1000(loss: Loss) -> None:
    """The gradient of every attack loss but cross-entropy itself, which saturates by its nature."""
    head, z = new_head(1000.0), features(spread=0.5).requires_grad_(True)
    y = head(z).argmax(1)
    assert (head(z).softmax(1).amax(1) == 1).any(), "not saturated, so that this would say nothing"
    values = loss(head(z), y)
    (grad,) = torch.autograd.grad(values.sum(), z)
    assert values.isfinite().all() and grad.isfinite().all()
    if loss is not cross_entropy:
        assert (grad.norm(dim=1) > 1e-3).all()
    shifted = AngularMargin(head, 0.2)(head(z), y)
    (grad,) = torch.autograd.grad(shifted.sum(), z)
    assert shifted.isfinite().all() and grad.isfinite().all()


# --- schedules of s and m ---


def test_move_is_a_function_of_progress() -> None:
    sphere = HypersphereConfig(
        scale=20.0, margin=0.4, scale_schedule=Cosine(0.5, 1.0), margin_schedule=Linear(((0, 0), (0.5, 1)))
    )
    model = conv_net()
    criterion = AngularMargin(sphere.attach(model), sphere.margin)

    def at(progress: float) -> tuple[float, float]:
        sphere.set_progress(criterion, progress)
        return float(criterion.head.scale), criterion.margin

    forwards = [at(p) for p in (0.0, 0.25, 0.5, 1.0)]
    assert [at(p) for p in (1.0, 0.5, 0.25, 0.0)] == forwards[::-1]
    assert forwards[0] == pytest.approx((10.0, 0.0)) and forwards[2] == pytest.approx((15.0, 0.4))
    assert forwards[1][1] == pytest.approx(0.2) and forwards[3] == pytest.approx((20.0, 0.4))
    assert model(images(2)).abs().max() <= 20.0


def test_moving_between_steps_does_not_break_the_backward() -> None:
    sphere, model = HypersphereConfig(scale_schedule=Steps((0.5,))), conv_net()
    criterion = AngularMargin(sphere.attach(model), sphere.margin)
    for progress in (0.0, 0.5, 1.0):
        sphere.set_progress(criterion, progress)
        criterion(model(images(4)), labels(4)).mean().backward()
    assert float(model[-1].scale) == pytest.approx(1.5)


def test_the_sphere_passes_its_switches_on() -> None:
    head = HypersphereConfig(scale=3.0, normalize_features=False).attach(conv_net())
    assert not head.normalize_features and head.normalize_weights and float(head.scale) == 3.0


# --- m-HE, our reading ---

HE = HypersphereConfig(scale=15.0, margin=0.2)


def step(sphere: HypersphereConfig, objective: Objective, progress: float) -> tuple[Tensor, Tensor, Tensor]:
    """One training step: crafted images, loss, gradient of the head."""
    model, x, y = conv_net(), images(8), labels(8)
    criterion = AngularMargin(sphere.attach(model), sphere.margin)
    sphere.set_progress(criterion, progress)
    shift = criterion.shift if sphere.margin_in_attack else None
    x_adv = objective.craft(model, x, y, Crafting(Rng.of(x), shift=shift))
    loss = objective.loss(model.train(), x, x_adv, y, criterion=criterion).total
    loss.backward()
    grad = model[-1].weight.grad
    assert grad is not None
    return x_adv.detach(), loss.detach(), grad  # type: ignore[return-value]


def test_m_he_is_he_with_a_ramp_and_the_margin_in_the_attack() -> None:
    reading = m_he(HE)
    assert reading.margin_in_attack and not HE.margin_in_attack
    assert [reading.margin_schedule(p) for p in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    unchanged = replace(reading, margin_schedule=Constant(), margin_in_attack=False)
    assert unchanged == HE


@pytest.mark.parametrize("objective", [Standard(), PGDAT(steps=2), ALP(steps=2), TRADES(steps=2), FastAT(), FreeAT()])
def test_m_he_differs_from_he_in_loss_and_gradient_while_the_ramp_lasts(objective: Objective) -> None:
    for progress in (0.0, 0.2, 0.45):
        (_, loss_he, grad_he), (_, loss, grad) = step(HE, objective, progress), step(m_he(HE), objective, progress)
        assert (loss - loss_he).abs() > 1e-2 and (grad - grad_he).norm() > 1e-4 * grad_he.norm()
    # Once it has ended, the attack is what is left, and by arithmetic only a KL sees it.
    (x_he, loss_he, grad_he), (x_adv, loss, grad) = step(HE, objective, 0.75), step(m_he(HE), objective, 0.75)
    if isinstance(objective, TRADES):
        assert not torch.equal(x_adv, x_he) and (loss - loss_he).abs() > 0 and not torch.equal(grad, grad_he)
    else:
        assert torch.equal(x_adv, x_he) and torch.equal(loss, loss_he) and torch.equal(grad, grad_he)


@pytest.mark.parametrize(
    ("objective", "same"), [(PGDAT(steps=4), True), (ALP(steps=4), True), (FastAT(), True), (TRADES(steps=4), False)]
)
def test_the_arithmetic_of_a_margin_in_the_attack(objective: Objective, same: bool) -> None:
    inside = replace(HE, margin_in_attack=True)
    assert torch.equal(step(HE, objective, 1.0)[0], step(inside, objective, 1.0)[0]) == same


def test_why_only_a_kl_sees_the_shift() -> None:
    model, x, y = conv_net().double().eval(), images(8).double(), labels(8)
    criterion = AngularMargin(HE.attach(model), 0.2)
    z, p = model(x).detach().requires_grad_(True), model(x.flip(0)).softmax(1).detach()
    for loss, target, moves in ((log_odds, y, False), (margin, y, False), (kl, p, True)):
        (plain,) = torch.autograd.grad(loss(z, target).sum(), z)
        (shifted,) = torch.autograd.grad(loss(criterion.shift(z, y), target).sum(), z)
        assert torch.allclose(plain, shifted) != moves
    assert torch.equal(criterion.shift(z, y), z - 3.0 * F.one_hot(y, 4))


def test_a_schedule_may_not_take_the_scale_to_nothing() -> None:
    with pytest.raises(UserError, match="positive"):
        HypersphereConfig(scale_schedule=Linear(((0.0, 0.0), (1.0, 1.0))))


@pytest.mark.parametrize("m", [-0.2, float("nan"), float("inf")])
def test_a_margin_is_not_negative(m: float) -> None:
    with pytest.raises(UserError, match=r"the margin m is .*; give 0 or more"):
        HypersphereConfig(margin=m)


def test_a_head_takes_the_place_of_a_layer_under_all_of_its_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(12, 5)
            self.net = nn.Sequential(nn.Flatten(), self.classifier)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    net = Twice()
    attach_head(net, scale=15.0)
    assert net.classifier is net.net[1] and isinstance(net.classifier, HypersphereHead)


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_layer_that_the_forward_does_not_call_is_refused_and_kept(with_bias: bool) -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.conv(x).mean((2, 3)), self.fc.weight, self.fc.bias if with_bias else None)

    net = Aside()
    with pytest.raises(UserError, match="without calling its layer 'fc'"):
        attach_head(net, scale=15.0)
    assert type(net.fc) is nn.Linear and net.training


def test_rows_too_short_to_learn_are_drawn_or_lengthened() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    with torch.no_grad():
        net[1].weight[0], net[1].weight[1] = 0, net[1].weight[1] * 1e-6
    old = net[1].weight.detach().clone()
    attach_head(net, scale=15.0)
    new = net[1].weight.detach()
    assert new[0].norm() > 0.1
    assert torch.allclose(new[1], old[1] / old[1].norm(), atol=1e-5)
    assert torch.equal(new[2], old[2])
