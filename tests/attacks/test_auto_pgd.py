"""AutoPGD: against loops written from the papers for one image, what it spends, and its targeted form."""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import apgd, apgd_targeted
from advsphere.attacks.step_size import Halving
from advsphere.classifier import fooled
from advsphere.errors import UserError
from advsphere.losses import cross_entropy, dlr, dlr_targeted, log_odds, margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from tests.attacks.test_linear import best_rise, direction, two_classes
from tests.laws import NORMS, RADII, conv_net, count_examples, images, labels, linear_net

norms = pytest.mark.parametrize("norm", NORMS)
TINY = ThreatModel(norm="linf", eps=1e-6)
"""Nothing is fooled inside it."""


def model_and_batch(n: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    """In float64, and nothing misclassified."""
    model, x = conv_net().double().eval(), images(n).double()
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def test_the_published_checkpoints() -> None:
    assert list(Halving.checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    for steps in (0, 1, 2, 7, 20, 1000):
        windows = Halving.checkpoints(steps)
        assert list(windows) == sorted(windows) and sum(windows.values()) == max(windows, default=0) <= steps


def by_the_paper(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, steps: int, start: Tensor) -> Tensor:
    """2003.01690, Algorithm 1, for one image: x_max after N steps."""

    def f(z: Tensor) -> tuple[float, Tensor]:
        z = z.clone().requires_grad_(True)
        value = log_odds(model(z), y)
        return float(value.detach()), torch.autograd.grad(value.sum(), z)[0]

    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [ceil(round(one * steps, 6)) for one in p]
    eta, xs, values = 2 * threat.eps, [start], [f(start)[0]]
    x_max, f_max, last_f_max, last_eta = start, values[0], None, None
    for k in range(steps):
        if k in w[1:]:
            j = w.index(k)
            rises = sum(values[i + 1] > values[i] for i in range(w[j - 1], w[j]))
            condition_1 = rises < 0.75 * (w[j] - w[j - 1])
            condition_2 = last_eta == eta and last_f_max == f_max
            last_eta, last_f_max = eta, f_max
            if condition_1 or condition_2:
                eta, xs[k], values[k] = eta / 2, x_max, f_max
        here = xs[k]
        grad = f(here)[1]
        unit = grad.sign() if threat.norm == "linf" else grad / grad.norm()
        z = threat.project(here + eta * unit, x)
        if k > 0:
            z = threat.project(here + 0.75 * (z - here) + 0.25 * (here - xs[k - 1]), x)
        xs.append(z)
        values.append(f(z)[0])
        if values[-1] > f_max:
            x_max, f_max = z, values[-1]
    return x_max


def by_the_paper_in_l1(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, steps: int, start: Tensor
) -> Tensor:
    """2103.01208, Algorithm 1, for one image; counts are rounded down, and pixels at their bound passed over."""

    def f(z: Tensor) -> tuple[float, Tensor]:
        z = z.clone().requires_grad_(True)
        value = log_odds(model(z), y)
        return float(value.detach()), torch.autograd.grad(value.sum(), z)[0]

    d = x.numel()
    k, eta, spread, here = ceil(d / 5), threat.eps, d, start
    x_max, f_max = start, f(start)[0]
    for i in range(steps):
        if i > 0 and i % max(int(0.04 * steps), 1) == 0:
            now = int(((x_max - x).abs() > 1e-6 * threat.eps).sum())
            k = max(2 * now // 3, 1)
            if now / spread < 0.95:
                eta, here = threat.eps, x_max
            else:
                eta = max(eta / 1.5, threat.eps / 10)
            spread = now
        grad = f(here)[1]
        room = torch.where(grad > 0, 1 - here, here)
        grad = grad.masked_fill(room < 1e-6 * threat.eps, 0.0).flatten()  # ours
        step = torch.zeros(d, dtype=x.dtype)
        top = grad.abs().argsort(descending=True)[:k]
        step[top] = grad[top].sign() / k
        here = threat.project(here + eta * step.view_as(x), x)
        if f(here)[0] > f_max:
            x_max, f_max = here, f(here)[0]
    return x_max


@norms
def test_a_batch_is_what_the_paper_does_for_each_image(norm: Any) -> None:
    model, x, y = model_and_batch()
    threat, rng = ThreatModel(norm=norm, eps=3 * RADII[norm]), Rng.of(x, seed=2)
    reference = by_the_paper_in_l1 if norm == "l1" else by_the_paper
    start = threat.sample(x, rng)
    for steps in (7, 40):
        x_adv = apgd(model, x, y, threat=threat, steps=steps, rng=rng)
        for i in range(len(x)):
            one = slice(i, i + 1)
            expected = reference(model, x[one], y[one], threat, steps, start[one])
            assert torch.allclose(x_adv[one], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("norm", "eps", "at_least"),
    [("linf", 0.05, 0.9999), ("linf", 0.4, 0.9999), ("l2", 0.5, 0.99), ("l2", 5.0, 0.97), ("l1", 3.0, 0.9)],
)
@pytest.mark.parametrize("multi_eps", [False, True])
def test_close_to_the_solver_where_the_box_is_active(norm: Any, eps: float, at_least: float, multi_eps: bool) -> None:
    """In l1 the best may stay at a sparsity that the published rule never leaves, so no row of the laws claims more."""
    d, x, y = direction(seed=2), images(4, seed=5).double(), torch.zeros(4, dtype=torch.long)
    model = two_classes(d, -1000.0).double()
    x_adv = apgd(model, x, y, threat=ThreatModel(norm=norm, eps=eps), steps=100, multi_eps=multi_eps)
    rise = margin(model(x_adv), y) - margin(model(x), y)
    share = rise.detach() / torch.tensor([best_rise(d, one, norm, eps) for one in x])
    assert (share >= at_least).all() and (share <= 1 + 1e-6).all()


def test_a_step_size_that_is_too_large_for_some_is_halved_for_them_alone() -> None:
    """Of two examples on one line, one overshoots a narrow peak and the other climbs a long slope."""
    threat = ThreatModel(norm="linf", eps=0.2)
    x = torch.tensor([0.5, 0.5]).view(2, 1, 1, 1).double()

    def model(x: Tensor) -> Tensor:
        narrow = -(x.flatten(1) - 0.43).abs() * 100
        slope = x.flatten(1)
        rows = torch.cat([narrow[:1], slope[1:]]) if len(x) == 2 else narrow
        return torch.cat([torch.zeros_like(rows) + 10, rows], 1)

    x_adv = apgd(model, x, torch.zeros(2, dtype=torch.long), threat=threat, steps=100, start="clean").flatten()
    assert abs(float(x_adv[0]) - 0.43) < 0.01 and float(x_adv[1]) == pytest.approx(0.7)


@pytest.mark.parametrize(("options", "passes"), [({}, 11), ({"until_fooled": True}, 11), ({"multi_eps": True}, 13)])
def test_forwards_spent(options: dict[str, Any], passes: int) -> None:
    model, x, y = model_and_batch(4)
    sizes = count_examples(model)
    apgd(model, x, y, threat=TINY, steps=10, **options)
    assert sizes == [4] * passes


@norms
def test_until_fooled_returns_the_first_success_and_spends_nothing_more(norm: Any) -> None:
    model, x, y = model_and_batch(8)
    y[0] = (y[0] + 1) % 4
    run = partial(apgd, model, x, y, threat=ThreatModel(norm=norm, eps=2 * RADII[norm]), steps=20, start="clean")
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    x_adv = run(until_fooled=True)
    sizes = [len(one) for one in seen]
    assert sizes[:2] == [8, 7] and sizes == sorted(sizes, reverse=True) and sizes[-1] < 7
    seen.clear()
    run()
    handle.remove()
    with torch.no_grad():
        hits = torch.stack([fooled(model(one), y) for one in seen])
    for i in range(8):
        if hits[:, i].any():
            assert torch.allclose(x_adv[i], seen[int(hits[:, i].int().argmax())][i], atol=1e-9)
        else:
            assert torch.allclose(x_adv[i], run()[i], atol=1e-9)


@norms
def test_best_and_last(norm: Any) -> None:
    model, x, y = model_and_batch()
    run = partial(apgd, model, x, y, threat=ThreatModel(norm=norm, eps=RADII[norm]), steps=9, loss=margin)
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    last = run(keep="last")
    handle.remove()
    with torch.no_grad():
        highest = torch.stack([margin(model(one), y) for one in seen]).amax(0)
        assert torch.equal(last, seen[-1]) and torch.allclose(margin(model(run()), y), highest)


@norms
def test_three_radii_end_in_the_right_ball_and_pass_through_wider_ones(norm: Any) -> None:
    model, x, y = model_and_batch()
    threat = ThreatModel(norm=norm, eps=0.1 * RADII[norm])
    distances: list[Tensor] = []
    handle = model.register_forward_pre_hook(
        lambda _, args: distances.append(threat.distance(args[0].detach(), x).max())
    )
    x_adv = apgd(model, x, y, threat=threat, steps=20, multi_eps=True)
    handle.remove()
    reach = torch.stack(distances) / threat.eps
    assert threat.contains(x_adv, x).all() and reach.max() == pytest.approx(3)
    assert reach[7:14].max() == pytest.approx(2) and reach[14:].max() == pytest.approx(1) and len(reach) == 23


@pytest.mark.parametrize("loss", [log_odds, cross_entropy, margin, dlr])
def test_every_loss_is_ascended(loss: Any) -> None:
    model, x, y = model_and_batch()
    x_adv = apgd(model, x, y, threat=ThreatModel(norm="linf", eps=0.02), steps=20, loss=loss)
    assert (loss(model(x_adv), y) > loss(model(x), y)).all() and fooled(model(x_adv), y).any()


def test_until_fooled_without_labels_is_refused() -> None:
    pairs = torch.tensor([[0, 1], [1, 2]])
    with pytest.raises(UserError, match="labels"):
        apgd(conv_net(), images(2), pairs, threat=TINY, loss=dlr_targeted, until_fooled=True)
    assert apgd(conv_net().eval(), images(2), pairs, threat=TINY, loss=dlr_targeted, steps=2).shape == (2, 3, 8, 8)


def one_open_door(classes: int, door: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Class 0 is predicted; the other classes follow in order, and within eps = 0.1 only `door` can be reached."""
    weight = torch.zeros(classes, 4)
    weight[door, 0] = 1000.0
    bias = -torch.arange(classes).float()
    bias[door] -= 500.0
    return linear_net(weight, bias), torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 20])
def test_targets_are_tried_from_the_likeliest_on(classes: int) -> None:
    threat = ThreatModel(norm="linf", eps=0.1)
    for door in {1, 2, classes - 1} - {classes}:
        model, x, y = one_open_door(classes, door)
        for targets in {door - 1, door, 50} - {0}:
            sizes = count_examples(model)
            x_adv = apgd_targeted(model, x, y, threat=threat, steps=5, targets=targets, start="clean")
            assert threat.contains(x_adv, x).all()
            assert (model(x_adv).argmax(1) == (door if targets >= door else 0)).all()
            # The clean image once, a whole run for each target in vain, and the open door at its second look.
            tried = min(targets, door) - (targets >= door)
            assert sum(sizes) - 2 == 2 * (1 + 6 * tried + 2 * (targets >= door))


@pytest.mark.parametrize("beside", [0, 4])
def test_of_several_open_doors_it_is_the_likeliest(beside: int) -> None:
    """Whether targets run alone or, as many images of the batch are done, side by side."""
    weight, bias = torch.zeros(6, 4), -100.0 * (torch.arange(6) > 0) - torch.arange(6)
    weight[3, 0] = weight[4, 1] = 2000.0  # within 0.1 they gain 200, and classes 1, 2 and 5 nothing
    bias[3:5] -= 1000.0
    model, x = linear_net(weight, bias), torch.full((2 + beside, 1, 2, 2), 0.5)
    y = torch.tensor([0, 0] + [5] * beside)
    sizes = count_examples(model)
    x_adv = apgd_targeted(model, x, y, threat=ThreatModel(norm="linf", eps=0.1), steps=5, start="clean")
    assert len(sizes) == 1 + (6 * 2 if beside else 6 * 2 + 2)  # class 2 fails, beside 3 and 4 or before 3
    assert (model(x_adv)[:2].argmax(1) == 3).all() and (x_adv[:2, 0, 0, 0] > 0.55).all()


def test_misclassified_images_come_back_unchanged_and_cost_one_forward() -> None:
    model, x, y = model_and_batch(4)
    y[1:] = (y[1:] + 1) % 4
    sizes = count_examples(model)
    x_adv = apgd_targeted(model, x, y, threat=TINY, steps=3, targets=2)
    assert sizes == [4] + [1] * 8 and torch.equal(x_adv[1:], x[1:]) and not torch.equal(x_adv[0], x[0])


def test_every_target_starts_elsewhere_and_no_two_restarts_share_a_start() -> None:
    model, x, y = model_and_batch(2)
    starts = []
    for restart in (0, 1):
        seen: list[Tensor] = []
        handle = model.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].detach().clone()))
        apgd_targeted(model, x, y, threat=TINY, steps=1, targets=2, rng=Rng.of(x).at(restart=restart))
        handle.remove()
        starts += [seen[1], seen[3]]
    assert all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


def test_what_can_not_have_targets_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        apgd_targeted(conv_net().eval(), images(2), labels(2), threat=TINY, targets=0)
    model = linear_net(torch.ones(1, 192))
    with pytest.raises(UserError, match=r"returns \(2, 1\), but logits are \(B, K\) with K >= 2"):
        apgd_targeted(model, images(2), labels(2, classes=1), threat=TINY)
    with pytest.raises(UserError, match="single class"):
        apgd_targeted(lambda x: model(x), images(2), labels(2, classes=1), threat=TINY)


def test_the_default_targets_are_nine_and_a_start_can_be_given() -> None:
    generator = torch.Generator().manual_seed(0)
    model, x = linear_net(torch.randn(30, 192, generator=generator)), images(2)
    y = model(x).argmax(1)
    sizes = count_examples(model)
    apgd_targeted(model, x, y, threat=TINY, steps=1, start=x)
    assert len(sizes) == 1 + 9 * 2
