"""Accuracy as attacks get stronger, one after the other: what curves against eps and against steps have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from advsphere.analysis.palette import MARKERS, SERIES
from advsphere.evaluation import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class Falling:
    """at: how strong the attacks were, rising; the first is 0, the clean images. broken: for each example the position
    in `at` of the first attack that fooled, as `first_to_break` has it. of: how many examples these are drawn from.
    """

    at: tuple[float, ...]
    broken: tuple[int, ...]
    of: int
    seed: int

    @property
    def n(self) -> int:
        return len(self.broken)

    @property
    def robust(self) -> tuple[int, ...]:
        """How many examples are left at each strength; never rising."""
        return tuple(sum(b > i for b in self.broken) for i in range(len(self.at)))

    @property
    def accuracy(self) -> tuple[float, ...]:
        return tuple(k / self.n for k in self.robust)

    @property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """A 95 % Wilson interval at each strength, for the sample alone."""
        return tuple(wilson(k, self.n) for k in self.robust)


def falling_line(axes: Axes, found: Falling, number: int, name: str, *, first: int = 0) -> tuple[str, str]:
    """Draw it in percent, with its 95 % band, from position `first` on; returns the colour and the marker."""
    colour, marker = SERIES[number % len(SERIES)], MARKERS[(number + number // len(SERIES)) % len(MARKERS)]
    at, percent = found.at[first:], [100 * a for a in found.accuracy[first:]]
    low, high = ([100 * v for v in ends] for ends in zip(*found.intervals[first:], strict=True))
    axes.fill_between(at, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(at, percent, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name, clip_on=False)
    return colour, marker
