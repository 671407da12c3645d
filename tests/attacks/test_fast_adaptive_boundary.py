"""FAB and FAB-T: exact distances on linear models, smaller than DeepFool elsewhere, and what they spend."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import deepfool, fab, fab_targeted, restarts
from advsphere.attacks.hyperplane import DUAL
from advsphere.classifier import fooled
from advsphere.errors import UserError
from advsphere.losses import margin
from advsphere.rng import Rng
from advsphere.threat import Norm, ThreatModel
from tests.laws import NORMS, RADII, conv_net, count_examples, images, linear_net

norms = pytest.mark.parametrize("norm", NORMS)
both = pytest.mark.parametrize("attack", [fab, fab_targeted])


def model_and_batch(n: int = 8, classes: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    """In float64, and nothing misclassified."""
    model, x = conv_net(classes=classes).double().eval(), images(n).double()
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def size(x_adv: Tensor, x: Tensor, norm: Norm) -> Tensor:
    return ThreatModel(norm=norm, eps=0.0).distance(x_adv, x)


@both
@norms
def test_the_exact_distance_on_a_linear_model(attack, norm: Norm) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 192, generator=generator).double()
    model, x = linear_net(weight), images(10, low=0.4, high=0.6).double()
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    steep = torch.linalg.vector_norm(weight - weight[y][:, None], DUAL[norm], dim=2)
    exact = ((logits.gather(1, y[:, None]) - logits) / steep).scatter(1, y[:, None], torch.inf).amin(1)
    x_adv = attack(model, x, y, norm=norm, bounds=(-1e3, 1e3), steps=30)
    found = size(x_adv, x, norm) / exact
    assert fooled(model(x_adv), y).all() and (found >= 1 - 1e-9).all() and (found <= 1.001).all()


@both
@norms
def test_smaller_than_deepfool_and_inside_the_box(attack, norm: Norm) -> None:
    model, x, y = model_and_batch(16)
    x_adv = attack(model, x, y, norm=norm, steps=30)
    assert fooled(model(x_adv), y).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    near = deepfool(model, x, y, norm=norm) if norm != "l1" else fab(model, x, y, norm=norm, steps=2)
    reference = torch.where(fooled(model(near), y), size(near, x, norm), torch.inf)
    assert (size(x_adv, x, norm) <= reference * 1.01).float().mean() > 0.9
    assert size(x_adv, x, norm).median() < reference.median()


@norms
def test_more_steps_and_more_starts_never_lose(norm: Norm) -> None:
    model, x, y = model_and_batch()
    run = partial(fab, model, x, y, norm=norm, rng=Rng.of(x, seed=1))
    # The final search may treat a larger one better, by less than this.
    short, long, more = (size(run(**o), x, norm) for o in ({"steps": 5}, {"steps": 25}, {"steps": 25, "starts": 3}))
    assert (long <= short * 1.005).all() and (more <= long * 1.005).all()
    assert (long < short).any()


def test_starts_differ_by_their_numbers_and_are_inside_half_the_radius() -> None:
    model, x, y = model_and_batch()
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    fab(model, x, y, norm="linf", steps=1, starts=3, rng=Rng.of(x))
    handle.remove()
    clean, first, after, second, _, third, *_ = seen
    assert torch.equal(first, x) and torch.equal(clean, x) and len(after) == 8
    best = size(after, x, "linf")
    hit = fooled(model(after), y)
    assert hit.any() and not torch.equal(second, third)
    moved = size(second, x, "linf")
    assert torch.allclose(moved[hit], torch.minimum(best / 2, moved)[hit]) and (moved[hit] > 0).all()
    assert (moved[~hit] == 0).all(), "no radius is known yet"


def test_the_restarts_combinator_begins_elsewhere_too() -> None:
    model, x, y = model_and_batch()
    once = partial(fab, norm="linf", eps=RADII["linf"], steps=3)
    runs = [once(model, x, y, rng=Rng.of(x).at(restart=r)) for r in range(3)]
    twice = restarts(once, 3)(model, x, y, rng=Rng.of(x))
    hits = torch.stack([fooled(model(one), y) for one in runs])
    assert torch.equal(fooled(model(twice), y), hits.any(0))


def test_forwards_spent() -> None:
    model, x, y = model_and_batch()
    sizes = count_examples(model)
    fab(model, x, y, norm="l2", steps=7)
    assert 8 * (1 + 8 + 5) < sum(sizes) <= 8 * (1 + 2 * 7 + 1 + 5)
    sizes.clear()
    fab_targeted(model, x, y, norm="l2", steps=7)  # 3 wrong classes of 4
    assert sum(sizes) == 8 * (1 + 3 * 8 + 5)
    sizes.clear()
    y[::2] = (y[::2] + 1) % 4
    x_adv = fab(model, x, y, norm="l2", steps=7)
    assert 8 + 4 * (8 + 5) < sum(sizes) <= 8 + 4 * (2 * 7 + 1 + 5) and torch.equal(x_adv[::2], x[::2])


@both
@norms
def test_a_verdict_at_one_eps_stops_there_and_agrees(attack, norm: Norm) -> None:
    model, x, y = model_and_batch(16)
    free = size(attack(model, x, y, norm=norm, steps=20), x, norm)
    eps = float(free.median()) * 1.001
    sizes = count_examples(model)
    judged = attack(model, x, y, norm=norm, steps=20, eps=eps)
    hit = fooled(model(judged), y)
    assert (hit == (free <= eps)).all() and 0 < hit.sum() < 16
    assert ThreatModel(norm=norm, eps=eps).contains(judged, x).all() and torch.equal(judged[~hit], x[~hit])
    walks = 2 if attack is fab else 3
    assert sum(sizes) < 16 * (1 + 21 * walks) * 0.95


def test_targeted_takes_its_classes_one_after_the_other() -> None:
    """On a linear model the nearest boundary may be that of a less likely class; more targets find it."""
    weight = torch.zeros(3, 192).double()
    weight[1, 0], weight[2, 1:50] = 0.1, 1.0
    model, x = linear_net(weight, torch.tensor([0.0, -0.2, -49 * 0.5 - 0.3]).double()), torch.full((1, 3, 8, 8), 0.5)
    x, y = x.double(), torch.tensor([0])
    wide = {"norm": "linf", "bounds": (-9.0, 9.0), "steps": 10}
    one, two = (float(size(fab_targeted(model, x, y, targets=n, **wide), x, "linf")) for n in (1, 2))
    assert abs(one - 1.5) < 0.01 and abs(two - 0.3 / 49) < 1e-4


@both
@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_any_number_of_classes(attack, classes: int) -> None:
    model, x, y = model_and_batch(3, classes)
    assert fooled(model(attack(model, x, y, norm="l2", steps=10)), y).all()


@both
def test_no_gradient_no_movement(attack) -> None:
    x, y = images(3), torch.zeros(3, dtype=torch.long)
    assert torch.equal(attack(linear_net(torch.zeros(4, 192)), x, y, norm="l2", steps=3), x)


def test_settings_that_make_no_sense() -> None:
    model, x, y = model_and_batch(2)
    for attack, wrong in ((fab, {"classes": 1}), (fab, {"starts": 0}), (fab_targeted, {"targets": 0})):
        with pytest.raises(UserError, match=r"at least one|1 or more"):
            attack(model, x, y, norm="l2", **wrong)


@both
@norms
def test_ends_clear_of_the_boundary(attack, norm: Norm) -> None:
    """By more than float32 rounds, so that another batch or a folded network predicts the same."""
    model, x = conv_net().eval(), images(16)
    with torch.no_grad():
        y = model(x).argmax(1)
        logits = model(attack(model, x, y, norm=norm, steps=30))
    assert (margin(logits, y) > 1e-5 * logits.abs().amax(1)).all()
