"""The threat model: what the adversary may do to an image, and the geometry of it.

A norm is five operations and nothing else in the package branches on it: project, ascend, sample, measure, judge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from advsphere.errors import UserError
from advsphere.rng import Rng

Norm = Literal["linf", "l2", "l1"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ThreatModel:
    """A ball of radius `eps` around each image, cut with the box of valid pixels.

    norm: "linf", "l2" or "l1", over all pixels and channels. eps: radius in pixel units, >= 0. bounds: lowest and
    highest pixel. Raises UserError where one of them makes no sense.
    """

    norm: Norm
    eps: float
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise UserError(f"no norm is called {self.norm!r}; choose one of {', '.join(get_args(Norm))}")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise UserError(
                f"eps is {self.eps}, but a radius is finite and not negative (8/255 = 0.0314 is usual for linf)"
            )
        if not self.bounds[0] < self.bounds[1]:
            raise UserError(f"bounds are {self.bounds}, but the lowest pixel must be below the highest")

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The point of ball and box for each example; (B, ...) each.

        linf and l1: the nearest one (l1 after Croce & Hein 2021, arXiv 2103.01208, Proposition 2.1).
        l2: the ball first, then the box, which can only shorten a perturbation of an image inside the box.
        """
        low, high = self.bounds
        if self.norm == "linf":
            return torch.minimum(torch.maximum(x_adv, x - self.eps), x + self.eps).clamp(low, high)
        if self.norm == "l2":
            delta = x_adv - x
            length = _per_example(_norms(delta, 2), x)
            return (x + delta * (self.eps / length.clamp(min=self.eps or 1e-12)).clamp(max=1.0)).clamp(low, high)
        return _project_l1(x_adv, x, self.eps, self.bounds)

    def ascent(self, grad: Tensor, x_adv: Tensor) -> Tensor:
        """The unit step that raises a linear loss most: sign (linf), normalised gradient (l2), a few signs (l1).

        grad, x_adv: (B, ...). The l1 step moves the 1 % (at least one) largest entries of the gradient, as SLIDE does
        (Tramer & Boneh 2019, arXiv 1904.13000); unlike there, pixels that stand at the bound they are pushed to are
        passed over. A zero gradient gives a zero step.
        """
        if self.norm == "linf":
            return grad.sign()
        if self.norm == "l2":
            # By the largest entry first: the squares of a gradient of 1e-25 underflow.
            tiny = torch.finfo(grad.dtype).tiny
            unit = grad / _per_example(_norms(grad, math.inf), grad).clamp(min=tiny)
            return unit / _per_example(_norms(unit, 2), grad).clamp(min=tiny)
        low, high = self.bounds
        stuck = ((x_adv >= high) & (grad > 0)) | ((x_adv <= low) & (grad < 0))
        free = grad.masked_fill(stuck, 0.0).flatten(1)
        k = max(1, free.shape[1] // 100)
        top = free.abs().topk(k, dim=1).indices
        step = torch.zeros_like(free).scatter_(1, top, free.gather(1, top).sign())
        return (step / step.abs().sum(1, keepdim=True).clamp(min=1.0)).view_as(grad)

    def sample(self, x: Tensor, rng: Rng) -> Tensor:
        """A uniform point of the ball around each example, put into the box; (B, ...) -> (B, ...)."""
        shape = x.shape[1:]
        if self.norm == "linf":
            offset = rng.uniform(shape, "start").to(x.dtype).mul_(2 * self.eps).sub_(self.eps)
            return self.project(x + offset, x)
        d = shape.numel()
        if self.norm == "l2":
            direction = rng.normal(shape, "start")
            length = _norms(direction, 2)
        else:
            # Laplace noise over its l1 norm is uniform on the l1 sphere.
            u = rng.uniform(shape, "start") - 0.5
            direction = -u.sign() * torch.log1p(-2 * u.abs())
            length = _norms(direction, 1)
        radius = self.eps * rng.uniform((), "radius") ** (1 / d)
        return self.project(x + (direction * _per_example(radius / length, x)).to(x.dtype), x)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The norm of each perturbation: (B, ...) -> (B,)."""
        return _norms(x_adv - x, {"linf": math.inf, "l2": 2, "l1": 1}[self.norm])

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Which examples keep to the rules, judged in float32 with a tolerance of eps * 1e-6 + 1e-7: (B, ...) -> (B,)
        bool.

        The tolerance covers the rounding of x + eps; the norms themselves are summed in float64. NaN is outside.
        """
        x_adv, x = x_adv.float(), x.float()
        in_ball = self.distance(x_adv.double(), x.double()) <= self.eps + self.eps * 1e-6 + 1e-7
        return in_ball & self.within_bounds(x_adv)

    def within_bounds(self, x_adv: Tensor) -> Tensor:
        """Which examples are images, all of their pixels within the bounds: (B, ...) -> (B,) bool. NaN is not."""
        low, high = self.bounds
        flat = x_adv.flatten(1)
        return (flat >= low).all(1) & (flat <= high).all(1)


def _norms(delta: Tensor, order: float) -> Tensor:
    return torch.linalg.vector_norm(delta.flatten(1), order, dim=1)


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), to be broadcast over the examples."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _project_l1(x_adv: Tensor, x: Tensor, eps: float, bounds: tuple[float, float]) -> Tensor:
    """argmin ||z - x_adv||_2 with ||z - x||_1 <= eps and z in the box.

    The answer is z = x + sign(u) clip(|u| - t, 0, room) with u = x_adv - x and the smallest t >= 0 that meets the
    budget. The length that is left is piecewise linear and falling in t, so t is found by sorting its kinks, |u| - room
    (slope -1 begins) and |u| (it ends). In float64, since a float32 sum over the pixels is off by more than the
    tolerance of `contains`.
    """
    flat = x.flatten(1).double()
    u = x_adv.flatten(1).double() - flat
    room = torch.where(u > 0, bounds[1] - flat, flat - bounds[0]).clamp(min=0.0)
    size = u.abs()
    starts = (size - room).clamp(min=0.0)
    kinks, order = torch.cat([starts, size], 1).sort(1)
    slopes = torch.cat([-torch.ones_like(size), torch.ones_like(size)], 1).gather(1, order).cumsum(1)
    total = torch.minimum(size, room).sum(1, keepdim=True)
    drops = slopes[:, :-1] * kinks.diff(dim=1)
    lengths = total + torch.cat([torch.zeros_like(total), drops.cumsum(1)], 1)
    # The last kink at which the length still exceeds the budget; t lies on the line that leaves it.
    last = ((lengths > eps).sum(1, keepdim=True) - 1).clamp(min=0)
    slope = -slopes.gather(1, last).clamp(max=-1.0)
    t = kinks.gather(1, last) + (lengths.gather(1, last) - eps).clamp(min=0.0) / slope
    t = torch.where(total > eps, t, torch.zeros_like(t))
    z = u.sign() * torch.minimum((size - t).clamp(min=0.0), room)
    nearest = (flat + z).to(x.dtype)
    # Roundings away from x would add up to a step out of the ball.
    longer = (nearest.double() - flat).abs() > z.abs()
    inside = torch.where(longer, torch.nextafter(nearest, flat.to(x.dtype)), nearest)
    return inside.view_as(x).clamp(*bounds)


def radius(eps: float) -> str:
    """A radius as people write it: 8/255 where it is a few whole grey levels, else a plain number."""
    steps = eps * 255
    return f"{round(steps)}/255" if 0.5 <= steps < 32.5 and abs(steps - round(steps)) < 1e-6 else f"{eps:g}"
