"""Gradient-norm ratios, layer by layer: the gradients of the weights on adversarial images relative to clean ones.

This is the paper's figure of gradient norms without the faults of its official script (AT_HE's main_free.py). There the
clean pass runs after the optimizer step, on images that were not normalised, and changes the running statistics of
batch norm. Here both passes use the same weights and the same input normalisation, and change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from advsphere.analysis.canvas import MARKERS, SOFT, canvas, legend, quiet, reference, style
from advsphere.analysis.crafting import craft
from advsphere.calling import in_mode, logits_of
from advsphere.classifier import find_head
from advsphere.data import Images
from advsphere.losses import Loss, cross_entropy
from advsphere.threat import ThreatModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RECORD = "gradient_ratio/"
"""The prefix of the recorded ratios' names, before the name of the layer."""

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_KINDS: dict[str, type | tuple[type, ...]] = {"conv": nn.modules.conv._ConvNd, "norm": _NORMS, "linear": nn.Linear}
_BY_LAYER = "layer, from the input to the head"


@dataclass(frozen=True, kw_only=True)
class LayerGradients:
    """Gradient norms of the layers in front of the head, in order, whose `kinds` are "conv", "norm" or "linear".

    `clean` has for each layer the norm of the gradient of a batch's mean loss with respect to its weight and bias,
    averaged over the batches of clean images; `adversarial` has the same on adversarial images.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    clean: tuple[float, ...]
    adversarial: tuple[float, ...]

    @property
    def ratio(self) -> tuple[float, ...]:
        """Adversarial over clean, for each layer; NaN for a layer without a gradient."""
        return tuple(a / c if c else float("nan") for a, c in zip(self.adversarial, self.clean, strict=True))

    @property
    def middle(self) -> float:
        """The median ratio of the layers that have one."""
        return _median(self.ratio)


def layer_gradients(
    model: nn.Module,
    images: Images,
    *,
    threat: ThreatModel,
    criterion: Loss = cross_entropy,
    head: str | None = None,
    seed: int = 0,
    batch_size: int = 128,
) -> LayerGradients:
    """Gradient norms on images and on their PGD examples, in eval mode. Nothing in the model changes.

    `criterion` is the loss to differentiate, e.g. an `AngularMargin`. `head` names the last linear layer if it can't be
    found automatically. The head and all layers after it are left out.
    """
    layers = _layers(model, find_head(model, head))
    crafted = craft(model, images, threat=threat, seed=seed, batch_size=batch_size)
    sums = torch.zeros(2, len(layers), dtype=torch.float64)
    batches = torch.arange(len(images)).split(batch_size)
    weights = [w for own, _ in layers.values() for w in own]
    with in_mode(model, train=False), torch.enable_grad():
        for index in batches:
            for row, x in zip(sums, (crafted.x, crafted.x_adv), strict=True):
                loss = criterion(logits_of(model(x[index])), crafted.y[index]).mean()
                gradients = iter(torch.autograd.grad(loss, weights, allow_unused=True))
                norms = [gradient_norm([next(gradients) for _ in own]) for own, _ in layers.values()]
                row += torch.stack([norm.cpu() for norm in norms])
    clean, adversarial = (tuple((row / len(batches)).tolist()) for row in sums)
    kinds = tuple(kind for _, kind in layers.values())
    return LayerGradients(layers=tuple(layers), kinds=kinds, clean=clean, adversarial=adversarial)


def gradient_norm(gradients: Sequence[Tensor | None]) -> Tensor:
    """The norm of several gradients taken together, float64; 0 if there is none."""
    parts = [g.double().square().sum() for g in gradients if g is not None]
    return torch.stack(parts).sum().sqrt() if parts else torch.zeros((), dtype=torch.float64)


def _layers(model: nn.Module, head: str) -> dict[str, tuple[list[Tensor], str]]:
    """The weight and bias and the kind of each layer that is defined before the head, by name."""
    found: dict[str, tuple[list[Tensor], str]] = {}
    for name, module in model.named_modules():
        if name == head:
            break
        weights: list[Tensor] = [p for p in module.parameters(recurse=False) if p.requires_grad]
        kind = next((kind for kind, types in _KINDS.items() if isinstance(module, types)), None)
        if weights and kind is not None:
            found[name] = (weights, kind)
    return found


def _median(ratios: Sequence[float]) -> float:
    """The median without NaN, which stands for layers without a gradient."""
    known = [ratio for ratio in ratios if ratio == ratio]
    return median(known) if known else float("nan")


def record_ratios(
    model: nn.Module, images: Images, criterion: Loss, *, threat: ThreatModel, head: str | None = None, n: int = 256
) -> dict[str, float]:
    """The ratio of each layer with a gradient, on n of the images, as metrics to log after an epoch of training."""
    found = layer_gradients(model, images.few(n), threat=threat, criterion=criterion, head=head)
    return {f"{RECORD}{layer}": ratio for layer, ratio in zip(found.layers, found.ratio, strict=True) if ratio == ratio}


def recorded_ratios(
    metrics: Sequence[Mapping[str, float]],
) -> tuple[tuple[float, ...], dict[str, tuple[float, ...]]]:
    """The epochs, and each layer's ratio after each epoch, from a run's metrics; ((), {}) if none were recorded."""
    known = [line for line in metrics if any(name.startswith(RECORD) for name in line)]
    names = [name for name in known[-1] if name.startswith(RECORD)] if known else []
    ratios = {name.removeprefix(RECORD): tuple(line.get(name, float("nan")) for line in known) for name in names}
    return tuple(line["epoch"] for line in known), ratios


def gradient_figure(
    found: Mapping[str, Mapping[str, LayerGradients]], metrics: Mapping[str, Sequence[Mapping[str, float]]]
) -> Figure:
    """A row for each network: ratios by layer, one line for each of its states (e.g. "best"), and ratios over training.

    `metrics` has the logged metrics of the networks' runs, by the same names. Without recorded ratios there is no
    second column.
    """
    histories = {name: recorded_ratios(metrics.get(name, ())) for name in found}
    columns = 2 if any(epochs for epochs, _ in histories.values()) else 1
    shape = {"width_ratios": (1.5, 1)} if columns == 2 else {}
    figure, axes = canvas(9.2, 3.0 * len(found), len(found), columns, sharey=True, **shape)
    for row, (name, states) in enumerate(found.items()):
        _states_by_layer(axes[row * columns], name, states, style(row)[0])
        if columns == 2:
            _layers_over_epochs(axes[row * columns + 1], *histories[name], style(row)[0])
    return figure


def _states_by_layer(axes: Axes, name: str, states: Mapping[str, LayerGradients], colour: str) -> None:
    """The last state in colour with a marker for each kind of layer, the others in grey."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    for i, (state, gradients) in enumerate(states.items()):
        last = i == len(states) - 1
        places = range(1, len(gradients.layers) + 1)
        look = (colour, 1.0, 1.6) if last else (SOFT, 0.35 + 0.4 * i / len(states), 1.1)
        axes.plot(places, gradients.ratio, color=look[0], alpha=look[1], linewidth=look[2], label=state)
        for marker, kind in zip(MARKERS, _KINDS, strict=False) if last else ():
            here = [p for p, k in zip(places, gradients.kinds, strict=True) if k == kind]
            if here:
                ratios = [gradients.ratio[p - 1] for p in here]
                axes.plot(here, ratios, color=colour, marker=marker, markersize=4.5, linewidth=0, label=kind)
    reference(axes, y=1)
    axes.set_yscale("log")
    # The ratios span less than a decade or two, so the ticks are 1, 1.5, 2 and not powers of ten.
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    quiet(axes, _BY_LAYER, "gradient-norm ratio,\nadversarial / clean", title=name)
    legend(axes, ncols=3, fontsize=8)


def _layers_over_epochs(
    axes: Axes, epochs: Sequence[float], ratios: Mapping[str, Sequence[float]], colour: str
) -> None:
    if not epochs:
        axes.set_axis_off()
        return
    for values in ratios.values():
        axes.plot(epochs, values, color=SOFT, alpha=0.3, linewidth=0.8)
    middle = [_median(values) for values in zip(*ratios.values(), strict=True)]
    look = {"color": colour, "linewidth": 2.0, "marker": "o", "markersize": 3.6}
    axes.plot(epochs, middle, label="median of the layers", **look)  # type: ignore[arg-type]
    reference(axes, y=1)
    quiet(axes, "epoch", "")
    legend(axes)


def ratio_figure(gradients: Mapping[str, LayerGradients]) -> Figure:
    """The ratio adversarial / clean of each layer from the input to the head, by the models' names."""
    lines = {name: (range(1, len(found.ratio) + 1), found.ratio) for name, found in gradients.items()}
    return _ratio_lines(lines, _BY_LAYER, "adversarial / clean")


def ratio_history_figure(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """The recorded median ratio of the layers after each epoch of training, by the models' names."""
    lines = {}
    for name, logged in metrics.items():
        epochs, ratios = recorded_ratios(logged)
        lines[name] = epochs, [_median(values) for values in zip(*ratios.values(), strict=True)]
    return _ratio_lines(lines, "epoch", "median of the layers")


def _ratio_lines(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> Figure:
    figure, (axes,) = canvas(3.6, 2.5)
    for i, (name, (at, ratios)) in enumerate(lines.items()):
        colour, marker = style(i)
        axes.plot(at, ratios, color=colour, marker=marker, markersize=3.6, linewidth=1.4, label=name, clip_on=False)
    reference(axes, y=1)
    quiet(axes, x, y)
    legend(axes)
    return figure
