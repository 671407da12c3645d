"""Which examples each pair of attacks fools, in common and alone: what an attack adds to the others, and what not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from advsphere.analysis.canvas import INK, LINE, SERIES, SOFT, canvas
from advsphere.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What each attack fooled out of the examples that are classified as labelled.

    names: of the attacks. fooled: for each the numbers of the examples. right: how many examples there were to fool.
    left_out: attacks that tried only what others had left, which can't be compared with them.
    """

    names: tuple[str, ...]
    fooled: tuple[frozenset[int], ...]
    right: int
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, evaluation: Evaluation) -> Self:
        """From the rows of an evaluation."""
        right = [i for i, mark in enumerate(evaluation.clean.outcomes) if mark == "1"]
        whole = [row for row in evaluation.attacks if not row.settings.get("after")]
        return cls(
            names=tuple(row.name for row in whole),
            fooled=tuple(frozenset(i for i in right if row.outcomes[i] == "0") for row in whole),
            right=len(right),
            left_out=tuple(row.name for row in evaluation.attacks if row not in whole),
        )

    def both(self, i: int, j: int) -> int:
        """How many examples attacks number i and j both fool."""
        return len(self.fooled[i] & self.fooled[j])

    def only(self, i: int, j: int) -> int:
        """How many examples attack number i fools and number j does not."""
        return len(self.fooled[i] - self.fooled[j])

    def alone(self, i: int) -> int:
        """How many examples attack number i fools and no other does."""
        others = (found for j, found in enumerate(self.fooled) if j != i)
        return len(self.fooled[i].difference(*others))


def agreement_figure(agreement: Agreement) -> Figure:
    """A heat map with numbers: the images that the row's attack fools and the column's does not; on the diagonal all
    that it fools, and on the right those that it alone does.
    """
    count = len(agreement.names)
    figure, (axes,) = canvas(max(3.6, 1.5 + 0.25 * count), 0.75 + 0.25 * count)
    missed = [[agreement.only(i, j) for j in range(count)] + [agreement.alone(i)] for i in range(count)]
    most = max([1, *(value for i, row in enumerate(missed) for j, value in enumerate(row) if i != j)])
    for i, row in enumerate(missed):
        for j, value in enumerate(row):
            place = j + 0.35 * (j == count)
            if i == j:
                _cell(axes, place, i, len(agreement.fooled[i]), None)
            else:
                _cell(axes, place, i, value, value / most)
    axes.set(xlim=(-0.52, count + 0.87), ylim=(count - 0.48, -0.52), yticks=range(count))
    axes.set_xticks([*range(count), count + 0.35], [*(f"{j + 1}" for j in range(count)), "no\nother"])
    axes.set_yticklabels([f"{name} \u2009{i + 1}" for i, name in enumerate(agreement.names)], parse_math=False)
    axes.tick_params(colors=INK, length=0, labelsize=8.5, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xlabel("... but not number", color=SOFT, fontsize=8.5)
    axes.xaxis.set_label_position("top")
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _cell(axes: Axes, x: float, y: float, value: int, tint: float | None) -> None:
    """A square with its number; tint: in [0, 1], None for one that is outlined and not tinted."""
    from matplotlib.patches import Rectangle

    square = Rectangle((x - 0.47, y - 0.46), 0.94, 0.92)
    if tint is None:
        square.set(facecolor="none", edgecolor=LINE, linewidth=1.0)
    else:
        square.set(facecolor=SERIES[0], edgecolor="none", alpha=0.06 + 0.44 * tint)
    axes.add_patch(square)
    style = {"fontsize": 8, "ha": "center", "va": "center_baseline"}
    axes.text(x, y, f"{value}", color=SOFT if tint is None else INK, **style)  # type: ignore[arg-type]
