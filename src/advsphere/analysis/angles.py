"""Angles on the sphere: how far the features of an image point from its class, and how much farther from the others.

Neither the norm of the features nor the scale nor a bias enters an angle, so networks with and without a sphere can be
measured alike. A network with a bias, or with class weights of unlike norms, need not decide by angles alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.analysis.canvas import LINE, SERIES, SOFT, canvas, legend, outside_legend, quiet
from advsphere.analysis.curves import drawn
from advsphere.attacks import pgd
from advsphere.classifier import Classifier, frozen, split
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation.judge import exact_float32
from advsphere.files import read_cache, write_cache
from advsphere.identity import data_checksum, model_checksum
from advsphere.rng import Rng
from advsphere.threat import ThreatModel

# FOLDED anatomy: A network taken apart: features, the directions of its classes, and the way from one to the
# FOLDED anatomy: other with FN or without.
# FOLDED anatomy: FN, feature normalisation, replaces the features z by z / ||z|| in front of the last layer.
# FOLDED anatomy: Whether it changes what an
# FOLDED anatomy: attack finds, or what a training step learns, can be asked of any network, without training
# FOLDED anatomy: another: switch it on or off
# FOLDED anatomy: on the way from the features to the loss, and leave everything else as it is.


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadParts:
    """features: (B, C, H, W) -> (B, D), the z that enters the head. weight: (K, D), bias: (K,), so that the logits are
    W u + b, where u is z / ||z|| if the network has FN of its own (`normalized`), else z. radius: the mean ||z|| over
    clean images.
    """

    model: nn.Module
    features: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor
    normalized: bool
    radius: float

    def logits(self, z: Tensor, *, fn: bool, factor: float = 1.0) -> Tensor:
        """(B, D) features -> (B, K) logits with or without FN on the way, whatever the network itself does.

        With: factor * s * W'z/||z|| + b, where s is the radius of a network without FN of its own, and 1 for one that
        has it (its W holds the scale). Without: factor * W'z + b, and z / radius in the place of z for a network with
        FN. So the two have logits of the same size on average, and agree where ||z|| is constant. One of the two is, at
        factor 1, the network itself.
        """
        z = z.to(self.weight.dtype)
        unit = F.normalize(z, dim=1) if fn else z / self.radius
        return F.linear(unit * (factor if self.normalized else factor * self.radius), self.weight, self.bias)

    def path(self, *, fn: bool, factor: float = 1.0) -> Classifier:
        """The network with or without FN on the way, as a classifier to attack inside `frozen`."""

        def classify(x: Tensor) -> Tensor:
            return self.logits(self.features(x.contiguous(memory_format=torch.channels_last)), fn=fn, factor=factor)

        return classify

    def cosines(self, z: Tensor) -> Tensor:
        """(B, D) features -> (B, K) cosines of their angles with the classes' directions."""
        return F.normalize(z.to(self.weight.dtype), dim=1) @ F.normalize(self.weight, dim=1).T


def split_head(model: nn.Module, images: Images, *, head: str | None = None, batch_size: int = 250) -> HeadParts:
    """Take a network apart, and measure the mean norm of its features on these clean images.

    head: its name, where `classifier.find_head` can't tell. The head is asked, not looked up: its answers to the unit
    vectors are its directions, and it has FN if twice the features give the same logits. So heads of other projects do.
    Raises UserError where the head is neither linear nor linear after FN, or its features are no (B, D).
    """
    parts = split(model, head)
    with frozen(model), torch.no_grad():
        z = [parts.features(images.batch(index)[0]) for index in torch.arange(len(images)).split(batch_size)]
        if any(part.dim() != 2 for part in z):
            raise UserError(
                f"features of shape {tuple(z[0].shape[1:])} enter the head of this {type(model).__name__}, but angles "
                "need one vector an image; pool them first"
            )
        features = torch.cat(z).float()
        weight, bias, normalized = _asked(parts.head, features[:batch_size])
        radius = float(features.norm(dim=1).mean())
        if not radius > 0:
            raise UserError("the features that enter the head are all 0, and so have no direction; is it trained?")
    return HeadParts(
        model=model, features=parts.features, weight=weight, bias=bias, normalized=normalized, radius=radius
    )


def _asked(head: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, bool]:
    """(W, b, whether it has FN)."""
    eye = torch.eye(z.shape[1], device=z.device)
    bias = head(torch.zeros_like(eye[:1])).float()[0]
    weight = (head(eye).float() - bias).T.contiguous()
    answer = head(z).float()
    normalized = torch.allclose(head(2 * z).float(), answer, rtol=1e-4, atol=1e-5 * float(answer.abs().max()))
    expected = F.linear(F.normalize(z, dim=1) if normalized else z, weight, bias)
    if not torch.allclose(expected, answer, rtol=1e-3, atol=1e-3 * float(answer.abs().max())):
        raise UserError(
            f"this {type(head).__name__} is not linear in the features or their direction, so its classes have no "
            "directions to measure angles with; name the last linear layer as the head"
        )
    return weight, bias, normalized


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


def measure(anatomy: HeadParts, x: Tensor, y: Tensor, classes: Sequence[str], *, batch_size: int = 250) -> Angles:
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


def directions(anatomy: HeadParts) -> Tensor:
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


# FOLDED spread: How the angles of all images spread: to their own class, and by how much less than to the next
# FOLDED spread: one.

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "advsphere spread 2"
BINS = 36


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Of each image, in degrees: the angle between its features and the direction of its class, and the margin, by
    which the nearest other class is farther (below 0 where it is nearer).
    """

    angle: tuple[float, ...]
    margin: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Images clean, and under PGD at the threat's eps (all steps, last iterate). of: how many images these are drawn
    from. model, data: checksums of the model and of all images.
    """

    clean: Sample
    adversarial: Sample
    of: int
    steps: int
    seed: int
    model: str
    data: str

    @property
    def n(self) -> int:
        return len(self.clean.angle)

    def save(self, path: Path) -> None:
        """Write a JSON file, whole or not at all. Raises UserError where that can't be done."""
        write_cache(path, FORMAT, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """A saved one. Raises UserError for a file that is missing, of another kind, or changed since."""
        values = read_cache(path, FORMAT)
        samples = {
            part: Sample(**{key: tuple(found) for key, found in values[part].items()})
            for part in ("clean", "adversarial")
        }
        return cls(**values | samples)


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
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Spread:
    """Measure every image, clean and after PGD with steps of eps / 4 from a uniform start.

    head: the last linear layer's name, where it can't be told. most: of more images a sample of so many, the one of
    `accuracy_against_eps`. on_progress: told (images done, images in all). Raises UserError as `split_head`, where a
    network has no angles to measure.
    """
    anatomy = split_head(model, images, head=head, batch_size=batch_size)
    attack = partial(pgd, threat=threat, steps=steps, step_size=threat.eps / 4)
    found: dict[str, dict[str, list[float]]] = {part: {"angle": [], "margin": []} for part in ("clean", "adversarial")}
    examples, done = drawn(len(images), most, seed=seed), 0
    with exact_float32():
        for index in examples.split(batch_size):
            x, y = images.batch(index)
            with frozen(model) as classify:
                x_adv = attack(classify, x, y, rng=Rng(seed, index.to(x.device)))
            for part, pixels in (("clean", x), ("adversarial", x_adv)):
                angles = measure(anatomy, pixels, y, images.classes, batch_size=batch_size)
                found[part]["angle"] += [round(v, 3) for v in angles.own.tolist()]
                found[part]["margin"] += [round(v, 3) for v in angles.margin.tolist()]
            done += len(index)
            on_progress(done, len(examples))
    clean, adversarial = (Sample(**{k: tuple(v) for k, v in found[part].items()}) for part in found)
    return Spread(
        clean=clean,
        adversarial=adversarial,
        of=len(images),
        steps=steps,
        seed=seed,
        model=model_checksum(model),
        data=data_checksum(images, batch_size),
    )


_LABELS = {
    "angle": "angle to the own class, degrees",
    "margin": "angular margin, degrees",
}


def spread_figure(spreads: Mapping[str, Spread], what: Literal["angle", "margin"]) -> Figure:
    """A panel for each model, by its name: clean images as a filled histogram, adversarial ones as an outline."""
    figure, axes = canvas(3.6, 0.75 + 1.1 * len(spreads), rows=len(spreads), sharex=True, sharey=True)
    pairs = {name: [getattr(part, what) for part in (s.clean, s.adversarial)] for name, s in spreads.items()}
    every = [v for pair in pairs.values() for values in pair for v in values]
    low, high = min(every), max(every) + 1e-6
    bins = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    for i, ((name, (clean, adversarial)), ax) in enumerate(zip(pairs.items(), axes, strict=True)):
        colour, share = SERIES[i % len(SERIES)], 100 / len(clean)
        ax.hist(clean, bins=bins, weights=[share] * len(clean), color=colour, alpha=0.3, linewidth=0, label="clean")
        ax.hist(
            adversarial,
            bins=bins,
            weights=[share] * len(adversarial),
            histtype="step",
            color=colour,
            linewidth=1.5,
            label="under attack",
        )
        if what == "margin":
            ax.axvline(0, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
        quiet(ax, _LABELS[what] if i == len(spreads) - 1 else "", "images, %", title=name)
    outside_legend(figure, axes[0])
    return figure
