"""Gradient-norm ratios as a page shows them: several models in one small figure, by layer and over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from advsphere.analysis.canvas import canvas, legend, quiet
from advsphere.analysis.diagnosis import FORMAT
from advsphere.analysis.gradients import LayerGradients, recorded
from advsphere.analysis.palette import MARKERS, SERIES, SOFT
from advsphere.evaluation.records import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def diagnosed(path: Path, model: str) -> LayerGradients | None:
    """The gradients of a model, by its checksum, out of a diagnosis.json; None where it is not about that one. Raises
    UserError for a file that is missing or of another kind.
    """
    for network in read_json(path, FORMAT)["networks"]:
        if network["checksum"] == model:
            found = network["gradients"]["as judged"]
            return LayerGradients(**{key: tuple(found[key]) for key in LayerGradients.__dataclass_fields__})
    return None


def ratio_figure(gradients: Mapping[str, LayerGradients]) -> Figure:
    """By the models' names: adversarial over clean, layer by layer from the input to the head."""
    figure, (axes,) = canvas(3.6, 2.5)
    for i, (name, found) in enumerate(gradients.items()):
        _line(axes, range(1, len(found.ratio) + 1), found.ratio, i, name)
    _one(axes)
    quiet(axes, "layer, from the input to the head", "adversarial / clean")
    legend(axes)
    return figure


def ratio_history_figure(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """By the models' names: the median over the layers after each epoch of training, as the runs recorded it."""
    figure, (axes,) = canvas(3.6, 2.5)
    for i, (name, lines) in enumerate(metrics.items()):
        epochs, ratios = recorded(lines)
        known = [[v for v in values if v == v] for values in zip(*ratios.values(), strict=True)]
        _line(axes, epochs, [median(values) if values else float("nan") for values in known], i, name)
    _one(axes)
    quiet(axes, "epoch", "median of the layers")
    legend(axes)
    return figure


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], series: int, name: str) -> None:
    colour, marker = SERIES[series % len(SERIES)], MARKERS[series % len(MARKERS)]
    axes.plot(x, y, color=colour, marker=marker, markersize=3.6, linewidth=1.4, label=name, clip_on=False)


def _one(axes: Axes) -> None:
    """Where both speak equally loud."""
    axes.axhline(1, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
