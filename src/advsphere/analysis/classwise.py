"""Robust accuracy of each class, because an average over all classes hides the weakest ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from advsphere.analysis.canvas import NAMED, canvas, joined_dots, outside_legend, quiet, style
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation
from advsphere.stats import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """The number of a class's n images that are classified as labelled, clean and in the worst case."""

    name: str
    n: int
    clean: int
    worst: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the worst-case accuracy."""
        return wilson(self.worst, self.n)

    @property
    def clean_interval(self) -> tuple[float, float]:
        return wilson(self.clean, self.n)


def by_class(evaluation: Evaluation, labels: Sequence[int], classes: Sequence[str]) -> tuple[ClassAccuracy, ...]:
    """The accuracy of each class that has images, in the order of the classes.

    `labels` are those of the evaluated images, in order. Raises UserError if their number differs.
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
    """The names of at most `most` classes, lowest worst-case accuracy over all models first."""
    total: dict[str, float] = {}
    for classes in models.values():
        for one in classes:
            total[one.name] = total.get(one.name, 0.0) + one.worst / one.n
    return sorted(total, key=lambda name: total[name])[:most]


def class_figure(models: Mapping[str, Sequence[ClassAccuracy]]) -> Figure:
    """A row for each class, the weakest on top: worst-case accuracy with its interval as a filled mark, clean accuracy
    as a hollow one.
    """
    shown = weakest(models)
    figure, (axes,) = canvas(4.6, 0.9 + (0.19 + 0.1 * len(models)) * len(shown))
    for i, (name, classes) in enumerate(models.items()):
        known, (colour, marker) = {one.name: one for one in classes}, style(i)
        ordered = [known[one] for one in shown]
        rows = [row + 0.26 * (i - (len(models) - 1) / 2) for row in range(len(shown))]
        low, high = ([100 * end for end in ends] for ends in zip(*(one.interval for one in ordered), strict=True))
        axes.hlines(rows, low, high, color=colour, alpha=0.45, linewidth=2.4, zorder=2)
        worst, clean = ([100 * k / one.n for k, one in zip(ks, ordered, strict=True)]
                        for ks in ([one.worst for one in ordered], [one.clean for one in ordered]))  # fmt: skip
        joined_dots(axes, worst, clean, rows, colour, s=19, marker=marker, label=name)
    axes.set_yticks(range(len(shown)), shown, parse_math=False)
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlim=(-1, 101), xticks=range(0, 101, 20))
    quiet(axes, "accuracy, %   (filled: worst case, hollow: clean)", "", grid="x")
    outside_legend(figure, axes, columns=max(1, 62 // (7 + max(map(len, models)))))  # about 62 letters fit in a line
    return figure
