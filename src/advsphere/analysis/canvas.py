"""The style of every figure: colours, plain axes, legends, and the marks that several figures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

INK = "#22262b"
SOFT = "#5b636e"
LINE = "#dcd9d2"
SERIES = ("#1b6ca8", "#b4511f", "#3d7a3d", "#7a4fa3", "#8a6d00", "#57606a")
"""The colour of each model, in order. Colour-blind readers can distinguish them, and each also has its own marker."""
MARKERS = ("o", "s", "^", "D", "v", "P")
NAMED = 24
"""A figure names its classes if there are at most this many."""

_LEGEND: dict[str, Any] = {"frameon": False, "labelcolor": INK, "fontsize": 8.5}
_DASHES = (0, (2, 3))


def style(number: int) -> tuple[str, str]:
    """The colour and the marker of a model, different for the first 36."""
    return SERIES[number % len(SERIES)], MARKERS[(number + number // len(SERIES)) % len(MARKERS)]


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any) -> tuple[Figure, list[Axes]]:
    """A figure of this size in inches with its axes, row by row. It is not registered with pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **grid).flat)


def quiet(axes: Axes, x: str, y: str, *, title: str = "", grid: str = "y") -> None:
    """Label the axes, remove their frame, and draw a grid along `grid` ("x", "y", or "" for none)."""
    axes.set_xlabel(x, color=SOFT, fontsize=9)
    axes.set_ylabel(y, color=SOFT, fontsize=9)
    if title:
        axes.set_title(title, color=INK, fontsize=10, loc="left", parse_math=False)
    axes.tick_params(colors=SOFT, length=0, labelsize=8.5)
    if grid:
        axes.grid(axis=grid, color=LINE, linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    no_frame(axes)


def no_frame(axes: Axes) -> None:
    for side in axes.spines.values():
        side.set_visible(False)


def reference(axes: Axes, *, x: float | None = None, y: float | None = None, colour: str = SOFT) -> None:
    """A thin dashed line at x or at y, above the grid and behind the data."""
    if x is not None:
        axes.axvline(x, color=colour, linewidth=0.8, linestyle=_DASHES, zorder=0.9)
    if y is not None:
        axes.axhline(y, color=colour, linewidth=0.8, linestyle=_DASHES, zorder=0.9)


def histogram(
    axes: Axes, values: Sequence[float], bins: Sequence[float], colour: str, label: str, *, filled: bool
) -> None:
    """The share of the values in each bin, in percent: filled for clean images, an outline for adversarial ones."""
    look: dict[str, Any] = {"alpha": 0.28, "linewidth": 0} if filled else {"histtype": "step", "linewidth": 1.5}
    weights = [100 / len(values)] * len(values)
    axes.hist(values, bins=list(bins), weights=weights, color=colour, label=label, **look)


def bins_of(values: Sequence[float], count: int = 30) -> list[float]:
    """The edges of `count` equal bins that contain all values."""
    low, high = min(values), max(values) + 1e-6
    return [low + (high - low) * i / count for i in range(count + 1)]


def interval_marks(
    axes: Axes,
    x: Sequence[float],
    shares: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    colour: str,
    marker: str,
    **look: Any,
) -> None:
    """Shares as marks in percent, each with its interval as a vertical line."""
    low = [100 * (share - low) for share, (low, _) in zip(shares, intervals, strict=True)]
    high = [100 * (high - share) for share, (_, high) in zip(shares, intervals, strict=True)]
    percent = [100 * share for share in shares]
    axes.errorbar(x, percent, yerr=[low, high], color=colour, marker=marker, linewidth=0, **look)


def joined_dots(
    axes: Axes, filled: Sequence[float], hollow: Sequence[float], rows: Sequence[float], colour: str, **look: Any
) -> None:
    """In each row a filled and a hollow mark, joined by a line."""
    axes.hlines(rows, hollow, filled, color=LINE, linewidth=1.0, zorder=1)
    axes.scatter(filled, rows, color=colour, zorder=3, **look)
    look = look | {"label": None}
    axes.scatter(hollow, rows, facecolors="none", edgecolors=colour, linewidths=1.0, zorder=3, **look)


def legend(axes: Axes, **where: Any) -> None:
    """A legend without a box. A $ in a name is not read as mathematics."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        _plain(axes.legend(handles, labels, **_LEGEND | {"loc": "best"} | where))


def outside_legend(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """The legend of these axes above the whole figure."""
    handles, labels = axes.get_legend_handles_labels()
    _plain(figure.legend(handles, labels, **_LEGEND | {"loc": "outside upper left", "ncols": columns}))


def _plain(made: Legend) -> None:
    for text in made.get_texts():
        text.set_parse_math(False)


def show_image(axes: Axes, image: Tensor, caption: str = "", *, bold: bool = False) -> None:
    """An image (C, H, W) in [0, 1] with one or three channels, pixel by pixel, and a caption below it."""
    pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    look: Mapping[str, Any] = {"cmap": "gray"} if pixels.shape[2] == 1 else {}
    axes.imshow(pixels.squeeze(2) if look else pixels, vmin=0, vmax=1, interpolation="nearest", **look)
    weight = "bold" if bold else "normal"
    axes.set_xlabel(caption, color=INK if bold else SOFT, fontsize=8, fontweight=weight, parse_math=False)
    axes.set(xticks=[], yticks=[])
    no_frame(axes)
