"""The attacks of Carlini and Wagner: exact distances, what counts as success, and examples at their own pace."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import cw, deepfool
from advsphere.classifier import fooled
from advsphere.errors import UserError
from advsphere.losses import margin
from advsphere.threat import Norm, ThreatModel
from tests.laws import conv_net, count_examples, images, linear_net

norms = pytest.mark.parametrize("norm", ["l2", "linf"])


def quick(model: nn.Module, x: Tensor, y: Tensor, *, norm: Norm, **options: Any) -> Tensor:
    """With settings that a test can afford: for the small distances to the boundaries of `conv_net`, a larger first c,
    fewer rounds and, in linf, smaller steps.
    """
    step_size, first_c, rounds = {"l2": (0.01, 0.1, 6), "linf": (0.003, 1.0, 40)}[norm]
    chosen = {"norm": norm, "steps": 60, "step_size": step_size, "first_c": first_c, "rounds": rounds} | options
    return cw(model, x, y, **chosen)


def model_and_batch(n: int = 6, classes: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    """In float64, and nothing misclassified."""
    model, x = conv_net(classes=classes).double().eval(), images(n).double()
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def size(x_adv: Tensor, x: Tensor, norm: Norm) -> Tensor:
    return ThreatModel(norm=norm, eps=0.0).distance(x_adv, x)


@pytest.mark.parametrize(("norm", "dual", "far", "slack"), [("l2", 2.0, 0.5, 1.02), ("linf", 1.0, 0.05, 1.05)])
def test_close_to_the_exact_distance_on_a_linear_model(norm: Norm, dual: float, far: float, slack: float) -> None:
    """As close as Adam comes: it swings about the boundary by its step size."""
    d = torch.randn(192, generator=torch.Generator().manual_seed(0)).double()
    x, y = images(3, low=0.4, high=0.6).double(), torch.zeros(3, dtype=torch.long)
    bias = -far * d.norm(dual) - (x.flatten(1) @ d).max()
    model = linear_net(torch.stack([0 * d, d]), torch.tensor([0.0, float(bias)]).double())
    exact = -margin(model(x), y).detach() / d.norm(dual)
    found = size(cw(model, x, y, norm=norm, steps=150, bounds=(-1.0, 2.0)), x, norm) / exact
    assert (found >= 1 - 1e-9).all() and (found <= slack).all()


def test_l2_is_no_larger_than_deepfool() -> None:
    model, x, y = model_and_batch()
    x_adv = cw(model, x, y, steps=150, first_c=0.1)
    assert size(x_adv, x, "l2").median() <= 1.02 * size(deepfool(model, x, y), x, "l2").median()


def test_each_norm_is_the_better_one_in_its_own() -> None:
    model, x, y = model_and_batch()
    l2, linf = (quick(model, x, y, norm=norm) for norm in ("l2", "linf"))
    for x_adv in (l2, linf):
        assert fooled(model(x_adv), y).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    assert size(l2, x, "l2").median() < size(linf, x, "l2").median()
    assert size(linf, x, "linf").median() < size(l2, x, "linf").median()


@norms
def test_confidence_is_a_margin_in_logits(norm: Norm) -> None:
    model, x, y = model_and_batch()
    x_adv = quick(model, x, y, norm=norm, confidence=0.5)
    value = margin(model(x_adv), y)
    assert (value >= 0.5).all() and (size(x_adv, x, norm) > size(quick(model, x, y, norm=norm), x, norm)).all()
    y[0] = (y[0] + 1) % 4  # misclassified, but is that by enough?
    enough = margin(model(x), y)[0] >= 0.5
    assert torch.equal(quick(model, x, y, norm=norm, confidence=0.5)[0], x[0]) == enough


@norms
def test_targeted_reaches_the_target_with_the_margin_asked_for(norm: Norm) -> None:
    model, x, y = model_and_batch()
    target = (y + 2) % 4
    target[0] = y[0]
    x_adv = quick(model, x, target, norm=norm, targeted=True, confidence=0.1)
    logits = model(x_adv)
    assert (logits.argmax(1) == target).all() and (-margin(logits, target) >= 0.1)[1:].all()
    assert torch.equal(quick(model, x, target, norm=norm, targeted=True)[0], x[0])


@norms
def test_each_example_at_its_own_pace(norm: Norm) -> None:
    """Alone or beside others: the same, though their rounds end at different times."""
    model, x, y = model_and_batch()
    run = partial(cw, model, norm=norm, steps=25, step_size=0.05, rounds=4, first_c=0.1)
    whole = run(x, y)
    for i in (0, 3, 5):
        assert torch.allclose(run(x[i : i + 1], y[i : i + 1])[0], whole[i], atol=1e-9)


def test_forwards_spent() -> None:
    model, x, y = model_and_batch()
    sizes = count_examples(model)
    cw(model, x, y, steps=20, rounds=3)
    assert 6 < sum(sizes) <= 6 * (1 + 3 * 20) and sizes[0] == 6
    sizes.clear()
    y[::2] = (y[::2] + 1) % 4
    x_adv = cw(model, x, y, steps=20, rounds=3)
    assert sum(sizes) <= 6 + 3 * 3 * 20 and torch.equal(x_adv[::2], x[::2]), "what is wrong already costs one look"
    flat = linear_net(torch.zeros(4, 192).double())
    sizes = count_examples(flat)
    assert torch.equal(cw(flat, x, torch.zeros_like(y), steps=20, rounds=3), x)
    assert sum(sizes) < 6 * (1 + 3 * 10), "without improvement a round ends early"


@norms
def test_a_verdict_at_one_eps_stops_there(norm: Norm) -> None:
    model, x, y = model_and_batch(12)
    sizes = count_examples(model)
    free = size(quick(model, x, y, norm=norm), x, norm)
    whole, eps = sum(sizes), float(free.median()) * 1.001
    sizes.clear()
    judged = quick(model, x, y, norm=norm, eps=eps)
    spent = sum(sizes)
    hit = fooled(model(judged), y)
    assert torch.equal(hit, free <= eps) and 0 < hit.sum() < 12 and spent < 0.8 * whole
    assert ThreatModel(norm=norm, eps=eps).contains(judged, x).all() and torch.equal(judged[~hit], x[~hit])


@norms
@pytest.mark.parametrize("classes", [2, 1000])
def test_any_number_of_classes(norm: Norm, classes: int) -> None:
    model, x, y = model_and_batch(2, classes)
    assert fooled(model(quick(model, x, y, norm=norm, rounds=5)), y).all()


@norms
def test_images_on_the_bounds_are_attacked(norm: Norm) -> None:
    model, x, _ = model_and_batch(4)
    x = (x > 0.5).double()
    y = model(x).argmax(1)
    x_adv = cw(model, x, y, norm=norm, steps=100, step_size=0.1, first_c=0.1, rounds=9)
    assert fooled(model(x_adv), y).all() and x_adv.min() >= 0 and x_adv.max() <= 1


def test_settings_that_make_no_sense() -> None:
    model, x, y = model_and_batch(2)
    settings: list[dict[str, Any]] = [{"steps": 0}, {"rounds": 0}, {"step_size": 0.0}, {"first_c": 0.0}]
    settings += [{name: wrong} for name in ("confidence", "step_size", "first_c") for wrong in (-1.0, float("nan"))]
    for wrong in settings:
        with pytest.raises(UserError, match="at least"):
            cw(model, x, y, **wrong)
    with pytest.raises(UserError, match="fab"):
        cw(model, x, y, norm="l1")


def test_linf_with_few_steps_a_round_still_comes_where_it_must() -> None:
    """Rounds that are too short for the way go on from each other."""
    model, x, y = model_and_batch()
    many, few = (cw(model, x, y, norm="linf", steps=steps, first_c=1.0) for steps in (200, 5))
    assert fooled(model(few), y).all() and fooled(model(many), y).all()
