"""A model's accuracy under corruption at a glance: a row for each corruption, a column for each severity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advsphere.analysis.palette import INK, SOFT
from advsphere.data.corruptions import SEVERITIES
from advsphere.evaluation.corruption_record import CorruptionRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def corruption_figure(record: CorruptionRecord, title: str = "") -> Figure:
    """Accuracy in %, written into each field and shown by its darkness, from 0 to the clean accuracy; the last column
    is the mean over severities. Raises UserError for a record that is not complete.
    """
    from matplotlib.figure import Figure

    rows = [[100 * record.cell(name, s).accuracy for s in SEVERITIES] for name in record.names]
    rows = [[*row, sum(row) / len(row)] for row in rows]
    clean = 100 * record.clean.accuracy
    figure = Figure(figsize=(4.8, 1.2 + 0.28 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(rows, cmap="Blues", vmin=0, vmax=max(clean, 1e-9), aspect="auto")
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            colour = "white" if value > 0.6 * clean else INK
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
    axes.axvline(len(SEVERITIES) - 0.5, color="white", linewidth=3)
    axes.set_xticks(range(len(SEVERITIES) + 1), [*map(str, SEVERITIES), "mean"])
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in record.names])
    axes.tick_params(colors=SOFT, length=0, labelsize=9)
    for side in axes.spines.values():
        side.set_visible(False)
    head = f"{title}: " if title else ""
    text = axes.set_title(f"{head}accuracy in %, clean {clean:.1f}", loc="left", color=INK, fontsize=9)
    text.set_parse_math(False)  # a name is a name, also with a $ in it
    axes.set_xlabel("severity", color=SOFT, fontsize=9)
    return figure
