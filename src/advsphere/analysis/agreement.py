"""The examples that each pair of attacks fools, together and alone, to show what an attack adds to the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from advsphere.analysis.canvas import INK, LINE, SERIES, SOFT, canvas, no_frame
from advsphere.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The examples that each attack fooled, out of the `right` ones that are classified correctly.

    `left_out` names the attacks that skipped examples fooled by others. They can't be compared.
    """

    names: tuple[str, ...]
    fooled: tuple[frozenset[int], ...]
    right: int
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, evaluation: Evaluation) -> Self:
        """From the rows of an evaluation."""
        right = evaluation.clean.right.nonzero()[0].tolist()
        whole = [row for row in evaluation.attacks if not row.settings.get("after")]
        return cls(
            names=tuple(row.name for row in whole),
            fooled=tuple(frozenset(i for i in right if row.outcomes[i] == "0") for row in whole),
            right=len(right),
            left_out=tuple(row.name for row in evaluation.attacks if row not in whole),
        )

    def both(self, i: int, j: int) -> int:
        return len(self.fooled[i] & self.fooled[j])

    def only(self, i: int, j: int) -> int:
        return len(self.fooled[i] - self.fooled[j])

    def alone(self, i: int) -> int:
        """The number of examples that only attack i fools."""
        others = (found for j, found in enumerate(self.fooled) if j != i)
        return len(self.fooled[i].difference(*others))


def agreement_figure(agreement: Agreement) -> Figure:
    """A heat map: images fooled by the row's attack and not by the column's (in the last column, by no other)."""
    from matplotlib.patches import Rectangle

    count = len(agreement.names)
    figure, (axes,) = canvas(max(3.6, 1.5 + 0.25 * count), 0.75 + 0.25 * count)
    missed = [[agreement.only(i, j) for j in range(count)] + [agreement.alone(i)] for i in range(count)]
    most = max(1, *(value for row in missed for value in row))  # the diagonal is 0
    for i, row in enumerate(missed):
        for j, value in enumerate(row):
            x, diagonal = j + 0.35 * (j == count), i == j
            square = Rectangle((x - 0.47, i - 0.46), 0.94, 0.92)
            if diagonal:
                square.set(facecolor="none", edgecolor=LINE, linewidth=1.0)
            else:
                square.set(facecolor=SERIES[0], edgecolor="none", alpha=0.06 + 0.44 * value / most)
            axes.add_patch(square)
            text, colour = (len(agreement.fooled[i]), SOFT) if diagonal else (value, INK)
            axes.text(x, i, f"{text}", color=colour, fontsize=8, ha="center", va="center_baseline")
    axes.set(xlim=(-0.52, count + 0.87), ylim=(count - 0.48, -0.52), yticks=range(count))
    axes.set_xticks([*range(count), count + 0.35], [*(f"{j + 1}" for j in range(count)), "no\nother"])
    axes.set_yticklabels([f"{name} \u2009{i + 1}" for i, name in enumerate(agreement.names)], parse_math=False)
    axes.tick_params(colors=INK, length=0, labelsize=8.5, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xlabel("fooled by the row's attack, but not by number", color=SOFT, fontsize=8.5)
    axes.xaxis.set_label_position("top")
    no_frame(axes)
    return figure
