"""Accuracy against the strength of an attack: its radius eps, or its number of steps.

The ball of a smaller eps lies inside that of a larger one, and a short attack is the beginning of a longer one. So an
example that was fooled once counts as fooled at all greater strengths, and a curve never rises. If a curve against
steps still falls at its end, the attack has not converged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from advsphere.analysis.canvas import canvas, interval_marks, legend, quiet, reference, style
from advsphere.analysis.crafting import OnProgress, sample_positions, silent
from advsphere.attacks import pgd
from advsphere.classifier import frozen
from advsphere.data import Images, Source
from advsphere.errors import UserError
from advsphere.evaluation import AttackSpec, Evaluation
from advsphere.evaluation.checks import Pixels, images_of, loaded
from advsphere.evaluation.judge import exact_float32, judge_attack, predict
from advsphere.files import read_cache, write_cache
from advsphere.identity import data_checksum, model_checksum
from advsphere.rng import Rng
from advsphere.stats import wilson
from advsphere.threat import Norm, ThreatModel, radius

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT = "advsphere curve 2"
GRID = tuple(i / 4 for i in range(9))
"""The default radii, as multiples of the threat's."""
STEP_COUNTS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True, kw_only=True)
class AccuracyCurve:
    """Accuracy at rising strengths of an attack.

    `at` lists the strengths; the first is 0, the clean images. `broken` has for each example the position in `at` of
    the first attack that fooled the model, len(at) if none did. The examples are a sample of `of` images.
    """

    at: tuple[float, ...]
    broken: tuple[int, ...]
    of: int
    seed: int

    @property
    def n(self) -> int:
        """The number of examples."""
        return len(self.broken)

    @property
    def robust(self) -> tuple[int, ...]:
        """The number of correct examples at each strength, which never rises."""
        return tuple(sum(b > i for b in self.broken) for i in range(len(self.at)))

    @property
    def accuracy(self) -> tuple[float, ...]:
        """The share of correct examples at each strength."""
        return tuple(k / self.n for k in self.robust)

    @property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """A 95 % Wilson interval at each strength, which covers only the sampling of images."""
        return tuple(wilson(k, self.n) for k in self.robust)


@dataclass(frozen=True, kw_only=True)
class Curve(AccuracyCurve):
    """Accuracy under PGD at rising radii; at each radius an upper bound of robust accuracy.

    Attributes:
        at: The radii, starting with 0.
        broken: For each example the position in `at` of the first radius at which it was fooled, len(at) if at none.
        of: The number of images that the examples are a sample of.
        seed: The seed of the sample and of the random starts.
        norm: The norm of the radii.
        steps: The number of PGD steps.
        model: Checksum of the model.
        data: Checksum of all `of` images.
    """

    norm: Norm
    steps: int
    model: str
    data: str

    def save(self, path: Path | str) -> None:
        """Write a JSON file, completely or not at all.

        Args:
            path: The file.

        Raises:
            UserError: If the file can't be written.
        """
        write_cache(Path(path), FORMAT, asdict(self))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a saved curve.

        Args:
            path: The file.

        Returns:
            The curve.

        Raises:
            UserError: If the file is missing, is not a curve, or was changed after it was written.
        """
        values = read_cache(Path(path), FORMAT)
        return cls(**values | {"at": tuple(values["at"]), "broken": tuple(values["broken"])})


def accuracy_against_eps(
    model: nn.Module,
    images: Source | Pixels,
    labels: Pixels | None = None,
    *,
    threat: ThreatModel,
    eps: Sequence[float] | None = None,
    steps: int = 20,
    most: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: OnProgress = silent,
) -> Curve:
    """Attack with PGD at each radius in turn, each time only the examples that still resist.

    PGD starts at a uniform point, takes steps of a quarter of the radius, keeps the best iterate and stops at the first
    success. Each result is judged as in an evaluation: inside its own ball, and misclassified in float32.

    Args:
        model: Takes (B, C, H, W) pixels in [0, 1] and returns (B, K) logits.
        images: The images, as in `evaluate`.
        labels: Class numbers (N,), with a tensor or array of images.
        threat: Norm and bounds of the attacks. The default radii go from 0 to twice its eps, in steps of eps / 4.
        eps: Other radii, in any order; 0 is always added.
        steps: The number of PGD steps.
        most: If there are more images, attack a random sample of this size. It does not change an example's random
            numbers.
        seed: The seed of the sample and of the random starts.
        batch_size: Images in a batch.
        on_progress: Called with (attacks done, attacks in total), over all batches.

    Returns:
        The curve.

    Raises:
        UserError: If radii, images or labels are invalid.
    """
    images = images_of(images, labels)
    radii = tuple(sorted({0.0, *([threat.eps * share for share in GRID] if eps is None else map(float, eps))}))
    if radii[0] < 0 or len(radii) == 1:
        raise UserError(f"a curve needs radii above 0, not {', '.join(map(radius, radii))}")
    attacks = [(replace(threat, eps=radius_i), steps) for radius_i in radii[1:]]
    return Curve(
        norm=threat.norm,
        at=radii,
        broken=_broken(model, images, attacks, most, seed, batch_size, on_progress),
        of=len(images),
        steps=steps,
        seed=seed,
        model=model_checksum(model),
        data=data_checksum(images, batch_size),
    )


def accuracy_against_steps(
    model: nn.Module,
    images: Images,
    *,
    threat: ThreatModel,
    steps: Sequence[int] = STEP_COUNTS,
    most: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: OnProgress = silent,
) -> AccuracyCurve:
    """Attack with PGD with each number of steps in turn, each time only the examples that still resist.

    All attacks have steps of eps / 4 and start at the same uniform point. The strengths of the curve are the numbers of
    steps. The other arguments are those of `accuracy_against_eps`. Raises UserError for steps that are not positive.
    """
    numbers = tuple(sorted({*map(int, steps)}))
    if not numbers or numbers[0] < 1:
        raise UserError(f"numbers of steps are positive, not {', '.join(map(str, numbers)) or 'none'}")
    broken = _broken(model, images, [(threat, k) for k in numbers], most, seed, batch_size, on_progress)
    return AccuracyCurve(at=(0, *numbers), broken=broken, of=len(images), seed=seed)


def _broken(
    model: nn.Module,
    images: Images,
    attacks: Sequence[tuple[ThreatModel, int]],
    most: int | None,
    seed: int,
    batch_size: int,
    on_progress: OnProgress,
) -> tuple[int, ...]:
    """For each example of a sample, the number of the first attack that fooled the model; 0 if it is misclassified.

    An attack is PGD with a threat and a number of steps. It gets only the examples that resisted all earlier attacks.
    """
    examples = sample_positions(len(images), most, seed=seed)
    broken = torch.full((len(images),), len(attacks) + 1)
    batches = examples.split(batch_size)
    with exact_float32():
        for number, index in enumerate(batches):
            x, y = loaded(model, images, index)
            with frozen(model) as exact:
                broken[index[(predict(exact, x) != y).cpu()]] = 0
            for i, (threat, steps) in enumerate(attacks, 1):
                at = (broken[index] > len(attacks)).to(x.device)
                if at.any():
                    attack = partial(
                        pgd, threat=threat, steps=steps, step_size=threat.eps / 4, until_fooled=True, keep="best"
                    )
                    spec, rng = AttackSpec(f"PGD-{steps}", attack), Rng(seed, index.to(x.device)[at])
                    verdict = judge_attack(model, spec, threat, x[at], y[at], rng)
                    broken[index[at.cpu()][verdict.fooled.cpu()]] = i
                on_progress(number * len(attacks) + i, len(batches) * len(attacks))
    return tuple(broken[examples].tolist())


def curve_figure(curves: Mapping[str, Curve], evaluations: Mapping[str, Evaluation] | None = None) -> Figure:
    """Curves against eps with their 95 % bands.

    Args:
        curves: The curves by the models' names.
        evaluations: By the same names. The worst case of each at its own eps is added as a hollow marker with interval.

    Returns:
        The figure.
    """
    figure, (axes,) = canvas(4.6, 3.2)
    highest = max(curve.at[-1] for curve in curves.values())
    for i, (name, curve) in enumerate(curves.items()):
        _line(axes, curve, i, name)
        evaluation = (evaluations or {}).get(name)
        if evaluation is not None:
            eps, worst, (colour, marker) = float(evaluation.identity["threat"]["eps"]), evaluation.worst, style(i)
            reference(axes, x=eps)
            look = {"markersize": 7, "markerfacecolor": "none", "elinewidth": 1.0, "clip_on": False}
            interval_marks(axes, [eps], [worst.accuracy], [worst.interval], colour, marker, **look)
    ticks = next(iter(curves.values())).at[::2]
    axes.set(xlim=(-0.02 * highest, 1.02 * highest), ylim=(0, 101), xticks=ticks, yticks=range(0, 101, 20))
    axes.set_xticklabels([radius(e) for e in ticks])
    quiet(axes, "eps", "accuracy, %")
    legend(axes, fontsize=9)
    return figure


def steps_figure(curves: Mapping[str, AccuracyCurve], threat: ThreatModel) -> Figure:
    """Curves against the number of steps (logarithmic, from 1), by the models' names, with their 95 % bands."""
    figure, (axes,) = canvas(4.6, 3.2)
    for i, (name, curve) in enumerate(curves.items()):
        _line(axes, curve, i, name, first=1)
    one = next(iter(curves.values()))
    axes.set_xscale("log")
    axes.set_xticks(one.at[1:], [str(k) for k in one.at[1:]])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    quiet(axes, f"PGD steps at {threat.norm} eps = {radius(threat.eps)}", "accuracy, %")
    legend(axes)
    return figure


def _line(axes: Axes, curve: AccuracyCurve, number: int, name: str, *, first: int = 0) -> None:
    """Accuracy in percent with its 95 % band, from position `first` on."""
    colour, marker = style(number)
    at, percent = curve.at[first:], [100 * a for a in curve.accuracy[first:]]
    low, high = ([100 * v for v in ends] for ends in zip(*curve.intervals[first:], strict=True))
    axes.fill_between(at, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(at, percent, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name, clip_on=False)
