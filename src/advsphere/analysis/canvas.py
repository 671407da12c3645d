"""The blank figure that every drawing begins with: quiet axes, units, the project's colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

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
