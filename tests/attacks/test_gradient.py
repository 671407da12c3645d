"""What is particular to FGSM, PGD and MIM, beyond the laws of every attack."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.attacks import Attack, apgd, fgsm, mim, pgd
from advsphere.classifier import PixelClassifier, fooled, frozen
from advsphere.errors import UserError
from advsphere.hypersphere import HypersphereHead
from advsphere.losses import cross_entropy, dlr, dlr_targeted, kl, log_odds, margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from tests.laws import NORMS, RADII, conv_net, count_examples, images, labels, linear_net

LINF = ThreatModel(norm="linf", eps=0.02)
norms = pytest.mark.parametrize("norm", NORMS)


def model_and_batch(n: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    """In float64, and nothing misclassified."""
    model, x = conv_net().double().eval(), images(n).double()
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def iterates(model: nn.Module, run: Any) -> list[Tensor]:
    """What the attack forwards through the model, in order."""
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    run()
    handle.remove()
    return seen


def test_attacks_with_all_else_bound_are_attacks() -> None:
    bound: list[Attack] = [
        partial(fgsm, threat=LINF),
        partial(pgd, threat=LINF, steps=2, step_size=0.01),
        partial(mim, threat=LINF, steps=2, step_size=0.01),
    ]
    model, x, y = model_and_batch(2)
    assert all(attack(model, x, y, rng=Rng.of(x)).shape == x.shape for attack in bound)


@norms
def test_fgsm_is_one_pgd_step_of_eps_from_the_clean_image(norm: str) -> None:
    model, x, y = model_and_batch()
    threat = ThreatModel(norm=norm, eps=RADII[norm])
    for targeted in (False, True):
        expected = pgd(model, x, y, threat=threat, steps=1, step_size=threat.eps, start="clean", targeted=targeted)
        assert torch.equal(fgsm(model, x, y, threat=threat, targeted=targeted), expected)
    if norm == "linf":
        (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf := x.clone().requires_grad_(True)), y), leaf)
        assert torch.allclose(fgsm(model, x, y, threat=threat), (x + threat.eps * grad.sign()).clamp(0, 1))


def test_mim_is_pgd_with_a_decay() -> None:
    model, x, y = model_and_batch()
    options = {"threat": LINF, "steps": 5, "step_size": 0.004}
    assert torch.equal(mim(model, x, y, decay=0.9, **options), pgd(model, x, y, decay=0.9, start="clean", **options))
    assert not torch.equal(mim(model, x, y, **options), pgd(model, x, y, start="clean", **options))
    assert torch.equal(mim(model, x, y, decay=0.0, **options), pgd(model, x, y, start="clean", **options))


def test_each_step_is_of_the_step_size_and_is_forwarded_once() -> None:
    model, x, y = model_and_batch()
    threat = ThreatModel(norm="l2", eps=10.0, bounds=(-50.0, 50.0))
    seen = iterates(model, lambda: pgd(model, x, y, threat=threat, steps=4, step_size=0.05, start="clean"))
    assert len(seen) == 4 and torch.equal(seen[0], x)
    for before, after in pairwise(seen):
        assert torch.allclose((after - before).flatten(1).norm(dim=1), torch.full((8,), 0.05).double())


@pytest.mark.parametrize(
    ("options", "passes"),
    [({}, 5), ({"keep": "best"}, 6), ({"until_fooled": True}, 6), ({"start": "clean"}, 5), ({"targeted": True}, 5)],
)
def test_forwards_spent(options: dict[str, Any], passes: int) -> None:
    """Judging the last iterate takes one pass more than the steps."""
    model, x, y = model_and_batch(4)
    sizes = count_examples(model)
    tiny = ThreatModel(norm="linf", eps=1e-6)  # nothing is fooled
    pgd(model, x, (y + 1) % 4 if "targeted" in options else y, threat=tiny, steps=5, step_size=1e-6, **options)
    assert sizes == [4] * passes


def test_where_it_starts() -> None:
    model, x, y = model_and_batch()
    rng = Rng.of(x, seed=3)
    run = partial(pgd, model, x, y, threat=LINF, steps=1, step_size=0.01, rng=rng)
    assert torch.equal(iterates(model, partial(run, start="clean"))[0], x)
    assert torch.equal(iterates(model, run)[0], LINF.sample(x, rng))
    far = x + 0.5
    assert torch.equal(iterates(model, partial(run, start=far))[0], LINF.project(far, x))
    assert torch.equal(far, x + 0.5)
    attached = (x + 0.01).requires_grad_(True)
    assert not run(start=attached).requires_grad


@norms
@pytest.mark.parametrize("targeted", [False, True])
def test_best_is_the_iterate_of_the_highest_loss(norm: str, targeted: bool) -> None:
    model, x, y = model_and_batch()
    run = partial(
        pgd, model, x, y, threat=ThreatModel(norm=norm, eps=RADII[norm]), steps=6, step_size=2 * RADII[norm],
        loss=margin, targeted=targeted, rng=Rng.of(x),
    )  # fmt: skip
    seen = iterates(model, partial(run, keep="best"))
    with torch.no_grad():
        values = torch.stack([margin(model(one), y) for one in seen]) * (-1 if targeted else 1)
        best = run(keep="best")
        chosen = margin(model(best), y) * (-1 if targeted else 1)
    assert torch.allclose(chosen, values.amax(0)) and torch.equal(seen[-1], run(keep="last"))
    assert (values.argmax(0) < 6).any(), "steps so large that the last is not always the best"


def test_zero_steps_return_the_start() -> None:
    model, x, y = model_and_batch()
    for keep in ("last", "best"):
        assert torch.equal(pgd(model, x, y, threat=LINF, steps=0, step_size=0.1, start="clean", keep=keep), x)


def test_more_steps_lose_no_success_when_stopped_at_the_first() -> None:
    model, x, y = model_and_batch(16)
    fallen, sizes = torch.zeros(16, dtype=torch.bool), []
    for steps in (1, 2, 4, 8, 16):
        forwarded = count_examples(model)
        x_adv = pgd(model, x, y, threat=LINF, steps=steps, step_size=0.003, until_fooled=True, rng=Rng.of(x))
        sizes.append(sum(forwarded))
        now = fooled(model(x_adv), y)
        assert (fallen <= now).all()
        fallen = now
    assert fallen.any() and sizes[-1] < 16 * 17, "and what has fallen is not forwarded any more"


def test_until_fooled_stops_at_the_first_success_and_skips_what_is_wrong_already() -> None:
    model, x, y = model_and_batch()
    y[::2] = (y[::2] + 1) % 4
    run = partial(pgd, model, x, y, threat=LINF, steps=20, step_size=0.004, start="clean")
    seen = iterates(model, partial(run, until_fooled=True))
    assert [len(one) for one in seen][:2] == [8, 4] and sorted(map(len, seen), reverse=True) == list(map(len, seen))
    x_adv = run(until_fooled=True)
    assert torch.equal(x_adv[::2], x[::2])
    path = [*iterates(model, run), run()]
    with torch.no_grad():
        hits = torch.stack([fooled(model(one), y) for one in path])
    for i in range(8):
        first = hits[:, i].nonzero()[0].item() if hits[:, i].any() else len(path) - 1
        assert torch.allclose(x_adv[i], path[first][i], atol=1e-9)


@norms
def test_what_goes_round_in_circles_is_done(norm: str) -> None:
    """In the corner of a linear model's ball, and on a network where steps jump to and fro: nothing is lost by it."""
    model = linear_net(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).repeat_interleave(6, 1))
    x, y = torch.full((2, 3, 2, 2), 0.5, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    x[:, 0] = 0.9
    sizes = count_examples(model)
    run = partial(pgd, threat=ThreatModel(norm=norm, eps=0.01), steps=100, step_size=0.005, keep="best", start="clean")
    kept = run(model, x, y, until_fooled=True)
    assert len(sizes) < 10
    torch.testing.assert_close(kept, run(model, x, y))  # in other batches, so other bits


def test_circles_are_those_of_the_whole_ascent() -> None:
    model, x, y = model_and_batch(16)
    run = partial(
        pgd, model, x, y, threat=ThreatModel(norm="linf", eps=0.003), steps=200, step_size=0.0015, keep="best",
        rng=Rng.of(x),
    )  # fmt: skip
    whole = run()
    sizes = count_examples(model)
    cut = run(until_fooled=True)
    with torch.no_grad():
        held = ~fooled(model(whole), y)
    assert held.sum() > 2 and sum(sizes) < 100 * held.sum(), "most steps are spared"
    assert torch.allclose(cut[held], whole[held], atol=1e-12)


def test_targeted_until_fooled_stops_at_the_target_alone() -> None:
    model, x, y = model_and_batch()
    target = (y + 1) % 4
    x_adv = pgd(
        model, x, target, threat=ThreatModel(norm="linf", eps=0.2), steps=40, step_size=0.01, targeted=True,
        until_fooled=True,
    )  # fmt: skip
    assert (model(x_adv).argmax(1) == target).all() and ((x_adv - x).abs().amax((1, 2, 3)) < 0.2).any()


@pytest.mark.parametrize(
    ("loss", "make"),
    [
        (cross_entropy, lambda y, z: y),
        (margin, lambda y, z: y),
        (dlr, lambda y, z: y),
        (dlr_targeted, lambda y, z: torch.stack([y, (y + 1) % 4], 1)),
        (kl, lambda y, z: z.softmax(1)),
    ],
)
def test_every_loss_can_be_ascended(loss: Any, make: Any) -> None:
    model, x, y = model_and_batch()
    target = make(y, model(x).detach())
    x_adv = pgd(model, x, target, threat=LINF, steps=10, step_size=0.005, loss=loss, keep="best")
    assert (loss(model(x_adv), target) > loss(model(x), target)).all() and fooled(model(x_adv), y).sum() >= 4


@pytest.mark.parametrize("target", [torch.zeros(2, 2, dtype=torch.long), torch.full((2, 4), 0.25)])
def test_until_fooled_without_labels_is_refused(target: Tensor) -> None:
    with pytest.raises(UserError, match="labels"):
        pgd(conv_net(), images(2), target, threat=LINF, steps=1, step_size=0.1, loss=kl, until_fooled=True)


def test_a_saturated_model_is_attacked_all_the_same() -> None:
    """A scale of 1000: softmax cross-entropy has a gradient of zero, the default loss goes on."""
    x, y = images(8), labels(8)
    x[4:] = 0.8 * x[:4] + 0.2 * x[4:]
    model = PixelClassifier(nn.Sequential(nn.Flatten(), HypersphereHead(192, 4, scale=1000.0)), [0.5] * 3, [1.0] * 3)
    with torch.no_grad():
        model.network[1].weight.copy_(x[:4].flatten(1) - 0.5)
        assert (margin(model(x), y) < -104).all(), "so that the other probabilities underflow to 0"

    def fallen(loss: Any) -> float:
        threat = ThreatModel(norm="linf", eps=0.3)
        x_adv = pgd(model, x, y, threat=threat, steps=20, step_size=0.05, start="clean", loss=loss)
        return fooled(model(x_adv), y).float().mean().item()

    assert fallen(lambda z, y: F.cross_entropy(z, y, reduction="none")) == 0
    assert fallen(log_odds) > 0.8


@norms
def test_images_at_the_ends_of_the_box_move_inwards(norm: str) -> None:
    threat = ThreatModel(norm=norm, eps=RADII[norm])
    x = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    d = torch.randn(192, generator=torch.Generator().manual_seed(0))
    model, y = linear_net(torch.stack([-d, d])), torch.tensor([0, 0])
    x_adv = pgd(model, x, y, threat=threat, steps=20, step_size=threat.eps / 4)
    assert threat.contains(x_adv, x).all() and (margin(model(x_adv), y) > margin(model(x), y)).all()
    assert threat.distance(x_adv, x).min() > 0.5 * threat.eps


def test_a_model_with_hooks_on_its_gradients() -> None:
    """Hooks see the backward to the input, and no gradient reaches the weights."""
    model, x, y = model_and_batch()
    calls: list[str] = []
    model[3].register_full_backward_hook(lambda *_: calls.append("module"))
    model[3].weight.register_hook(lambda grad: calls.append("weight"))
    usual = pgd(conv_net().double().eval(), x, y, threat=LINF, steps=3, step_size=0.01)
    assert torch.allclose(pgd(model, x, y, threat=LINF, steps=3, step_size=0.01), usual)
    assert calls == ["module"] * 3 and all(p.grad is None for p in model.parameters())
    apgd(model, x, y, threat=LINF, steps=4)
    pgd(model, x, y, threat=LINF, steps=4, step_size=0.01, keep="best")
    assert calls == ["module"] * (3 + 4 + 4), "no backward at the last point"


def test_low_precision_logits_and_a_model_that_gives_no_number() -> None:
    model, x, y = model_and_batch()
    with frozen(model.float(), dtype=torch.bfloat16, fold=True) as classify:
        x_adv = pgd(classify, x.float(), y, threat=LINF, steps=8, step_size=0.005)
    assert x_adv.dtype == torch.float32 and LINF.contains(x_adv, x.float()).all()
    raw = pgd(lambda x: conv_net().eval()(x).bfloat16(), x.float(), y, threat=LINF, steps=8, step_size=0.005)
    assert LINF.contains(raw, x.float()).all() and fooled(model(raw), y).any()
    broken = pgd(lambda x: x.flatten(1)[:, :4] / 0, x, y, threat=LINF, steps=3, step_size=0.005)
    assert broken.isfinite().all() and LINF.contains(broken, x).all()


def test_no_gradient_no_movement() -> None:
    x = images(3)
    flat = linear_net(torch.zeros(4, 192))
    for norm in NORMS:
        threat = ThreatModel(norm=norm, eps=0.5)
        assert torch.equal(pgd(flat, x, labels(3), threat=threat, steps=3, step_size=0.1, start="clean"), x)
        assert torch.equal(mim(flat, x, labels(3), threat=threat, steps=3, step_size=0.1), x)
