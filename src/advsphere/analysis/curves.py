"""Accuracy against eps: how fast a model gives way as the adversary may do more.

The ball of a smaller eps lies inside that of a larger one, so an example that was fooled at a smaller eps counts as
fooled at every larger one. An honest curve therefore never rises; one that would is a sign of an attack that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from advsphere.analysis.canvas import MARKERS, SERIES, SOFT, canvas, legend, quiet
from advsphere.attacks import pgd
from advsphere.classifier import frozen
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation import AttackSpec, Evaluation
from advsphere.evaluation.checks import device_of, images_of
from advsphere.evaluation.judge import exact_float32, judge_attack, predict
from advsphere.files import read_cache, write_cache
from advsphere.identity import data_checksum, model_checksum
from advsphere.losses import Loss, log_odds
from advsphere.rng import Rng, permutation
from advsphere.stats import wilson
from advsphere.threat import Norm, ThreatModel, radius

# FOLDED broken: Which of ever stronger attacks is the first to fool the model, for each image.


def drawn(count: int, most: int | None, *, seed: int) -> Tensor:
    """(n,) int64: the numbers of `count` examples, in order; a sample of `most` where there are more (None: of all)."""
    if most is None or most >= count:
        return torch.arange(count)
    return permutation(count, seed=seed, epoch=0, purpose="a look")[:most].sort().values


def first_to_break(
    model: nn.Module,
    images: Images,
    examples: Tensor,
    attacks: Sequence[tuple[ThreatModel, AttackSpec]],
    *,
    seed: int,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> tuple[int, ...]:
    """For each of the examples, (n,) int64 in order, 0 where its clean prediction is wrong, else the number of the
    first attack (from 1) that fooled, or len(attacks) + 1 where none did. Each attack gets only what resisted all
    before it, and is judged in its own ball, in float32. on_progress: told (attacks done, in all), over all batches.
    """
    device, broken = device_of(model), torch.full((len(images),), len(attacks) + 1)
    batches = examples.split(batch_size)
    with exact_float32():
        for number, index in enumerate(batches):
            x, y = (t.to(device) for t in images.batch(index))
            with frozen(model) as exact:
                fooled = predict(exact, x, y)[0].cpu()
            broken[index[fooled]] = 0
            for i, (threat, spec) in enumerate(attacks, 1):
                at = (broken[index] > len(attacks)).to(device)
                if at.any():
                    rng = Rng(seed, index.to(device)[at])
                    verdict = judge_attack(model, spec, threat, x[at], y[at], rng)
                    broken[index[at.cpu()][verdict.fooled.cpu()]] = i
                on_progress(number * len(attacks) + i, len(batches) * len(attacks))
    return tuple(broken[examples].tolist())


# FOLDED falling: Accuracy as attacks get stronger, one after the other: what curves against eps and against
# FOLDED falling: steps have in common.

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class Falling:
    """at: how strong the attacks were, rising; the first is 0, the clean images. broken: for each example the position
    in `at` of the first attack that fooled, as `first_to_break` has it. of: how many examples these are drawn from.
    """

    at: tuple[float, ...]
    broken: tuple[int, ...]
    of: int
    seed: int

    @property
    def n(self) -> int:
        return len(self.broken)

    @property
    def robust(self) -> tuple[int, ...]:
        """How many examples are left at each strength; never rising."""
        return tuple(sum(b > i for b in self.broken) for i in range(len(self.at)))

    @property
    def accuracy(self) -> tuple[float, ...]:
        return tuple(k / self.n for k in self.robust)

    @property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """A 95 % Wilson interval at each strength, for the sample alone."""
        return tuple(wilson(k, self.n) for k in self.robust)


def falling_line(axes: Axes, found: Falling, number: int, name: str, *, first: int = 0) -> tuple[str, str]:
    """Draw it in percent, with its 95 % band, from position `first` on; returns the colour and the marker."""
    colour, marker = SERIES[number % len(SERIES)], MARKERS[(number + number // len(SERIES)) % len(MARKERS)]
    at, percent = found.at[first:], [100 * a for a in found.accuracy[first:]]
    low, high = ([100 * v for v in ends] for ends in zip(*found.intervals[first:], strict=True))
    axes.fill_between(at, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(at, percent, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name, clip_on=False)
    return colour, marker


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT = "advsphere curve 2"
GRID = tuple(i / 4 for i in range(9))
"""The radii by default, as multiples of the threat's."""


@dataclass(frozen=True, kw_only=True)
class Curve(Falling):
    """Accuracy under PGD at rising radii, an upper bound of robust accuracy at each.

    at: the radii. steps: of PGD. model, data: checksums of the model that was attacked and of all images, whether or
    not these are a sample of them.
    """

    norm: Norm
    steps: int
    model: str
    data: str

    def save(self, path: Path) -> None:
        """Write a JSON file, whole or not at all. Raises UserError where that can't be done."""
        write_cache(path, FORMAT, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """A saved curve. Raises UserError for a file that is missing, of another kind, or changed since."""
        values = read_cache(path, FORMAT)
        return cls(**values | {"at": tuple(values["at"]), "broken": tuple(values["broken"])})


def accuracy_against_eps(
    model: nn.Module,
    images: Images | Tensor,
    labels: Tensor | None = None,
    *,
    threat: ThreatModel,
    eps: Sequence[float] | None = None,
    steps: int = 20,
    most: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Curve:
    """Attack with PGD at each radius in turn, and only what still resists.

    model, images, labels, seed, batch_size: as in `evaluate`. threat: its norm and bounds; its eps sets the default
    radii, from 0 to twice that in quarters. eps: radii of one's own, in any order; 0 is always added. steps: of PGD,
    each a quarter of the radius long, from a uniform start, keeping the best iterate and stopping at the first success.
    most: of more images a sample of so many is attacked, each with the draws that it would have among all.
    Every result is judged as in an evaluation: inside its own ball, and misclassified in float32. on_progress: told
    (radii done, radii in all), over all batches.

    Raises UserError for radii, images or labels that make no sense.
    """
    images = images_of(images, labels)
    radii = tuple(sorted({0.0, *([threat.eps * share for share in GRID] if eps is None else map(float, eps))}))
    if radii[0] < 0 or len(radii) == 1:
        raise UserError(f"a curve needs radii above 0, not {', '.join(map(radius, radii))}")
    balls = [replace(threat, eps=radius_i) for radius_i in radii[1:]]
    attacks = [(ball, _pgd(ball, steps)) for ball in balls]
    examples = drawn(len(images), most, seed=seed)
    broken = first_to_break(model, images, examples, attacks, seed=seed, batch_size=batch_size, on_progress=on_progress)
    return Curve(
        norm=threat.norm,
        at=radii,
        broken=broken,
        of=len(images),
        steps=steps,
        seed=seed,
        model=model_checksum(model),
        data=data_checksum(images, batch_size),
    )


def curve_figure(curves: Mapping[str, Curve], evaluations: Mapping[str, Evaluation] | None = None) -> Figure:
    """Curves with their 95 % bands, by the models' names. evaluations: by the same names, adds each one's worst case at
    its own eps, as a hollow marker with its interval.
    """
    figure, (axes,) = canvas(4.6, 3.2)
    highest = max(curve.at[-1] for curve in curves.values())
    for i, (name, curve) in enumerate(curves.items()):
        colour, marker = falling_line(axes, curve, i, name)
        if evaluations and name in evaluations:
            _worst(evaluations[name], axes, colour, marker)
    for eps in sorted({float(e.identity["threat"]["eps"]) for e in (evaluations or {}).values()}):
        axes.axvline(eps, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    ticks = next(iter(curves.values())).at[::2]
    axes.set(xlim=(-0.02 * highest, 1.02 * highest), ylim=(0, 101), xticks=ticks, yticks=range(0, 101, 20))
    axes.set_xticklabels([radius(e) for e in ticks])
    quiet(axes, "eps", "accuracy, %")
    legend(axes, fontsize=9)
    return figure


def _worst(evaluation: Evaluation, axes: Axes, colour: str, marker: str) -> None:
    """The worst case as a hollow marker."""
    row, eps = evaluation.worst, float(evaluation.identity["threat"]["eps"])
    low, high = row.interval
    axes.errorbar(
        eps,
        100 * row.accuracy,
        yerr=[[100 * (row.accuracy - low)], [100 * (high - row.accuracy)]],
        color=colour,
        marker=marker,
        markersize=7,
        markerfacecolor="none",
        linewidth=1.0,
        clip_on=False,
    )


def _pgd(threat: ThreatModel, steps: int) -> AttackSpec:
    attack = partial(pgd, threat=threat, steps=steps, step_size=threat.eps / 4, until_fooled=True, keep="best")
    return AttackSpec(f"PGD-{steps}", attack)


# FOLDED steps: Accuracy against the number of steps: an attack that still finds more with more steps has not
# FOLDED steps: converged.

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True, kw_only=True)
class StepsCurve(Falling):
    """Accuracy under PGD with rising numbers of steps. at: these numbers."""

    threat: ThreatModel
    at: tuple[int, ...]


def accuracy_against_steps(
    model: nn.Module,
    images: Images | Tensor,
    labels: Tensor | None = None,
    *,
    threat: ThreatModel,
    steps: Sequence[int] = STEPS,
    loss: Loss = log_odds,
    most: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> StepsCurve:
    """PGD with steps of eps / 4 from the same uniform start, with each number of steps in turn, on what still resists.

    A shorter attack is thus the beginning of a longer one, and an image counts as fooled from its first success on.
    images, labels, seed, batch_size: as in `evaluate`. most: as in `accuracy_against_eps`. on_progress: told (attacks
    done, in all), over all batches. Raises UserError for steps that are not positive, or none.
    """
    images, numbers = images_of(images, labels), tuple(sorted({*map(int, steps)}))
    if not numbers or numbers[0] < 1:
        raise UserError(f"numbers of steps are positive, not {', '.join(map(str, numbers)) or 'none'}")
    attacks = [(threat, AttackSpec(f"PGD-{k}", _pgd_steps(threat, k, loss))) for k in numbers]
    examples = drawn(len(images), most, seed=seed)
    broken = first_to_break(model, images, examples, attacks, seed=seed, batch_size=batch_size, on_progress=on_progress)
    return StepsCurve(threat=threat, at=(0, *numbers), broken=broken, of=len(images), seed=seed)


def steps_figure(curves: Mapping[str, StepsCurve]) -> Figure:
    """Curves with their 95 % bands, by the models' names; the steps on a logarithmic axis, beginning with 1."""
    figure, (axes,) = canvas(4.6, 3.2)
    for i, (name, curve) in enumerate(curves.items()):
        falling_line(axes, curve, i, name, first=1)
    one = next(iter(curves.values()))
    axes.set_xscale("log")
    axes.set_xticks(one.at[1:], [str(k) for k in one.at[1:]])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    quiet(axes, f"steps of PGD at {one.threat.norm} eps = {radius(one.threat.eps)}", "accuracy, %")
    legend(axes)
    return figure


def _pgd_steps(threat: ThreatModel, steps: int, loss: Loss) -> partial[Tensor]:
    return partial(pgd, threat=threat, steps=steps, step_size=threat.eps / 4, loss=loss, until_fooled=True, keep="best")
