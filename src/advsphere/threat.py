"""The threat model: how an adversary may change an image, and the geometry of the allowed changes.

Each norm defines a few operations: project, ascend, sample, measure. The rest of the package hardly branches on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advsphere.errors import UserError
from advsphere.rng import Rng
from advsphere.typed import require_types

Norm = Literal["linf", "l2", "l1"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ThreatModel:
    """A ball of radius `eps` around each image, intersected with the box of valid pixels.

    Attributes:
        norm: "linf", "l2" or "l1", over all pixels and channels.
        eps: Radius in pixel units, at least 0.
        bounds: Lowest and highest value of a pixel.

    Raises:
        UserError: If the norm is unknown, eps is negative or not finite, or the bounds are not in rising order.
    """

    norm: Norm
    eps: float
    bounds: tuple[float, float] = (0.0, 1.0)
    _example = "ThreatModel(norm='linf', eps=8 / 255)"

    def __post_init__(self) -> None:
        require_types(self)
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise UserError(
                f"eps is {self.eps}, but a radius is a finite number, not negative (8/255 = 0.0314 is usual for linf)"
            )
        if not self.bounds[0] < self.bounds[1]:
            raise UserError(f"bounds are {self.bounds}, but the lowest pixel must be below the highest")

    def require_unit_pixels(self) -> None:
        """Check that the bounds are for images in [0, 1], which is what evaluations and training work on.

        Raises:
            UserError: If they reach beyond.
        """
        low, high = self.bounds
        if not 0 <= low < high <= 1:
            raise UserError(
                f"the bounds are {low:g} to {high:g}, but images are in [0, 1] here; give bounds and eps in that unit, "
                "such as eps = 8/255, and put any other unit into the model"
            )

    def project(self, x_adv: Tensor, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """Project images onto the intersection of ball and box.

        For linf and l1 the result is the nearest point of the intersection (l1: Croce & Hein 2021, arXiv 2103.01208,
        Proposition 2.1). For l2 the images are projected onto the ball and then clipped to the box.

        Args:
            x_adv: Images (B, ...).
            x: Centres of the balls (B, ...), within the bounds.
            eps: Radii (B,), one for each image; the threat model's own if not given.

        Returns:
            The projected images (B, ...).
        """
        low, high = self.bounds
        radius = self.eps if eps is None else over_pixels(eps, x)
        if self.norm == "linf":
            return x_adv.clamp(x - radius, x + radius).clamp(low, high)
        if self.norm == "l2":
            delta = x_adv - x
            length = over_pixels(_norms(delta, 2), x)
            return (x + delta * (radius / length.clamp(min=1e-12)).clamp(max=1.0)).clamp(low, high)
        return _project_l1(x_adv, x, self.eps if eps is None else eps[:, None], self.bounds)

    def ascent(self, grad: Tensor, x_adv: Tensor) -> Tensor:
        """The unit step that raises a linear loss most.

        This is the sign of the gradient for linf and the normalised gradient for l2. For l1 it moves the 1 % largest
        entries of the gradient (at least one), as SLIDE does (Tramer & Boneh 2019, arXiv 1904.13000). Differs from
        SLIDE: a pixel at the bound towards which it is pushed is skipped.

        Args:
            grad: Gradient of the loss (B, ...).
            x_adv: Images (B, ...) where the gradient was taken.

        Returns:
            Steps (B, ...) of norm 1, or 0 where the gradient is zero.
        """
        if self.norm == "linf":
            return grad.sign()
        if self.norm == "l2":
            # Divide by the largest entry first: the squares of a gradient of 1e-25 underflow.
            tiny = torch.finfo(grad.dtype).tiny
            unit = grad / over_pixels(_norms(grad, math.inf), grad).clamp(min=tiny)
            return unit / over_pixels(_norms(unit, 2), grad).clamp(min=tiny)
        low, high = self.bounds
        stuck = ((x_adv >= high) & (grad > 0)) | ((x_adv <= low) & (grad < 0))
        free = grad.masked_fill(stuck, 0.0).flatten(1)
        k = max(1, free.shape[1] // 100)
        top = free.abs().topk(k, dim=1).indices
        step = torch.zeros_like(free).scatter_(1, top, free.gather(1, top).sign())
        return (step / step.abs().sum(1, keepdim=True).clamp(min=1.0)).view_as(grad)

    def sample(self, x: Tensor, rng: Rng) -> Tensor:
        """Draw a uniform point of the ball around each image and project it into the box.

        Args:
            x: Images (B, ...), within the bounds.
            rng: Random numbers for these B examples.

        Returns:
            The points (B, ...).
        """
        shape = x.shape[1:]
        if self.norm == "linf":
            offset = rng.uniform(shape, "start").to(x.dtype).mul_(2 * self.eps).sub_(self.eps)
            return self.project(x + offset, x)
        d = shape.numel()
        if self.norm == "l2":
            direction = rng.normal(shape, "start")
            length = _norms(direction, 2)
        else:
            # Laplace noise divided by its l1 norm is uniform on the l1 sphere.
            u = rng.uniform(shape, "start") - 0.5
            direction = -u.sign() * torch.log1p(-2 * u.abs())
            length = _norms(direction, 1)
        radius = self.eps * rng.uniform((), "radius") ** (1 / d)
        return self.project(x + (direction * over_pixels(radius / length, x)).to(x.dtype), x)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The norm of each perturbation.

        Args:
            x_adv: Images (B, ...).
            x: Clean images (B, ...).

        Returns:
            The norms (B,) of `x_adv - x`.
        """
        return _norms(x_adv - x, {"linf": math.inf, "l2": 2, "l1": 1}[self.norm])

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Which images lie in ball and box, judged in float32 with a tolerance of eps * 1e-6 + 1e-7.

        The tolerance covers the rounding of x + eps. The norms themselves are summed in float64.

        Args:
            x_adv: Images (B, ...).
            x: Centres of the balls (B, ...).

        Returns:
            (B,) bool. An image with NaN lies outside.
        """
        x_adv, x = x_adv.float(), x.float()
        in_ball = self.distance(x_adv.double(), x.double()) <= self.eps + self.eps * 1e-6 + 1e-7
        return in_ball & self.within_bounds(x_adv)

    def within_bounds(self, x_adv: Tensor) -> Tensor:
        """Which images have all of their pixels within the bounds.

        Args:
            x_adv: Images (B, ...).

        Returns:
            (B,) bool. An image with NaN is not within them.
        """
        low, high = self.bounds
        flat = x_adv.flatten(1)
        return (flat >= low).all(1) & (flat <= high).all(1)


def over_pixels(values: Tensor, like: Tensor) -> Tensor:
    """Reshape one value per example so that it broadcasts over the pixels of each image.

    Args:
        values: (B,) values.
        like: (B, ...) images.

    Returns:
        The values, shape (B, 1, ..., 1).
    """
    return values.view(-1, *[1] * (like.dim() - 1))


def _norms(delta: Tensor, order: float) -> Tensor:
    return torch.linalg.vector_norm(delta.flatten(1), order, dim=1)


def _project_l1(x_adv: Tensor, x: Tensor, eps: float | Tensor, bounds: tuple[float, float]) -> Tensor:
    """argmin ||z - x_adv||_2 with ||z - x||_1 <= eps and z in the box.

    The solution is z = x + sign(u) clip(|u| - t, 0, room) with u = x_adv - x and the smallest t >= 0 that meets the
    budget. The norm of z - x is piecewise linear and falling in t, so sorting its kinks finds t: each pixel adds a
    slope of -1 between |u| - room and |u|. The sums run in float64, because the error of a float32 sum over the pixels
    exceeds the tolerance of `contains`.
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
    # t lies on the line that begins at the last kink where the length still exceeds the budget.
    last = ((lengths > eps).sum(1, keepdim=True) - 1).clamp(min=0)
    slope = -slopes.gather(1, last).clamp(max=-1.0)
    t = kinks.gather(1, last) + (lengths.gather(1, last) - eps).clamp(min=0.0) / slope
    t = torch.where(total > eps, t, torch.zeros_like(t))
    z = u.sign() * torch.minimum((size - t).clamp(min=0.0), room)
    nearest = (flat + z).to(x.dtype)
    # Rounding away from x could add up to a step out of the ball.
    longer = (nearest.double() - flat).abs() > z.abs()
    inside = torch.where(longer, torch.nextafter(nearest, flat.to(x.dtype)), nearest)
    return inside.view_as(x).clamp(*bounds)


def radius(eps: float) -> str:
    """Format a radius for display.

    Args:
        eps: Radius in pixel units.

    Returns:
        "8/255" if eps is a whole number of grey levels up to 32, else a plain number.
    """
    steps = eps * 255
    return f"{round(steps)}/255" if 0.5 <= steps < 32.5 and abs(steps - round(steps)) < 1e-6 else f"{eps:g}"
