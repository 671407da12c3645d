"""The linearised classifier: its decision boundaries as hyperplanes, and projections onto a hyperplane inside the box.

The norms differ only in the distance to a hyperplane and in its nearest point. Attacks that use this module never
branch on the norm.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from advsphere.attacks.active import reads_are_free
from advsphere.classifier import Classifier, gradient
from advsphere.errors import UserError
from advsphere.threat import Norm

DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
"""The order of the dual norm, which measures gradients when the perturbation is measured by the given norm."""

CACHED = 2**16
"""Pixels that a CPU projects at once, because they fit into its cache. Measured up to 3 times faster than a batch."""

ROUNDS = 6
"""Newton steps of a projection on a GPU, where asking whether it has converged would take a wait. Attacks need about 4.
Random problems at the edge of the box end at most 4 % before the hyperplane, less than an attack steps beyond it."""


def most_likely_rivals(logits: Tensor, y: Tensor, n: int) -> Tensor:
    """The n most likely classes other than y, or all of them if there are fewer: (B, K), (B,) -> (B, k), best first.

    Raises UserError for n < 1 or a model of one class.
    """
    if n < 1 or logits.shape[1] < 2:
        raise UserError(
            f"the attack should use {n} wrong classes, and the model has {logits.shape[1]} classes; it needs at least "
            "one wrong class and a model with two or more"
        )
    others = logits.scatter(1, y[:, None], float("-inf"))
    return others.topk(min(n, logits.shape[1] - 1), dim=1).indices


def traced(model: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run one forward and keep its graph. Returns the leaf (B, ...) and the logits (B, K)."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        return leaf, model(leaf)


def boundaries(leaf: Tensor, logits: Tensor, y: Tensor, rivals: Tensor | int) -> tuple[Tensor, Tensor]:
    """The boundaries between y and its rivals: values z_j - z_y, (B, k), and their gradients at the leaf, (B, k, ...).

    leaf and logits come from `traced` and serve one call. `rivals` holds the classes (B, k), or the number of most
    likely ones to use.
    One backward per rival on the kept graph is faster on a CPU than one vectorised backward (measured 1.3 to 2.4
    times), and works with any custom operator. NaN and infinity become 0, so that they cause no step.
    """
    with torch.enable_grad():
        chosen = most_likely_rivals(logits.detach(), y, rivals) if isinstance(rivals, int) else rivals
        values = logits.gather(1, chosen) - logits.gather(1, y[:, None])
        total = values.sum(0)
        last = len(total) - 1
        gradients = [gradient(one, leaf, retain_graph=i < last) for i, one in enumerate(total)]
    return _finite(values.detach()).to(leaf.dtype), _finite(torch.stack(gradients, 1))


def nearest(values: Tensor, gradients: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """The boundary with the smallest |value| / ||gradient||_q, where q is dual to the norm.

    From (B, k) and (B, k, ...) it returns that boundary's value (B,), the quotient (B,) and the gradient (B, ...).
    Without the box the quotient is the distance (Croce & Hein 2020, arXiv 1907.02044, eq. 7). It is 0 where every
    gradient is zero.
    """
    steepness = torch.linalg.vector_norm(gradients.flatten(2), DUAL[norm], dim=2)
    lengths = torch.where(steepness > 0, values.abs() / steepness, torch.inf)
    length, closest = lengths.min(1)
    rows = torch.arange(len(values), device=values.device)
    return values[rows, closest], length.nan_to_num(posinf=0.0), gradients[rows, closest]


def project(x: Tensor, value: Tensor, gradient: Tensor, norm: Norm, bounds: tuple[float, float]) -> Tensor:
    """The point u of the box nearest to x with value + <gradient, u - x> = 0.

    x: (B, ...) in the box; value: (B,); gradient: (B, ...). If the box does not meet the hyperplane, the result is the
    point of the box that comes closest to it. A gradient of zero leaves x unchanged. Solves eq. 6 of Croce & Hein 2020
    (their Appendix A), without their sort for linf and l2.
    """
    if len(x) == 0:
        return x
    rows = max(1, CACHED // x[0].numel()) if x.device.type == "cpu" else len(x)
    pieces = zip(x.flatten(1).split(rows), value[:, None].split(rows), gradient.flatten(1).split(rows), strict=True)
    return torch.cat([_projected(*piece, norm, bounds) for piece in pieces]).view_as(x)


def _projected(x: Tensor, value: Tensor, slope: Tensor, norm: Norm, bounds: tuple[float, float]) -> Tensor:
    """`project` for x (B, D), value (B, 1) and gradient (B, D)."""
    low, high = bounds
    # Divide by the largest entry first: the squares of a gradient of 1e-25 underflow.
    steepest = slope.abs().amax(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    direction = -value.sign() * slope.sign()
    room = torch.where(direction > 0, high - x, x - low).clamp(min=0.0) * (direction != 0)
    slope, goal = slope.abs() / steepest, value.abs() / steepest
    if norm == "l1":
        length = _steepest_first(slope, room, goal)
    else:
        length = _level(slope, torch.ones_like(slope) if norm == "linf" else slope, room, goal)
    return (x + direction * length).clamp(low, high)


def _level(slope: Tensor, weight: Tensor, room: Tensor, goal: Tensor) -> Tensor:
    """min(level * weight, room) with the smallest level whose gain, the sum of slope * that, reaches the goal.

    slope, weight, room: (B, D), not negative; goal: (B, 1). If no level reaches the goal, the result is room. The gain
    is concave and piecewise linear in the level, so Newton's method from 0 rises to the exact solution in finitely many
    steps (usually about five). Where reads are not free, it takes `ROUNDS` of them.
    """
    limits = torch.finfo(slope.dtype)
    tiny, highest = limits.tiny, min(1e30, limits.max)
    full, rise, nothing = slope * room, slope * weight, torch.zeros_like(goal)
    level = nothing
    for rounds in itertools.count():
        length = level * weight
        if rounds == ROUNDS and not reads_are_free(slope.device):
            break
        free = length < room
        spent = torch.where(free, nothing, full).sum(1, keepdim=True)
        rate = torch.where(free, rise, nothing).sum(1, keepdim=True).clamp(min=tiny)
        before, level = level, torch.maximum(level, ((goal - spent) / rate).clamp(max=highest))
        if reads_are_free(slope.device) and torch.equal(before, level):
            break
    return torch.minimum(length, room)


def _steepest_first(slope: Tensor, room: Tensor, goal: Tensor) -> Tensor:
    """Use up the room of one pixel after the other, the steepest first, until the gain reaches the goal.

    Shapes as in `_level`. Where reads are free, it sorts no more pixels than it needs, usually a few out of
    thousands.
    """
    count, gain = 32 if reads_are_free(slope.device) else slope.shape[1], slope * room
    beyond = goal >= gain.sum(1, keepdim=True)
    while True:
        count = min(count, slope.shape[1])
        order = slope.topk(count, dim=1).indices
        part = gain.gather(1, order)
        spent = part.cumsum(1)
        if count == slope.shape[1] or bool((beyond | (spent[:, -1:] >= goal)).all()):
            share = ((goal - (spent - part)) / part.clamp(min=torch.finfo(slope.dtype).tiny)).clamp(0.0, 1.0)
            return torch.where(beyond, room, room * torch.zeros_like(room).scatter_(1, order, share))
        count *= 8


def _finite(values: Tensor) -> Tensor:
    return values.nan_to_num(0.0, 0.0, 0.0)
