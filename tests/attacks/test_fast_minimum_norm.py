"""FMN: exact distances on linear models, its schedule, and what it spends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import deepfool, fmn
from advsphere.attacks.hyperplane import DUAL
from advsphere.classifier import fooled
from advsphere.errors import UserError
from advsphere.rng import Rng
from advsphere.threat import Norm, ThreatModel
from tests.laws import NORMS, conv_net, count_examples, images, labels, linear_net

norms = pytest.mark.parametrize("norm", NORMS)


def model_and_batch(n: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    """In float64, and nothing misclassified."""
    model, x = conv_net().double().eval(), images(n).double()
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def size(x_adv: Tensor, x: Tensor, norm: Norm) -> Tensor:
    return ThreatModel(norm=norm, eps=0.0).distance(x_adv, x)


@norms
def test_the_nearest_of_several_boundaries_of_a_linear_model(norm: Norm) -> None:
    weight = torch.randn(5, 192, generator=torch.Generator().manual_seed(0)).double()
    model, x = linear_net(weight), images(10, low=0.4, high=0.6).double()
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    steep = torch.linalg.vector_norm(weight - weight[y][:, None], DUAL[norm], dim=2)
    distances = (logits.gather(1, y[:, None]) - logits) / steep
    exact = distances.masked_fill(nn.functional.one_hot(y, 5).bool(), torch.inf).amin(1)
    found = size(fmn(model, x, y, norm=norm, bounds=(-50.0, 50.0), steps=120, step_size=0.02), x, norm) / exact
    assert (found >= 1 - 1e-9).all() and (found <= 1.03).float().mean() >= 0.9 and found.median() <= 1.005


@norms
def test_within_the_box_where_it_is_active(norm: Norm) -> None:
    """Where pixels stand at the bounds, no other perturbation of that size does better on a linear model: the ball of
    99 % of the radius has no adversarial example.
    """
    d = torch.randn(192, generator=torch.Generator().manual_seed(1)).double()
    x, y = (images(6, seed=5) > 0.5).double(), torch.zeros(6, dtype=torch.long)
    model = linear_net(torch.stack([0 * d, d]), torch.tensor([0.0, -float((x.flatten(1) @ d).max()) - 5.0]).double())
    x_adv = fmn(model, x, y, norm=norm, steps=300)
    assert fooled(model(x_adv), y).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    smaller = ThreatModel(norm=norm, eps=0.0).project(x + 1e3 * d.view(1, 3, 8, 8), x, 0.97 * size(x_adv, x, norm))
    assert not fooled(model(smaller), y).any()


def test_no_larger_than_deepfool() -> None:
    model, x, y = model_and_batch(16)
    for norm in ("linf", "l2"):
        ratio = size(fmn(model, x, y, norm=norm), x, norm) / size(deepfool(model, x, y, norm=norm), x, norm)
        assert ratio.median() <= 1.0 and (ratio <= 1.1).all()


@norms
def test_reaches_a_class_that_it_is_told(norm: Norm) -> None:
    model, x, y = model_and_batch()
    target = (y + 1) % 4
    x_adv = fmn(model, x, target, norm=norm, targeted=True)
    assert (model(x_adv).argmax(1) == target).all()
    nearest = fmn(model, x, y, norm=norm)
    assert (size(x_adv, x, norm) / size(nearest, x, norm)).median() >= 1.0


def test_a_step_costs_one_forward_and_what_is_wrong_already_costs_one() -> None:
    model, x, y = model_and_batch()
    y[::2] = (y[::2] + 1) % 4
    sizes = count_examples(model)
    assert torch.equal(fmn(model, x, y, norm="l2", steps=5)[::2], x[::2])
    assert sizes == [8, 4, 4, 4, 4]


class Hidden(nn.Module):
    """The gradient at 0.5 points to a boundary that takes 0.4, and does not show another that takes 0.1 in l1."""

    def forward(self, x: Tensor) -> Tensor:
        change = x.flatten(1) - 0.5
        near = 10 * (change[:, :8].sum(1) - 0.05).clamp(min=0.0) - 0.5
        return torch.stack([torch.zeros_like(near), torch.maximum(change[:, 100] - 0.4, near)], 1)


@norms
def test_further_starts_are_random_and_find_a_boundary_that_the_gradient_does_not_show(norm: Norm) -> None:
    model, x, y = Hidden(), torch.full((8, 3, 8, 8), 0.5).double(), torch.zeros(8, dtype=torch.long)
    one, rng, sizes = size(fmn(model, x, y, norm=norm, steps=200), x, norm), Rng.of(x, seed=1), count_examples(model)
    x_adv = fmn(model, x, y, norm=norm, steps=200, starts=3, rng=rng)
    assert sizes == [8] * 600
    several = size(x_adv, x, norm)
    assert (several <= one).all() and (several < 0.3 * one).any() and fooled(model(x_adv), y).all()
    index = torch.tensor([7, 2, 0, 5])
    part = fmn(model, x[index], y[index], norm=norm, steps=200, starts=3, rng=rng.take(index))
    assert torch.allclose(part, x_adv[index], atol=1e-9)


def test_eps_stops_at_the_first_example_within() -> None:
    model, x, y = model_and_batch(16)
    distance = size(fmn(model, x, y, norm="l2"), x, "l2")
    eps = float(distance.median())
    sizes = count_examples(model)
    x_adv = fmn(model, x, y, norm="l2", eps=eps)
    hit = fooled(model(x_adv), y)
    assert torch.equal(hit, distance <= eps) and torch.equal(x_adv[~hit], x[~hit])
    assert sum(sizes[:-1]) < 16 * 70


def test_a_gradient_of_zero_or_nan_ends_at_the_clean_image() -> None:
    x, y = images(4), torch.zeros(4, dtype=torch.long)
    flat = linear_net(torch.zeros(4, 192))
    assert torch.equal(fmn(flat, x, y, norm="l2", steps=5), x)

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1)[:, :4] * 0 + torch.tensor([1.0, 0.0, 0.0, 0.0])
            return z + (z - z).sqrt()  # the derivative of the root at 0 is infinite

    assert torch.equal(fmn(Broken(), x, y, norm="linf", steps=5), x)


def test_settings_that_make_no_sense() -> None:
    model, x, y = conv_net(), images(2), labels(2)
    for wrong in ({"steps": 0}, {"starts": 0}, {"step_size": 0.0}, {"gamma": 1.0}, {"gamma": 0.0}):
        with pytest.raises(UserError, match="at least 1"):
            fmn(model, x, y, norm="l2", **wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="norm is 'l0'; give one of 'linf', 'l2', 'l1'"):
        fmn(model, x, y, norm="l0")  # type: ignore[arg-type]
