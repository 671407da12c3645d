"""The step rules of AutoPGD: the step size of each example, and when it returns to its best iterate.

`Halving` is the rule for linf and l2 (Croce & Hein 2020, arXiv 2003.01690, Algorithm 1). `Thinning` is the rule for l1
(Croce & Hein 2021, arXiv 2103.01208, Algorithm 1). Both have the same four methods.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from advsphere.attacks.records import Rows
from advsphere.threat import ThreatModel, over_pixels

TRACE = 1e-6
"""A change of a pixel, or a distance from a bound, below this share of eps counts as rounding."""


@dataclass(frozen=True)
class Path(Rows):
    """The current iterate of each example, and the one with the highest loss."""

    x: Tensor  # clean images (b, ...)
    target: Tensor  # second argument of the loss
    x_adv: Tensor  # current iterate (b, ...)
    before: Tensor  # previous iterate (b, ...)
    value: Tensor  # loss (b,) of the current iterate
    grad: Tensor  # gradient (b, ...) at the current iterate
    best_x: Tensor  # iterate (b, ...) with the highest loss
    best_grad: Tensor  # gradient (b, ...) there
    best: Tensor  # highest loss (b,)
    rises: Tensor  # steps (b,) since the last checkpoint that raised the loss

    @classmethod
    def from_start(cls, x: Tensor, target: Tensor, start: Tensor) -> Self:
        flat, none = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.long, device=x.device)
        # The start is the best iterate so far, but reaching it does not count as a rise.
        highest = torch.full((len(x),), torch.inf, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        return cls(x, target, start, start, highest, flat, start, flat, -highest, none)

    def observe(self, value: Tensor, grad: Tensor) -> Self:
        """Note the loss and the gradient of the current iterate."""
        value = value.to(self.value.dtype)
        better = value > self.best
        return replace(
            self,
            value=value,
            grad=grad,
            best_x=torch.where(over_pixels(better, grad), self.x_adv, self.best_x),
            best_grad=torch.where(over_pixels(better, grad), grad, self.best_grad),
            best=torch.where(better, value, self.best),
            rises=self.rises + (value > self.value),
        )

    def restart(self, back: Tensor) -> Self:
        """Return the examples in `back`, (b,) bool, to their best iterate, and count the rises of all from zero."""
        return replace(
            self,
            x_adv=torch.where(over_pixels(back, self.x), self.best_x, self.x_adv),
            grad=torch.where(over_pixels(back, self.x), self.best_grad, self.grad),
            value=torch.where(back, self.best, self.value),
            rises=torch.zeros_like(self.rises),
        )


@dataclass(frozen=True)
class Halving(Rows):
    """The rule for linf and l2: step sizes start at 2 eps and are halved where they are too large."""

    size: Tensor  # step size (b,)
    reached: Tensor  # highest loss (b,) at the last checkpoint
    halved: Tensor  # whether the step size was halved there, (b,) bool

    @classmethod
    def from_start(cls, x: Tensor, start: Tensor, eps: float) -> Self:
        size = x.new_full((len(x),), 2 * eps)
        return cls(size, torch.full_like(size, -torch.inf), torch.zeros_like(size, dtype=torch.bool))

    @staticmethod
    def checkpoints(steps: int) -> dict[int, int]:
        """The checkpoints w_j = ceil(p_j steps), each with the number of steps since the previous one."""
        windows, before, percent, gap = dict[int, int](), 0, 22, 22
        while percent < 100:
            now = -(-percent * steps // 100)
            if now > before:
                windows[now], before = now - before, now
            gap = max(gap - 3, 6)
            percent += gap
        return windows

    def check(self, path: Path, enough: float, eps: float) -> tuple[Self, Tensor]:
        """Conditions 1 and 2 of the paper: too few rises, or no new best with the step size of the last checkpoint.

        Returns the new state and which examples return to their best iterate.
        """
        halved = (path.rises < enough) | (~self.halved & (path.best <= self.reached))
        return type(self)(torch.where(halved, self.size / 2, self.size), path.best, halved), halved

    def step(self, path: Path, threat: ThreatModel, momentum: bool) -> Tensor:
        """The next iterate."""
        step = over_pixels(self.size, path.x) * threat.ascent(path.grad, path.x_adv)
        ahead = threat.project(path.x_adv + step, path.x)
        if not momentum:
            return ahead
        return threat.project(path.x_adv + 0.75 * (ahead - path.x_adv) + 0.25 * (path.x_adv - path.before), path.x)


@dataclass(frozen=True)
class Thinning(Rows):
    """The rule for l1: steps along the signs of the largest entries of the gradient, with fewer and fewer entries.

    Differs from the official code: a pixel at the bound towards which it is pushed is skipped, because it would use up
    the step. Counts are rounded down, so that two pixels can become one.
    """

    size: Tensor  # step size (b,)
    count: Tensor  # number of entries (b,) in a step
    spread: Tensor  # number of pixels (b,) that the best iterate changed at the last checkpoint

    @classmethod
    def from_start(cls, x: Tensor, start: Tensor, eps: float) -> Self:
        pixels = x.shape[1:].numel()
        spread = _changed(start, x, eps)
        spread = torch.where(spread == 0, pixels, spread)
        # A start from a larger ball is already sparse, and continues from its own count.
        return cls(x.new_full((len(x),), eps), _two_thirds(spread).clamp(max=max(-(-pixels // 5), 1)), spread)

    @staticmethod
    def checkpoints(steps: int) -> dict[int, int]:
        """A checkpoint every 4 % of the steps."""
        gap = max(steps // 25, 1)
        return dict.fromkeys(range(gap, steps, gap), gap)

    def check(self, path: Path, enough: float, eps: float) -> tuple[Self, Tensor]:
        """Reset the step size of examples whose best iterate has become sparser, and reduce it for the others."""
        spread = _changed(path.best_x, path.x, eps)
        sparser = spread < 0.95 * self.spread
        size = torch.where(sparser, eps, (self.size / 1.5).clamp(min=eps / 10))
        return type(self)(size, _two_thirds(spread), spread), sparser

    def step(self, path: Path, threat: ThreatModel, momentum: bool) -> Tensor:
        """The next iterate; the l1 rule has no momentum."""
        room = torch.where(path.grad > 0, threat.bounds[1] - path.x_adv, path.x_adv - threat.bounds[0])
        stuck = room <= TRACE * threat.eps
        free = path.grad.masked_fill(stuck, 0.0).flatten(1)
        steepness = free.abs()
        least = steepness.sort(1, descending=True).values.gather(1, self.count[:, None] - 1)
        signs = free.sign() * (steepness >= least)
        step = self.size[:, None] * signs / signs.abs().sum(1, keepdim=True).clamp(min=1)
        return threat.project(path.x_adv + step.view_as(path.x), path.x)


def _changed(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The number of pixels that differ, (b,) int64."""
    return ((x_adv - x).abs() > TRACE * eps).flatten(1).sum(1)


def _two_thirds(spread: Tensor) -> Tensor:
    """Rounded down, and at least one."""
    return (2 * spread // 3).clamp(min=1)
