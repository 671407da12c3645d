"""Angles on the sphere between an image's features and the class directions, and the angular margin.

Angles do not depend on the norm of the features, the scale and the bias, so networks with and without a hypersphere
head can be compared. A network with a bias, or with class weights of different lengths, does not decide by angles
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor, nn

from advsphere.analysis.canvas import (
    NAMED,
    SERIES,
    bins_of,
    canvas,
    histogram,
    joined_dots,
    legend,
    outside_legend,
    quiet,
    reference,
)
from advsphere.analysis.crafting import OnProgress, craft, sample_positions, silent
from advsphere.analysis.linear_head import HeadParts, split_head
from advsphere.classifier import frozen
from advsphere.data import Images
from advsphere.evaluation.judge import exact_float32
from advsphere.files import read_cache, write_cache
from advsphere.identity import data_checksum, model_checksum
from advsphere.threat import ThreatModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "advsphere spread 2"


@dataclass(frozen=True, eq=False, kw_only=True)
class Angles:
    """The angles of N images under one network, on the CPU.

    `labels` and `predictions` are (N,) int64. `angles` (N, K) are in degrees, between the features and the direction of
    each class. `norms` (N,) are the ||z||, and `mean_norm` is their mean on clean images.
    """

    classes: tuple[str, ...]
    labels: Tensor
    predictions: Tensor
    angles: Tensor
    norms: Tensor
    mean_norm: float

    @property
    def own(self) -> Tensor:
        """(N,) degrees between the features and the direction of the label's class."""
        return self.angles.gather(1, self.labels[:, None]).squeeze(1)

    @property
    def margin(self) -> Tensor:
        """(N,) degrees by which the nearest other class is farther than the label's; negative if it is nearer."""
        others = self.angles.scatter(1, self.labels[:, None], float("inf"))
        return others.amin(1) - self.own

    def by_class(self, values: Tensor) -> Tensor:
        """(N,) -> (K,), the mean over the images of each class; NaN for a class without images."""
        sums = torch.zeros(len(self.classes), dtype=torch.float64)
        sums = sums.index_add(0, self.labels, values.double())
        return sums / torch.bincount(self.labels, minlength=len(self.classes))


def measure_angles(parts: HeadParts, x: Tensor, y: Tensor, classes: Sequence[str], *, batch_size: int = 250) -> Angles:
    """The angles of images x (N, C, H, W), clean or adversarial, with labels y (N,)."""
    cosines, norms, predictions = [], [], []
    with frozen(parts.model), torch.no_grad():
        for batch in x.split(batch_size):
            z = parts.features(batch).float()
            cosines.append(parts.cosines(z))
            norms.append(z.norm(dim=1))
            predictions.append(parts.logits(z, fn=parts.normalized).argmax(1))
    return Angles(
        classes=tuple(classes),
        labels=y.cpu(),
        predictions=torch.cat(predictions).cpu(),
        angles=torch.cat(cosines).double().clamp(-1, 1).acos().rad2deg().cpu(),
        norms=torch.cat(norms).cpu(),
        mean_norm=parts.mean_norm,
    )


def margin_figure(clean: Mapping[str, Angles], adversarial: Mapping[str, Angles]) -> Figure:
    """The distribution of the angular margins of each network, by name, and their mean for each class."""
    classes = next(iter(clean.values())).classes
    named = len(classes) <= NAMED
    height = max(3.2, 0.5 + 0.24 * len(classes)) if named else 3.6
    figure, (left, right) = canvas(9.2, height, columns=2, width_ratios=(1, 1.15))
    bins = bins_of([v for a in (*clean.values(), *adversarial.values()) for v in a.margin.tolist()])
    first = next(a.by_class(a.margin) for a in clean.values())
    shown = [i for i in first.argsort().tolist() if not bool(first[i].isnan())]
    for i, name in enumerate(clean):
        colour, means = SERIES[i % len(SERIES)], []
        for what, a in (("clean", clean[name]), ("adversarial", adversarial[name])):
            histogram(left, a.margin.tolist(), bins, colour, f"{name}, {what}", filled=what == "clean")
            means.append(a.by_class(a.margin)[shown].tolist())
        rows = [row + 0.24 * ((len(clean) - 1) / 2 - i) for row in range(len(shown))]
        joined_dots(right, means[0], means[1], rows, colour, s=24 if named else 5)
    if named:
        right.set_yticks(range(len(shown)), [classes[i] for i in shown], parse_math=False)
    else:
        right.set_yticks([])
    reference(left, x=0)
    reference(right, x=0)
    quiet(left, "angular margin, degrees (below 0: another class is nearer)", "share of images, %")
    title = "by class (filled: clean, hollow: adversarial)"
    quiet(right, "mean angular margin, degrees", "" if named else f"{len(shown)} classes", title=title, grid="x")
    outside_legend(figure, left)
    return figure


def norm_figure(clean: Mapping[str, Angles], adversarial: Mapping[str, Angles]) -> Figure:
    """The distribution of the feature norms of each network, by name, divided by the mean clean norm."""
    figure, axes = canvas(4.6 * len(clean), 2.9, columns=len(clean), sharey=True)
    for i, (name, ax) in enumerate(zip(clean, axes, strict=True)):
        colour = SERIES[i % len(SERIES)]
        shares = [(a.norms / a.mean_norm).tolist() for a in (clean[name], adversarial[name])]
        bins = bins_of(shares[0] + shares[1])
        histogram(ax, shares[0], bins, colour, "clean", filled=True)
        histogram(ax, shares[1], bins, colour, "adversarial", filled=False)
        title = f"{name}: mean ||z|| = {clean[name].mean_norm:.3g}"
        quiet(ax, "||z|| divided by its clean mean", "share of images, %" if i == 0 else "", title=title)
        legend(ax)
    return figure


@dataclass(frozen=True, kw_only=True)
class AngleSample:
    """For each image, in degrees: the angle to the direction of its class, and its angular margin."""

    angle: tuple[float, ...]
    margin: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The angles of a sample of images, clean and under PGD at the threat's eps, as saved beside an evaluation.

    The sample is drawn from `of` images. `model` and `data` are the checksums of the model and of all these images.
    """

    clean: AngleSample
    adversarial: AngleSample
    of: int
    steps: int
    seed: int
    model: str
    data: str

    @property
    def n(self) -> int:
        return len(self.clean.angle)

    def save(self, path: Path) -> None:
        """Write a JSON file, completely or not at all. Raises UserError if that fails."""
        write_cache(path, FORMAT, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a saved file. Raises UserError if it is missing, of another kind, or was changed afterwards."""
        values = read_cache(path, FORMAT)
        for part in ("clean", "adversarial"):
            values[part] = AngleSample(**{key: tuple(found) for key, found in values[part].items()})
        return cls(**values)


def spread_of_angles(
    model: nn.Module,
    images: Images,
    *,
    threat: ThreatModel,
    head: str | None = None,
    steps: int = 10,
    most: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: OnProgress = silent,
) -> Spread:
    """Measure a sample of at most `most` images, clean and crafted, the same sample as `accuracy_against_eps`.

    Raises UserError as `split_head` does, for a network that has no angles.
    """
    parts = split_head(model, images, head=head, batch_size=batch_size)
    index, done = sample_positions(len(images), most, seed=seed), 0
    found: dict[str, dict[str, tuple[float, ...]]] = {
        part: {"angle": (), "margin": ()} for part in ("clean", "adversarial")
    }
    with exact_float32():
        for batch in index.split(batch_size):
            crafted = craft(model, images, threat=threat, index=batch, steps=steps, seed=seed, batch_size=batch_size)
            for part, x in (("clean", crafted.x), ("adversarial", crafted.x_adv)):
                angles = measure_angles(parts, x, crafted.y, images.classes, batch_size=batch_size)
                found[part]["angle"] += tuple(round(v, 3) for v in angles.own.tolist())
                found[part]["margin"] += tuple(round(v, 3) for v in angles.margin.tolist())
            done += len(batch)
            on_progress(done, len(index))
    return Spread(
        clean=AngleSample(**found["clean"]),
        adversarial=AngleSample(**found["adversarial"]),
        of=len(images),
        steps=steps,
        seed=seed,
        model=model_checksum(model),
        data=data_checksum(images, batch_size),
    )


def spread_figure(spreads: Mapping[str, Spread], what: Literal["angle", "margin"]) -> Figure:
    """A panel for each model, by name: clean images as a filled histogram, adversarial ones as an outline."""
    label = {"angle": "angle to the class of the label, degrees", "margin": "angular margin, degrees"}[what]
    figure, axes = canvas(3.6, 0.75 + 1.1 * len(spreads), rows=len(spreads), sharex=True, sharey=True)
    pairs = {name: (getattr(s.clean, what), getattr(s.adversarial, what)) for name, s in spreads.items()}
    bins = bins_of([v for pair in pairs.values() for values in pair for v in values], 36)
    for i, ((name, (clean, adversarial)), ax) in enumerate(zip(pairs.items(), axes, strict=True)):
        histogram(ax, clean, bins, SERIES[i % len(SERIES)], "clean", filled=True)
        histogram(ax, adversarial, bins, SERIES[i % len(SERIES)], "under attack", filled=False)
        if what == "margin":
            reference(ax, x=0)
        quiet(ax, label if i == len(spreads) - 1 else "", "images, %", title=name)
    outside_legend(figure, axes[0])
    return figure
