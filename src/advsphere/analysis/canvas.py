"""The blank figure that every drawing begins with: quiet axes, units, the project's colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from advsphere.corruption import SEVERITIES
from advsphere.corruption.result import CorruptionRecord

# FOLDED palette: The colours of all figures, kept apart so that a page can put its own in their place.

INK = "#22262b"
SOFT = "#5b636e"
LINE = "#dcd9d2"
SERIES = ("#1b6ca8", "#b4511f", "#3d7a3d", "#7a4fa3", "#8a6d00", "#57606a")
"""One for each model, in order; told apart also by colour-blind eyes, and never without a marker of its own."""
MARKERS = ("o", "s", "^", "D", "v", "P")


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

_LEGEND: dict[str, Any] = {"frameon": False, "labelcolor": INK, "fontsize": 8.5}


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any) -> tuple[Figure, list[Axes]]:
    """A figure of that size in inches with its axes, row by row. It belongs to the caller, not to pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **grid).flat)


def quiet(axes: Axes, x: str, y: str, *, title: str = "", grid: str = "y") -> None:
    """Name the axes, with their units; no frame, and a grid along `grid` ("x", "y", or "" for none)."""
    axes.set_xlabel(x, color=SOFT, fontsize=9)
    axes.set_ylabel(y, color=SOFT, fontsize=9)
    if title:
        axes.set_title(title, color=INK, fontsize=10, loc="left", parse_math=False)
    axes.tick_params(colors=SOFT, length=0, labelsize=8.5)
    if grid:
        axes.grid(axis=grid, color=LINE, linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def legend(axes: Axes, **where: Any) -> None:
    """A legend without a box, whose names stay names, also with a $ in them."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        _plain(axes.legend(handles, labels, **_LEGEND | {"loc": "best"} | where))


def outside_legend(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """The same above the whole figure, for the names in these axes."""
    handles, labels = axes.get_legend_handles_labels()
    _plain(figure.legend(handles, labels, **_LEGEND | {"loc": "outside upper left", "ncols": columns}))


def _plain(made: Legend) -> None:
    for text in made.get_texts():
        text.set_parse_math(False)


def show_image(axes: Axes, image: Tensor, caption: str = "", *, bold: bool = False) -> None:
    """An image (C, H, W) in [0, 1], with one or three channels, its pixels as they are, and a line below it."""
    pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    grey = pixels.shape[2] == 1
    axes.imshow(
        pixels[..., 0] if grey else pixels, cmap="gray" if grey else None, vmin=0, vmax=1, interpolation="nearest"
    )
    weight = "bold" if bold else "normal"
    axes.set_xlabel(caption, color=INK if bold else SOFT, fontsize=8, fontweight=weight, parse_math=False)
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)


# FOLDED heatmap: A model's accuracy under corruption at a glance: a row for each corruption, a column for each
# FOLDED heatmap: severity.

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
