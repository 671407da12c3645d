"""Schedules of a learning rate, a scale or a margin: progress in [0, 1] -> a factor of the base value.

Progress is a fraction of the run, so that a schedule keeps its shape when `--epochs` changes. Recipes write epochs as
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
    """Straight lines between points, constant before the first and after the last.

    ((0, 0), (0.5, 1), (1, 0)) is the "cyclic" schedule of fast_adversarial, ((0, 0), (1, 1)) is a ramp.

    Attributes:
        points: Pairs (progress, factor).

    Raises:
        UserError: If the points are not in rising order of progress.
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
    """Multiply by a factor at given points of the run, the usual step decay.

    Attributes:
        at: These points, as progress in [0, 1].
        gamma: The factor.
    """

    at: tuple[float, ...]
    gamma: float = 0.1

    def __call__(self, progress: float) -> float:
        # Allow for rounding: progress is a quotient of integers.
        return self.gamma ** sum(progress >= at - 1e-9 for at in self.at)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine wave.

    Attributes:
        start: Factor at the beginning.
        end: Factor at the end.
    """

    start: float = 1.0
    end: float = 0.0

    def __call__(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2


Schedule = Constant | Linear | Steps | Cosine
