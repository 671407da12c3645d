"""Attacks on linear models, where the best an adversary can do is known exactly.

For two classes the margin against the label is d . x + b, so within a ball it rises by eps times the dual norm of d
while no pixel meets the box, and by the solution of a linear (linf, l1) or convex (l2) program where some do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from advsphere.attacks import restarts
from advsphere.losses import margin
from advsphere.rng import Rng
from advsphere.threat import Norm, ThreatModel
from tests.laws import ATTACKS, NORMS, AttackRow, images, labels, linear_net


def attacks_that(holds: Callable[[AttackRow], bool]) -> pytest.MarkDecorator:
    chosen = {name: row for name, row in ATTACKS.items() if holds(row)}
    return pytest.mark.parametrize("row", chosen.values(), ids=chosen.keys())


attacks = attacks_that(lambda row: not row.surrogate)
exact = attacks_that(lambda row: not row.search and not row.surrogate)
iterated = attacks_that(lambda row: row.iterates)
norms = pytest.mark.parametrize("norm", NORMS)
RADIUS = {"linf": 0.05, "l2": 0.35, "l1": 0.35}
"""Radii at which images in [0.4, 0.6] stay clear of the box."""


@pytest.fixture(autouse=True)
def _only_the_norms_that_an_attack_has(request: pytest.FixtureRequest) -> None:
    call = getattr(request.node, "callspec", None)
    if call and {"row", "norm"} <= call.params.keys() and call.params["norm"] not in call.params["row"].norms:
        pytest.skip(f"this attack has no {call.params['norm']}")


def two_classes(d: Tensor, bias: float = 0.0) -> nn.Sequential:
    """The margin against class 0 is d . x + bias, against class 1 its negative."""
    return linear_net(torch.stack([-d / 2, d / 2]), torch.tensor([-bias / 2, bias / 2]))


def direction(size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(3 * size * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dual(d: Tensor, norm: Norm) -> float:
    return float({"linf": d.abs().sum(), "l2": d.norm(), "l1": d.abs().max()}[norm])


def at_distance(d: Tensor, margin_now: float, y: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A model of direction d and six images, clear of the box, all of label y and with the same margin against it."""
    x = images(6, low=0.4, high=0.6).double()
    heights = x.flatten(1) @ d
    x = x - ((heights - heights.mean()) / d.norm() ** 2)[:, None, None, None] * d.view(1, *x.shape[1:])
    bias = (margin_now if y == 0 else -margin_now) - float(heights.mean())
    return two_classes(d, bias).double(), x, torch.full((6,), y)


@attacks_that(lambda row: not row.search and not row.surrogate and not row.minimal)
@norms
@pytest.mark.parametrize("y", [0, 1])
def test_attains_the_optimum_while_the_box_is_inactive(row: AttackRow, norm: Norm, y: int) -> None:
    d, eps = direction(), RADIUS[norm]
    gain = eps * dual(d, norm)
    model, x, target = at_distance(d, -1.05 * gain, y)  # just out of reach, for the rows that stop at a success
    attack = row.make(ThreatModel(norm=norm, eps=eps), steps=60, step_size=eps / 3)
    rise = margin(model(attack(model, x, target, rng=Rng.of(x))), target) - margin(model(x), target)
    assert torch.allclose(rise, torch.full_like(rise, gain), rtol=1e-4)


@exact
@norms
@pytest.mark.parametrize("y", [0, 1])
def test_fools_beyond_the_exact_distance_and_not_below(row: AttackRow, norm: Norm, y: int) -> None:
    d = direction(seed=1)
    model, x, target = at_distance(d, -0.9 * RADIUS[norm] * dual(d, norm), y)
    for factor, falls in ((0.98, False), (1.02, True)):
        eps = factor * 0.9 * RADIUS[norm]
        attack = row.make(ThreatModel(norm=norm, eps=eps), steps=60, step_size=eps / 3)
        predicted = model(attack(model, x, target, rng=Rng.of(x))).argmax(1)
        assert (predicted != target).all() if falls else (predicted == target).all()


def best_rise(d: Tensor, x: Tensor, norm: Norm, eps: float) -> float:
    """max d . v with ||v|| <= eps and x + v in [0, 1]."""
    slope, pixels = d.numpy(), x.flatten().double().numpy()
    low, high = -pixels, 1 - pixels
    if norm == "linf":
        box = np.stack([np.maximum(low, -eps), np.minimum(high, eps)], 1)
        return float(-linprog(-slope, bounds=box).fun)
    if norm == "l1":  # v = up - down, both positive
        box = np.stack([np.zeros(2 * len(slope)), np.concatenate([high, -low])], 1)
        budget = np.ones((1, 2 * len(slope)))
        return float(-linprog(np.concatenate([-slope, slope]), A_ub=budget, b_ub=[eps], bounds=box).fun)
    small, large = 1e-9, 1e9  # the multiplier of the ball: v = clip(d / multiplier)
    for _ in range(200):
        multiplier = (small * large) ** 0.5
        v = np.clip(slope / multiplier, low, high)
        small, large = (multiplier, large) if np.linalg.norm(v) > eps else (small, multiplier)
    return float(slope @ v)


@iterated
@pytest.mark.parametrize(
    ("norm", "eps", "at_least"),
    [
        ("linf", 0.05, 1 - 1e-6),
        ("linf", 0.4, 1 - 1e-6),
        ("l2", 0.5, 0.985),
        ("l2", 2.0, 0.985),
        ("l2", 5.0, 0.985),
        ("l1", 0.5, 0.985),
        ("l1", 3.0, 0.985),
        ("l1", 20.0, 0.985),
    ],
)
def test_close_to_the_solver_where_the_box_is_active(row: AttackRow, norm: Norm, eps: float, at_least: float) -> None:
    """Never above it, which would be out of bounds; below it by what a fixed step leaves."""
    d, x, y = direction(seed=2), images(4, seed=5).double(), torch.zeros(4, dtype=torch.long)
    x[0] = (x[0] > 0.5).double()
    model = two_classes(d, -1000.0).double()
    attack = row.make(ThreatModel(norm=norm, eps=eps), steps=100, step_size=eps / 20, start="clean")
    rise = margin(model(attack(model, x, y, rng=Rng.of(x))), y) - margin(model(x), y)
    share = rise.detach() / torch.tensor([best_rise(d, one, norm, eps) for one in x])
    assert (share >= at_least).all() and (share <= 1 + 1e-6).all()


def test_l1_steps_spread_over_one_percent_of_the_pixels() -> None:
    """On larger images an l1 step raises the largest 1 % of the gradient alike, so that the fixed point is their mean
    and not the largest entry; only at 8 x 8 are the two the same.
    """
    d, x = direction(size=16, seed=3), images(3, size=16, low=0.4, high=0.6).double()
    model, y, eps = two_classes(d, -1000.0).double(), torch.zeros(3, dtype=torch.long), 0.3
    attack = ATTACKS["pgd"].make(ThreatModel(norm="l1", eps=eps), steps=100, step_size=0.05)
    rise = margin(model(attack(model, x, y)), y) - margin(model(x), y)
    assert torch.allclose(rise, eps * d.abs().topk(7).values.mean().expand(3), rtol=1e-3)


@attacks
@norms
def test_more_steps_never_help_the_defender(row: AttackRow, norm: Norm) -> None:
    d, x, y, eps = direction(seed=4), images(6, low=0.4, high=0.6).double(), labels(6, classes=2), RADIUS[norm]
    model, threat = two_classes(d).double(), ThreatModel(norm=norm, eps=RADIUS[norm])
    before = torch.full((6,), -torch.inf)
    for steps in (1, 2, 3, 5, 9, 17, 40):
        attack = row.make(threat, steps=steps, step_size=eps / 6)
        value = margin(model(attack(model, x, y, rng=Rng.of(x))), y)
        # What has been fooled is done, at whatever margin.
        assert ((value >= before - 1e-9) | (value > 0)).all()
        before = torch.where(before > 0, before, value)
        assert ((before > 0) <= (value > 0)).all()


@attacks
@norms
def test_more_eps_never_helps_the_defender(row: AttackRow, norm: Norm) -> None:
    d, x, y = direction(seed=4), images(6, low=0.4, high=0.6).double(), labels(6, classes=2)
    model = two_classes(d, -float((x.flatten(1) @ d).mean())).double()
    before, fallen = margin(model(x), y), []
    for factor in (0.0, 0.01, 0.05, 0.1, 0.3, 0.6, 1.0):
        attack = row.make(ThreatModel(norm=norm, eps=factor * RADIUS[norm]), steps=40)
        value = margin(model(attack(model, x, y, rng=Rng.of(x))), y)
        assert ((value >= before - 1e-9) | (value > 0)).all()
        before = value
        fallen.append(int((value > 0).sum()))
    assert fallen == sorted(fallen) and fallen[0] < 6 and fallen[-1] == 6


def test_more_restarts_never_help_the_defender() -> None:
    d, x, y = direction(seed=6), images(6).double(), labels(6, classes=2)
    model, before = two_classes(d).double(), torch.full((6,), -torch.inf)
    one_step = ATTACKS["pgd"].make(ThreatModel(norm="l2", eps=0.3), steps=1, step_size=0.02)
    for n in (1, 2, 4, 8):
        value = margin(model(restarts(one_step, n)(model, x, y, rng=Rng.of(x))), y)
        assert ((value >= before) | (value > 0)).all()
        before = value
