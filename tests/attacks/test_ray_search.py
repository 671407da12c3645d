"""RayS: exact distances on linear models, its count of queries, and that it sees predictions alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import rays
from advsphere.classifier import fooled
from advsphere.errors import UserError
from tests.laws import conv_net, count_examples, images, linear_net


def half_space(size: int, margin: float, seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor, float]:
    """A linear model of two classes, six grey images of class 0, and their exact linf distance from class 1."""
    d = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = torch.full((6, 1, 1, size), 0.5, dtype=torch.float64)
    model = linear_net(
        torch.stack([-d / 2, d / 2]), torch.tensor([0.5, -0.5]) * (margin + float(0.5 * d.sum()))
    ).double()
    return model, x, torch.zeros(6, dtype=torch.long), margin / float(d.abs().sum())


def distances(x_adv: Tensor, x: Tensor) -> Tensor:
    return (x_adv - x).flatten(1).abs().amax(1)


@pytest.mark.parametrize("size", [1, 7, 48, 100])
def test_attains_the_exact_distance_of_a_half_space(size: int) -> None:
    """Also where the blocks don't divide the pixels, and with a single one."""
    model, x, y, nearest = half_space(size, margin=0.1 * size**0.5)
    x_adv = rays(model, x, y)
    assert fooled(model(x_adv), y).all()
    # Each pixel's sign may be decided wrongly where that changes the radius by less than the search resolves.
    assert torch.allclose(distances(x_adv, x), torch.full((6,), nearest, dtype=x.dtype), rtol=0.02, atol=1e-3)
    assert (distances(x_adv, x) >= nearest).all()


def test_a_finer_tolerance_comes_closer() -> None:
    model, x, y, nearest = half_space(16, margin=1.0)
    excess = [float(distances(rays(model, x, y, tolerance=t), x)[0]) - nearest for t in (1e-1, 1e-3, 1e-6)]
    assert excess[0] > excess[1] > excess[2] >= 0 and excess[2] < 1e-6


def pixel_by_pixel(model: nn.Module, x: Tensor, queries: int, tolerance: float) -> float:
    """Algorithms 2 and 3 in plain Python, for one flat image of class 0 in [0, 1]: the radius."""
    asked, best, sign, level, block = 1, float("inf"), [1.0] * x.numel(), 0, 0

    def fools(direction: list[float], radius: float) -> bool:
        nonlocal asked
        asked += 1
        return bool(model((x + radius * torch.tensor(direction, dtype=x.dtype)).clamp(0, 1)[None]).argmax(1) != 0)

    while asked < queries:
        length = -(-x.numel() // 2**level)
        attempt = [-s if i // length == block else s for i, s in enumerate(sign)]  # none, in block 1 of level 0
        low, high, radius = 0.0, min(best, 1.0), min(best, 1.0)
        if fools(attempt, radius):
            while high - low > tolerance / x.numel() ** 0.5 and asked < queries:
                middle = (low + high) / 2
                low, high = (low, middle) if fools(attempt, middle) else (middle, high)
            if high < best:
                best, sign = high, attempt
        block += 1
        if block * length >= x.numel() + (level == 0 and best == float("inf")):
            level, block = level + 1, 0
    return best


@pytest.mark.parametrize("queries", [2, 30, 143, 600])
def test_the_same_radii_as_the_algorithm_in_plain_python(queries: int) -> None:
    x = images(3, size=4, seed=3).double()[:, :1]
    weights = torch.randn(5, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    first, last = linear_net(weights), linear_net(torch.tensor([[0.3, -1, 1, 0.5, 1], [0, 1, -1, 1, 0.5]]).double())
    model = nn.Sequential(first, nn.Tanh(), last)  # not linear: the order of the questions matters
    last[1].bias.data = torch.tensor([5.2, 0.0]).double()
    y = torch.zeros(3, dtype=torch.long)
    assert not fooled(model(x), y).any()
    with torch.no_grad():
        expected = [pixel_by_pixel(model, one, queries, 1e-3) for one in x.flatten(1)]
    x_adv = rays(model, x, y, queries=queries)
    found = [
        float(d) if hit else float("inf") for d, hit in zip(distances(x_adv, x), fooled(model(x_adv), y), strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-9)


def test_predictions_are_enough() -> None:
    """Any hard-label function will do: no logit, no gradient, any number of classes."""
    model, x = conv_net(classes=1000).eval(), images(4)

    def hard(z: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return torch.nn.functional.one_hot(model(z).argmax(1), 1000)

    with torch.no_grad():
        y = model(x).argmax(1)
        x_adv = rays(hard, x, y, queries=150)
        assert torch.equal(x_adv, rays(model, x, y, queries=150))
        assert fooled(model(x_adv), y).all()


@pytest.mark.parametrize("queries", [1, 2, 17, 100])
def test_no_example_costs_more_than_its_queries(queries: int) -> None:
    model, x = conv_net().eval(), images(5)
    with torch.no_grad():
        y = model(x).argmax(1)
    sizes = count_examples(model)
    x_adv = rays(model, x, y, queries=queries)
    assert len(sizes) == queries and sum(sizes) == 5 * queries
    if queries == 1:
        assert torch.equal(x_adv, x)


def test_what_is_done_asks_no_more() -> None:
    """Misclassified: one query. Inside the ball: no further one. Never in reach, or at a fixed point: two passes."""
    model, x, y, nearest = half_space(16, margin=1.0)
    y[0] = 1
    sizes = count_examples(model)
    x_adv = rays(model, x, y, queries=5000, eps=1.5 * nearest)
    assert sizes[:2] == [6, 5] and sum(sizes) < 6 * 100
    assert torch.equal(x_adv[0], x[0]) and (distances(x_adv, x)[1:] <= 1.5 * nearest).all()
    sizes.clear()
    assert torch.equal(rays(model, x, y, queries=5000, eps=0.9 * nearest), x), "a verdict at eps hides what is larger"
    assert len(sizes) < 1000
    sizes.clear()
    model[1].bias.data = torch.tensor([1e3, -1e3]).double()
    assert torch.equal(rays(model, x, torch.zeros(6, dtype=torch.long), queries=5000), x)
    assert len(sizes) == 1 + 2 + 2 + 4 + 8 + 16, "the clean image, and each corner once"


def test_more_queries_never_help_the_defender() -> None:
    model, x = conv_net().eval(), images(6)
    with torch.no_grad():
        y = model(x).argmax(1)
        radii = [distances(rays(model, x, y, queries=q), x) for q in (50, 200, 800)]
    assert (radii[0] >= radii[1]).all() and (radii[1] >= radii[2]).all() and (radii[2] < radii[0]).any()


def test_bounds_scale_everything() -> None:
    model, x, y, _ = half_space(16, margin=1.0)
    wide = rays(lambda z: model((z + 1) / 2), 2 * x - 1, y, bounds=(-1.0, 1.0), tolerance=2e-3)
    assert torch.allclose((wide + 1) / 2, rays(model, x, y), atol=1e-9)


@pytest.mark.parametrize("queries", [0, -3])
def test_no_query_at_all_is_refused(queries: int) -> None:
    with pytest.raises(UserError, match="at least 1"):
        rays(conv_net().eval(), images(1), torch.zeros(1, dtype=torch.long), queries=queries)
