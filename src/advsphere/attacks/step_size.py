"""The paces of AutoPGD: how far each example steps, when that is checked, and whether it goes back to its best.

`Halving` is for linf and l2 (Croce & Hein 2020, arXiv 2003.01690, Algorithm 1), `Thinning` for l1 (Croce & Hein 2021,
arXiv 2103.01208, Algorithm 1). Both have the same four methods.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from advsphere.threat import ThreatModel

TRACE = 1e-6
"""As a share of eps: what rounding may leave of a pixel that a projection put back, or of its distance from a bound."""


@dataclass(frozen=True)
class _Rows:
    """Tensors with one row for each example that is still attacked."""

    def take(self, rest: Tensor) -> Self:
        return replace(self, **{f.name: getattr(self, f.name)[rest] for f in fields(self)})


@dataclass(frozen=True)
class Path(_Rows):
    """Where each example stands, and where it stood when its loss was highest.

    index: (b,) its row in the batch. before: the iterate before x_adv. rises: (b,) steps since the last checkpoint that
    raised the loss.
    """

    index: Tensor
    x: Tensor
    target: Tensor
    x_adv: Tensor
    before: Tensor
    value: Tensor
    grad: Tensor
    best_x: Tensor
    best_grad: Tensor
    best: Tensor
    rises: Tensor

    @classmethod
    def from_start(cls, x: Tensor, target: Tensor, start: Tensor) -> Self:
        index, flat = torch.arange(len(x), device=x.device), torch.zeros_like(x)
        # The start itself is no rise, but it is the best so far.
        highest = torch.full((len(x),), torch.inf, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        return cls(index, x, target, start, start, highest, flat, start, flat, -highest, torch.zeros_like(index))

    def seen(self, value: Tensor, grad: Tensor) -> Self:
        """With the loss and the gradient at x_adv."""
        value = value.to(self.value.dtype)
        better = value > self.best
        return replace(
            self,
            value=value,
            grad=grad,
            best_x=torch.where(_wide(better, grad), self.x_adv, self.best_x),
            best_grad=torch.where(_wide(better, grad), grad, self.best_grad),
            best=torch.where(better, value, self.best),
            rises=self.rises + (value > self.value),
        )

    def returned(self, back: Tensor) -> Self:
        """Some, back (b,) bool, begin again at their best; all count their rises anew."""
        return replace(
            self,
            x_adv=torch.where(_wide(back, self.x), self.best_x, self.x_adv),
            grad=torch.where(_wide(back, self.x), self.best_grad, self.grad),
            value=torch.where(back, self.best, self.value),
            rises=torch.zeros_like(self.rises),
        )


@dataclass(frozen=True)
class Halving(_Rows):
    """The pace for linf and l2: step sizes from 2 eps on that halve where they are too large. reached: (b,) the highest
    loss at the last checkpoint. halved: (b,) bool, whether the step size was halved there.
    """

    step: Tensor
    reached: Tensor
    halved: Tensor

    @classmethod
    def from_start(cls, x: Tensor, start: Tensor, eps: float) -> Self:
        step = x.new_full((len(x),), 2 * eps)
        return cls(step, torch.full_like(step, -torch.inf), torch.zeros_like(step, dtype=torch.bool))

    @staticmethod
    def checkpoints(steps: int) -> dict[int, int]:
        """The checkpoints w_j = ceil(p_j steps), each with the number of steps since the one before."""
        windows, before, percent, gap = dict[int, int](), 0, 22, 22
        while percent < 100:
            now = -(-percent * steps // 100)
            if now > before:
                windows[now], before = now - before, now
            gap = max(gap - 3, 6)
            percent += gap
        return windows

    def checked(self, at: Path, enough: float, eps: float) -> tuple[Self, Tensor]:
        """Conditions 1 and 2: too few rises, or the same step size as at the last checkpoint and no new best."""
        halved = (at.rises < enough) | (~self.halved & (at.best <= self.reached))
        return type(self)(torch.where(halved, self.step / 2, self.step), at.best, halved), halved

    def moved(self, at: Path, threat: ThreatModel, momentum: bool) -> Tensor:
        step = _wide(self.step, at.x) * threat.ascent(at.grad, at.x_adv)
        ahead = threat.project(at.x_adv + step, at.x)
        if not momentum:
            return ahead
        return threat.project(at.x_adv + 0.75 * (ahead - at.x_adv) + 0.25 * (at.x_adv - at.before), at.x)


@dataclass(frozen=True)
class Thinning(_Rows):
    """The pace for l1: steps along the signs of the `count` (b,) largest entries of the gradient, ever fewer. spread:
    (b,) how many pixels the best iterate changes, at the last checkpoint.

    Differs from the official code: pixels that stand at the bound they are pushed to are passed over, which would use
    up the step, and counts are rounded down, so that two pixels can become one.
    """

    step: Tensor
    count: Tensor
    spread: Tensor

    @classmethod
    def from_start(cls, x: Tensor, start: Tensor, eps: float) -> Self:
        size = x.shape[1:].numel()
        spread = _changed(start, x, eps)
        spread = torch.where(spread == 0, size, spread)
        # A start that is sparse already, from a larger ball, goes on from there.
        return cls(x.new_full((len(x),), eps), _two_thirds(spread).clamp(max=max(-(-size // 5), 1)), spread)

    @staticmethod
    def checkpoints(steps: int) -> dict[int, int]:
        """Every 4 % of the steps."""
        gap = max(steps // 25, 1)
        return dict.fromkeys(range(gap, steps, gap), gap)

    def checked(self, at: Path, enough: float, eps: float) -> tuple[Self, Tensor]:
        """Long steps again wherever the best has become sparser, else shorter ones."""
        spread = _changed(at.best_x, at.x, eps)
        sparser = spread < 0.95 * self.spread
        step = torch.where(sparser, eps, (self.step / 1.5).clamp(min=eps / 10))
        return type(self)(step, _two_thirds(spread), spread), sparser

    def moved(self, at: Path, threat: ThreatModel, momentum: bool) -> Tensor:
        room = torch.where(at.grad > 0, threat.bounds[1] - at.x_adv, at.x_adv - threat.bounds[0])
        stuck = room <= TRACE * threat.eps
        free = at.grad.masked_fill(stuck, 0.0).flatten(1)
        size = free.abs()
        least = size.sort(1, descending=True).values.gather(1, self.count[:, None] - 1)
        signs = free.sign() * (size >= least)
        step = self.step[:, None] * signs / signs.abs().sum(1, keepdim=True).clamp(min=1)
        return threat.project(at.x_adv + step.view_as(at.x), at.x)


def _changed(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """How many pixels differ: (b,) int64."""
    return ((x_adv - x).abs() > TRACE * eps).flatten(1).sum(1)


def _two_thirds(spread: Tensor) -> Tensor:
    """Rounded down, and at least one."""
    return (2 * spread // 3).clamp(min=1)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """(b,) -> (b, 1, ..., 1), to be broadcast over the examples."""
    return values.view(-1, *[1] * (like.dim() - 1))
