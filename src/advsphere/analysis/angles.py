"""Angles on the sphere: how far the features of an image point from its class, and how much farther from the others.

Neither the norm of the features nor the scale nor a bias enters an angle, so networks with and without a sphere can be
measured alike. A network with a bias, or with class weights of unlike norms, need not decide by angles alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advsphere.analysis.anatomy import Anatomy
from advsphere.analysis.canvas import canvas, legend, outside_legend, quiet
from advsphere.analysis.palette import LINE, SERIES, SOFT
from advsphere.classifier import frozen

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 24
"""Up to so many classes are named in a figure."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Angles:
    """What a network makes of N images, on the CPU.

    labels, predictions: (N,) int64. angles: (N, K), in degrees, between the features and each class's direction. norms:
    (N,) ||z||. radius: the mean norm on clean images, to compare with.
    """

    classes: tuple[str, ...]
    labels: Tensor
    predictions: Tensor
    angles: Tensor
    norms: Tensor
    radius: float

    @property
    def own(self) -> Tensor:
        """(N,) degrees between the features and the direction of the label's class."""
        return self.angles.gather(1, self.labels[:, None]).squeeze(1)

    @property
    def margin(self) -> Tensor:
        """(N,) degrees by which the nearest other class is farther than the label's; below 0 where it is nearer."""
        others = self.angles.scatter(1, self.labels[:, None], float("inf"))
        return others.amin(1) - self.own

    def by_class(self, values: Tensor) -> Tensor:
        """(N,) -> (K,), the mean over the images of each class; NaN for a class without images."""
        sums = torch.zeros(len(self.classes), dtype=torch.float64)
        sums = sums.index_add(0, self.labels, values.double())
        return sums / torch.bincount(self.labels, minlength=len(self.classes))


def measure(anatomy: Anatomy, x: Tensor, y: Tensor, classes: Sequence[str], *, batch_size: int = 250) -> Angles:
    """The angles of these images, clean or adversarial; x: (N, C, H, W), y: (N,)."""
    cosines, norms, predictions = [], [], []
    with frozen(anatomy.model), torch.no_grad():
        for part in x.split(batch_size):
            z = anatomy.features(part).float()
            cosines.append(anatomy.cosines(z))
            norms.append(z.norm(dim=1))
            predictions.append(anatomy.logits(z, fn=anatomy.normalized).argmax(1))
    return Angles(
        classes=tuple(classes),
        labels=y.cpu(),
        predictions=torch.cat(predictions).cpu(),
        angles=torch.cat(cosines).double().clamp(-1, 1).acos().rad2deg().cpu(),
        norms=torch.cat(norms).cpu(),
        radius=anatomy.radius,
    )


def directions(anatomy: Anatomy) -> Tensor:
    """(K, K), in degrees: the angles between the classes' directions, 0 on the diagonal."""
    unit = torch.nn.functional.normalize(anatomy.weight.double(), dim=1)
    return (unit @ unit.T).clamp(-1, 1).acos().rad2deg().fill_diagonal_(0).cpu()


def margin_figure(clean: Mapping[str, Angles], adversarial: Mapping[str, Angles]) -> Figure:
    """By the networks' names: how the angular margins are distributed, and their mean for each class."""
    figure, (left, right) = canvas(9.2, _height(next(iter(clean.values()))), columns=2, width_ratios=(1, 1.15))
    every = torch.cat([a.margin for a in (*clean.values(), *adversarial.values())])
    bins = torch.linspace(float(every.min()), float(every.max()) + 1e-6, 31).tolist()
    for i, name in enumerate(clean):
        colour = SERIES[i % len(SERIES)]
        _histogram(left, clean[name].margin, bins, colour, f"{name}, clean", filled=True)
        _histogram(left, adversarial[name].margin, bins, colour, f"{name}, adversarial", filled=False)
    left.axvline(0, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
    quiet(left, "angular margin, degrees (below 0: another class is nearer)", "share of images, %")
    means = {n: (clean[n].by_class(clean[n].margin), adversarial[n].by_class(adversarial[n].margin)) for n in clean}
    _dots(right, means, next(iter(clean.values())).classes)
    right.axvline(0, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
    quiet(right, "mean angular margin, degrees", "", title="by class (filled: clean, hollow: adversarial)", grid="x")
    outside_legend(figure, left)
    return figure


def norm_figure(clean: Mapping[str, Angles], adversarial: Mapping[str, Angles]) -> Figure:
    """By the networks' names: how the norms of the features are distributed, in units of the mean clean norm."""
    figure, axes = canvas(4.6 * len(clean), 2.9, columns=len(clean), sharey=True)
    for i, (name, ax) in enumerate(zip(clean, axes, strict=True)):
        pair = [a.norms / a.radius for a in (clean[name], adversarial[name])]
        low, high = torch.aminmax(torch.cat(pair))
        bins = torch.linspace(float(low), float(high) + 1e-6, 31).tolist()
        _histogram(ax, pair[0], bins, SERIES[i % len(SERIES)], "clean", filled=True)
        _histogram(ax, pair[1], bins, SERIES[i % len(SERIES)], "adversarial", filled=False)
        title = f"{name}: mean ||z|| = {clean[name].radius:.3g}"
        quiet(ax, "||z|| over its clean mean", "share of images, %" if i == 0 else "", title=title)
        legend(ax)
    return figure


def _height(some: Angles) -> float:
    return max(3.2, 0.5 + 0.24 * len(some.classes)) if len(some.classes) <= NAMED else 3.6


def _histogram(axes: Axes, values: Tensor, bins: list[float], colour: str, label: str, *, filled: bool) -> None:
    weights = [100 / len(values)] * len(values)
    style = {"alpha": 0.28, "linewidth": 0} if filled else {"histtype": "step", "linewidth": 1.5}
    axes.hist(values.tolist(), bins=bins, weights=weights, color=colour, label=label, **style)


def _dots(axes: Axes, pairs: Mapping[str, tuple[Tensor, Tensor]], classes: Sequence[str]) -> None:
    """A row for each class, sorted by the first network's first value: filled and hollow dots, joined."""
    first = next(iter(pairs.values()))[0]
    shown = [i for i in first.argsort().tolist() if not bool(first[i].isnan())]
    for number, (filled, hollow) in enumerate(pairs.values()):
        colour, step = SERIES[number % len(SERIES)], 0.24
        rows = [row + step * ((len(pairs) - 1) / 2 - number) for row in range(len(shown))]
        size = 24 if len(shown) <= NAMED else 5
        axes.hlines(rows, hollow[shown].tolist(), filled[shown].tolist(), color=LINE, linewidth=1.2, zorder=1)
        axes.scatter(filled[shown].tolist(), rows, s=size, color=colour, zorder=2)
        axes.scatter(
            hollow[shown].tolist(), rows, s=size, facecolors="none", edgecolors=colour, linewidths=1.1, zorder=2
        )
    if len(shown) <= NAMED:
        axes.set_yticks(range(len(shown)), [classes[i] for i in shown], parse_math=False)
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(shown)} classes")
