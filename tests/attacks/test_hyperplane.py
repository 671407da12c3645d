"""Boundaries as hyperplanes: projections against a solver, gradients against one backward per logit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from advsphere.attacks.hyperplane import DUAL, boundaries, most_likely_rivals, nearest, project, traced
from advsphere.errors import UserError
from advsphere.threat import Norm, ThreatModel
from tests.laws import NORMS, conv_net, count_examples, images, labels

norms = pytest.mark.parametrize("norm", NORMS)


def solved(x: Tensor, value: float, w: Tensor, norm: Norm) -> float:
    """min ||v|| with value + w . v = 0 and x + v in [0, 1], by a linear program, or for l2 by the multiplier."""
    pixels, slope = x.flatten().numpy(), w.flatten().numpy()
    low, high, n = -pixels, 1 - pixels, len(pixels)
    if norm == "linf":  # v and a bound of |v|
        rows = np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]])
        box = [*zip(low, high, strict=True), (0, None)]
        plane = np.append(slope, 0)[None]
        return float(linprog(np.append(np.zeros(n), 1), rows, np.zeros(2 * n), plane, [-value], box).fun)
    if norm == "l1":  # v = up - down
        box = [*zip(np.zeros(n), high, strict=True), *zip(np.zeros(n), -low, strict=True)]
        return float(linprog(np.ones(2 * n), None, None, np.append(slope, -slope)[None], [-value], box).fun)
    below, above = -1e6, 1e6
    for _ in range(200):
        middle = (below + above) / 2
        v = np.clip(middle * slope, low, high)
        below, above = (middle, above) if slope @ v < -value else (below, middle)
    return float(np.linalg.norm(v))


def planes(n: int = 12, size: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Images, some of them on the bounds, and hyperplanes that meet the box, near and far."""
    x, w = images(n, size=size).double(), images(n, seed=1, size=size, low=-1.0).double()
    x[0], x[1], x[2] = 0.0, 1.0, (x[2] > 0.5).double()
    w[3, 0] = 0.0
    inside = images(n, seed=2, size=size).double()
    return x, (w * (x - inside)).flatten(1).sum(1), w


@norms
def test_the_nearest_point_of_the_hyperplane_in_the_box(norm: Norm) -> None:
    x, value, w = planes()
    u = project(x, value, w, norm, (0.0, 1.0))
    residual = value + (w * (u - x)).flatten(1).sum(1)
    assert residual.abs().max() < 1e-12 and u.min() >= 0 and u.max() <= 1
    exact = torch.tensor([solved(*one, norm) for one in zip(x, value.tolist(), w, strict=True)])
    distance = ThreatModel(norm=norm, eps=0.0).distance(u, x)
    assert torch.allclose(distance.float(), exact, rtol=1e-5, atol=1e-7)
    free = value.abs() / torch.linalg.vector_norm(w.flatten(1), DUAL[norm], dim=1)
    assert (distance > free * 1.001).any(), "for some the box matters"


@norms
def test_the_closed_form_where_the_box_is_far(norm: Norm) -> None:
    x, value, w = planes()
    u = project(x, value, w, norm, (-1e4, 1e4))
    closed = {
        "linf": -value.view(-1, 1, 1, 1) / w.abs().sum((1, 2, 3), keepdim=True) * w.sign(),
        "l2": -value.view(-1, 1, 1, 1) / w.square().sum((1, 2, 3), keepdim=True) * w,
    }
    if norm in closed:
        assert torch.allclose(u - x, closed[norm], atol=1e-12)
    else:
        assert ((u != x).flatten(1).sum(1) == 1).all(), "the steepest pixel alone"
    assert torch.allclose(
        ThreatModel(norm=norm, eps=0.0).distance(u, x),
        value.abs() / torch.linalg.vector_norm(w.flatten(1), DUAL[norm], dim=1),
    )


@norms
def test_a_hyperplane_outside_the_box_gives_the_corner_that_comes_closest(norm: Norm) -> None:
    x, value, w = planes()
    u = project(x, value.sign() * 1e3, w, norm, (0.0, 1.0))
    corner = torch.where(w * value.sign().view(-1, 1, 1, 1) < 0, 1.0, 0.0)
    assert torch.equal(u, torch.where(w == 0, x, corner))


@norms
@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_the_scale_of_the_plane_does_not_matter(norm: Norm, factor: float) -> None:
    x, value, w = (t.float() for t in planes())
    usual = project(x, value, w, norm, (0.0, 1.0))
    assert torch.allclose(project(x, factor * value, factor * w, norm, (0.0, 1.0)), usual, atol=1e-5)


@norms
def test_no_gradient_no_movement_and_nothing_to_do_on_the_plane(norm: Norm) -> None:
    x, value, w = planes()
    assert torch.equal(project(x, value, torch.zeros_like(w), norm, (0.0, 1.0)), x)
    assert torch.equal(project(x, torch.zeros_like(value), w, norm, (0.0, 1.0)), x)
    assert project(x[:0], value[:0], w[:0], norm, (0.0, 1.0)).shape == (0, 3, 3, 3)


@norms
def test_rows_do_not_matter_to_each_other(norm: Norm) -> None:
    x, value, w = planes()
    whole = project(x, value, w, norm, (0.0, 1.0))
    for i in range(len(x)):
        assert torch.allclose(project(x[i : i + 1], value[i : i + 1], w[i : i + 1], norm, (0.0, 1.0))[0], whole[i])


def test_values_and_gradients_are_those_of_the_logits() -> None:
    model, x, y = conv_net(classes=5).double().eval(), images(6).double(), labels(6, classes=5)
    leaf = x.clone().requires_grad_(True)
    logits = model(leaf)
    sizes = count_examples(model)
    values, gradients = boundaries(*traced(model, x), y, 3)
    assert sizes == [6] and not values.requires_grad and not gradients.requires_grad
    rivals = most_likely_rivals(logits.detach(), y, 3)
    for i in range(6):
        order = [j for j in logits[i].argsort(descending=True).tolist() if j != y[i]]
        assert rivals[i].tolist() == order[:3]
        for k, j in enumerate(order[:3]):
            value = logits[i, j] - logits[i, y[i]]
            (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True)
            assert torch.allclose(values[i, k], value) and torch.allclose(gradients[i, k], gradient[i])
    again = boundaries(*traced(model, x), y, rivals)
    assert torch.equal(again[0], values) and torch.equal(again[1], gradients)


def test_nearest_is_measured_in_the_dual_norm() -> None:
    values = torch.tensor([[-2.0, 3.0, -6.0]])
    gradients = torch.tensor([[[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]]])
    # linf: 2/4, 3/4, 6/5. l2: 2/2, 3/2.83, 6/5. l1: 2/1, 3/2, 6/5.
    for norm, k, exact in (("linf", 0, 0.5), ("l2", 0, 1.0), ("l1", 2, 1.2)):
        value, length, gradient = nearest(values, gradients, norm)
        assert value == values[0, k] and torch.equal(gradient[0], gradients[0, k])
        assert torch.allclose(length, torch.tensor([exact]))
    flat = torch.tensor([[-2.0, -1e-9]]), torch.zeros(1, 2, 4)
    assert nearest(*flat, "l2")[1] == 0
    flat[1][0, 0] = 1e-3
    assert nearest(*flat, "l2")[0] == -2, "one that has no gradient is nowhere near"


def test_what_is_not_a_number_moves_nothing() -> None:
    leaf, logits = traced(lambda x: (x - 2).sqrt().flatten(1)[:, :3], images(2))
    values, gradients = boundaries(leaf, logits, labels(2), 2)
    assert (values == 0).all() and (gradients == 0).all()


def test_rivals_that_do_not_exist() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    assert most_likely_rivals(logits, torch.tensor([1]), 9).tolist() == [[2, 0]]
    with pytest.raises(UserError, match="at least one"):
        most_likely_rivals(logits, torch.tensor([1]), 0)
    with pytest.raises(UserError, match="two or more"):
        most_likely_rivals(logits[:, :1], torch.tensor([0]), 3)
