"""Robustness class by class: an average over all hides the classes that give way first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from advsphere.analysis.canvas import LINE, MARKERS, SERIES, canvas, outside_legend, quiet
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation
from advsphere.stats import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 24
"""Up to so many classes are drawn."""


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """Of the n images of a class: how many are classified as labelled, clean and in the worst case."""

    name: str
    n: int
    clean: int
    worst: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the worst case's share."""
        return wilson(self.worst, self.n)

    @property
    def clean_interval(self) -> tuple[float, float]:
        return wilson(self.clean, self.n)


def by_class(evaluation: Evaluation, labels: Sequence[int], classes: Sequence[str]) -> tuple[ClassAccuracy, ...]:
    """One for each class that has images, in the order of the classes. labels: of the images that were evaluated, in
    order. Raises UserError where there are not as many.
    """
    if len(labels) != evaluation.clean.n:
        raise UserError(f"{len(labels)} labels are given for an evaluation of {evaluation.clean.n} images")
    found = []
    for number, name in enumerate(classes):
        own = [i for i, label in enumerate(labels) if label == number]
        if own:
            clean, worst = (sum(row.outcomes[i] == "1" for i in own) for row in (evaluation.clean, evaluation.worst))
            found.append(ClassAccuracy(name=name, n=len(own), clean=clean, worst=worst))
    return tuple(found)


def weakest(models: Mapping[str, Sequence[ClassAccuracy]], most: int = NAMED) -> list[str]:
    """The classes of which the models together keep the least in the worst case, the least first; `most` of them."""
    first = next(iter(models.values()))
    total = {one.name: 0.0 for one in first}
    for classes in models.values():
        for one in classes:
            total[one.name] += one.worst / one.n
    return sorted(total, key=lambda name: total[name])[:most]


def class_figure(models: Mapping[str, Sequence[ClassAccuracy]]) -> Figure:
    """By the models' names, a row for each class, the weakest on top: worst-case accuracy with its interval as a filled
    mark, clean accuracy as a hollow one.
    """
    shown = weakest(models)
    figure, (axes,) = canvas(4.6, 0.9 + (0.19 + 0.1 * len(models)) * len(shown))
    for i, (name, classes) in enumerate(models.items()):
        known = {one.name: one for one in classes}
        places = [row + 0.26 * (i - (len(models) - 1) / 2) for row in range(len(shown))]
        _marks(axes, [known[one] for one in shown], places, i, name)
    axes.set_yticks(range(len(shown)), shown, parse_math=False)
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlim=(-1, 101), xticks=range(0, 101, 20))
    quiet(axes, "accuracy, %   (filled: worst case, hollow: clean)", "", grid="x")
    outside_legend(figure, axes, columns=max(1, 62 // (7 + max(map(len, models)))))  # of about so many letters a line
    return figure


def _marks(axes: Axes, classes: Sequence[ClassAccuracy], places: Sequence[float], series: int, name: str) -> None:
    colour, marker = SERIES[series % len(SERIES)], MARKERS[series % len(MARKERS)]
    worst, clean = (
        [100 * part / one.n for one in classes for part in [getattr(one, key)]] for key in ("worst", "clean")
    )
    low, high = zip(*((100 * a, 100 * b) for a, b in (one.interval for one in classes)), strict=True)
    axes.hlines(places, worst, clean, color=LINE, linewidth=0.9, zorder=1)
    axes.hlines(places, low, high, color=colour, alpha=0.45, linewidth=2.4, zorder=2)
    axes.scatter(worst, places, s=20, color=colour, marker=marker, label=name, zorder=3)
    axes.scatter(clean, places, s=18, facecolors="none", edgecolors=colour, marker=marker, linewidths=1.0, zorder=3)
