"""Gradients of the weights, layer by layer: how much louder adversarial images speak than clean ones.

The paper's figure of gradient-norm ratios, with the faults of its official script mended (AT_HE's main_free.py): there
the clean pass takes images that were not normalised, after the step, and moves the running statistics of batch norm.
Here both passes see the same weights and the same input normalisation, and nothing moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from advsphere.analysis.canvas import MARKERS, SERIES, SOFT, canvas, legend, quiet
from advsphere.analysis.hard_examples import STEPS, craft
from advsphere.classifier import find_head, logits_of
from advsphere.data import Images
from advsphere.losses import Loss, cross_entropy
from advsphere.threat import ThreatModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RECORD = "gradient_ratio/"
"""What the names of recorded ratios begin with, before the layer's."""

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_KINDS: dict[str, type | tuple[type, ...]] = {"conv": nn.modules.conv._ConvNd, "norm": _NORMS, "linear": nn.Linear}


@dataclass(frozen=True, kw_only=True)
class LayerGradients:
    """For each layer in front of the head, in order: its name, its kind ("conv", "norm" or "linear"), and the norm of
    the gradient of the mean loss over a batch with respect to its weight and bias, averaged over the batches; on clean
    images and on adversarial ones.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    clean: tuple[float, ...]
    adversarial: tuple[float, ...]

    @property
    def ratio(self) -> tuple[float, ...]:
        """Adversarial over clean; NaN for a layer that got no gradient."""
        return tuple(a / c if c else float("nan") for a, c in zip(self.adversarial, self.clean, strict=True))

    @property
    def middle(self) -> float:
        """The median ratio of the layers that have one."""
        return _middle(self.ratio)


def layer_gradients(
    model: nn.Module,
    images: Images,
    *,
    threat: ThreatModel,
    criterion: Loss = cross_entropy,
    head: str | None = None,
    steps: int = STEPS,
    seed: int = 0,
    batch_size: int = 128,
) -> LayerGradients:
    """Gradient norms on these images and on their PGD examples, crafted on the model as it is.

    criterion: what is minimised, e.g. an `AngularMargin`. head: left out, with all that comes after it. In eval mode:
    batch norm uses its running statistics and moves nothing, dropout is off. Gradients that the model holds stay.
    """
    layers = _layers(model, find_head(model, head))
    crafted = craft(model, images, threat=threat, steps=steps, seed=seed, batch_size=batch_size)
    modes = [(module, module.training) for module in model.modules()]
    sums = torch.zeros(2, len(layers), dtype=torch.float64)
    batches = list(torch.arange(len(images)).split(batch_size))
    try:
        model.eval()
        for index in batches:
            for row, x in zip(sums, (crafted.x, crafted.x_adv), strict=True):
                row += _norms(model, layers, x[index], crafted.y[index], criterion)
    finally:
        for module, training in modes:
            module.training = training
    clean, adversarial = (tuple((row / len(batches)).tolist()) for row in sums)
    kinds = tuple(kind for _, kind in layers.values())
    return LayerGradients(layers=tuple(layers), kinds=kinds, clean=clean, adversarial=adversarial)


def record(
    model: nn.Module, images: Images, criterion: Loss, *, threat: ThreatModel, head: str | None = None, n: int = 256
) -> dict[str, float]:
    """The ratio of each layer that has one, on n of the images, as metrics to log after an epoch of training."""
    found = layer_gradients(model, images.few(n), threat=threat, criterion=criterion, head=head)
    return {f"{RECORD}{layer}": ratio for layer, ratio in zip(found.layers, found.ratio, strict=True) if ratio == ratio}


def recorded(metrics: Sequence[Mapping[str, float]]) -> tuple[tuple[float, ...], dict[str, tuple[float, ...]]]:
    """(epochs, {layer: its ratio after each}) out of a run's metrics; ((), {}) where none were recorded."""
    known = [line for line in metrics if any(name.startswith(RECORD) for name in line)]
    names = [name for name in known[-1] if name.startswith(RECORD)] if known else []
    ratios = {name.removeprefix(RECORD): tuple(line.get(name, float("nan")) for line in known) for name in names}
    return tuple(line["epoch"] for line in known), ratios


def gradient_figure(
    found: Mapping[str, Mapping[str, LayerGradients]], metrics: Mapping[str, Sequence[Mapping[str, float]]]
) -> Figure:
    """Ratios layer by layer for each network (rows of panels) and each of its states (lines); beside them the ratios
    over the epochs of training, where they were recorded.

    found: {network: {state, e.g. "best": ...}}. metrics: {network: what its run logged}.
    """
    histories = {name: recorded(metrics.get(name, ())) for name in found}
    columns = 2 if any(epochs for epochs, _ in histories.values()) else 1
    shape = {"width_ratios": (1.5, 1)} if columns == 2 else {}
    figure, axes = canvas(9.2, 3.0 * len(found), len(found), columns, sharey=True, **shape)
    for row, (name, states) in enumerate(found.items()):
        _by_layer(axes[row * columns], name, states, row)
        if columns == 2:
            _over_epochs(axes[row * columns + 1], *histories[name], row)
    return figure


def _by_layer(axes: Axes, name: str, states: Mapping[str, LayerGradients], series: int) -> None:
    colour = SERIES[series % len(SERIES)]
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
    axes.axhline(1, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set_yscale("log")
    _plain_ticks(axes)
    quiet(axes, "layer, from the input to the head", "gradient norm,\nadversarial / clean", title=name)
    legend(axes, ncols=3, fontsize=8)


def _over_epochs(axes: Axes, epochs: Sequence[float], ratios: Mapping[str, Sequence[float]], series: int) -> None:
    if not epochs:
        axes.set_axis_off()
        return
    for values in ratios.values():
        axes.plot(epochs, values, color=SOFT, alpha=0.3, linewidth=0.8)
    middle = [_middle(values) for values in zip(*ratios.values(), strict=True)]
    axes.plot(epochs, middle, color=SERIES[series % len(SERIES)], linewidth=2.0, marker="o", markersize=3.6,
              label="median of the layers")  # fmt: skip
    axes.axhline(1, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
    quiet(axes, "epoch", "")
    legend(axes)


def _middle(ratios: Sequence[float]) -> float:
    """Their median, without those of layers that got no gradient (NaN)."""
    known = [ratio for ratio in ratios if ratio == ratio]
    return median(known) if known else float("nan")


def _plain_ticks(axes: Axes) -> None:
    """1, 1.5, 2 and not powers of ten: the ratios span less than a decade or two."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _layers(model: nn.Module, head: str) -> dict[str, tuple[list[Tensor], str]]:
    """{name: (its own weight and bias, its kind)} of all layers that are defined before the head."""
    found: dict[str, tuple[list[Tensor], str]] = {}
    for name, module in model.named_modules():
        if name == head:
            break
        weights: list[Tensor] = [p for p in module.parameters(recurse=False) if p.requires_grad]
        for kind, types in _KINDS.items():
            if weights and isinstance(module, types):
                found[name] = (weights, kind)
                break
    return found


def _norms(
    model: nn.Module, layers: Mapping[str, tuple[list[Tensor], str]], x: Tensor, y: Tensor, criterion: Loss
) -> Tensor:
    """(L,) float64: the norm of each layer's gradient of the mean loss."""
    weights = [w for own, _ in layers.values() for w in own]
    with torch.enable_grad():
        loss = criterion(logits_of(model(x)), y).mean()
        gradients = iter(torch.autograd.grad(loss, weights, allow_unused=True))
    norms = []
    for own, _ in layers.values():
        parts = [g.double().square().sum() for g in (next(gradients) for _ in own) if g is not None]
        norms.append(torch.stack(parts).sum().sqrt() if parts else torch.zeros((), dtype=torch.float64))
    return torch.stack([norm.cpu() for norm in norms])
