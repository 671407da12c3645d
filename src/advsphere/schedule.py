"""Schedules: how a learning rate, a scale or a margin moves over a run. Each maps progress in [0, 1] to a factor of the
base value.

Progress is a fraction of the run, so that a schedule keeps its shape when `--epochs` changes; recipes write epochs as
fractions (74 / 77).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from advsphere.errors import UserError


@dataclass(frozen=True)
class Constant:
    """The base value throughout."""

    def __call__(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Linear:
    """Straight lines through (progress, factor) points; flat before the first and after the last.

    ((0, 0), (0.5, 1), (1, 0)) is the "cyclic" schedule of fast_adversarial; ((0, 0), (1, 1)) a ramp.
    Raises UserError where the points are not in rising order of progress.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        at = [p for p, _ in self.points]
        if not at or sorted(set(at)) != at:
            raise UserError(f"a Linear schedule needs points in rising order of progress, got {self.points}")

    def __call__(self, progress: float) -> float:
        i = bisect_right([p for p, _ in self.points], progress)
        if i in (0, len(self.points)):
            return self.points[min(i, len(self.points) - 1)][1]
        (p0, f0), (p1, f1) = self.points[i - 1 : i + 1]
        return f0 + (f1 - f0) * (progress - p0) / (p1 - p0)


@dataclass(frozen=True)
class Steps:
    """The factor `gamma` once more at each fraction in `at`: the usual x0.1 decays."""

    at: tuple[float, ...]
    gamma: float = 0.1

    def __call__(self, progress: float) -> float:
        # A step falls on the first batch of an epoch, whose progress is a quotient of integers: leave room for its
        # rounding.
        return self.gamma ** sum(progress >= at - 1e-9 for at in self.at)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` to `end`."""

    start: float = 1.0
    end: float = 0.0

    def __call__(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2


Schedule = Constant | Linear | Steps | Cosine
