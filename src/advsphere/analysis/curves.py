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

from torch import Tensor, nn

from advsphere.analysis.broken import drawn, first_to_break
from advsphere.analysis.canvas import canvas, legend, quiet
from advsphere.analysis.falling import Falling, falling_line
from advsphere.analysis.kept import read_kept, write_kept
from advsphere.analysis.palette import SOFT
from advsphere.attacks import pgd
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation import AttackSpec, Evaluation, data_checksum, model_checksum, radius
from advsphere.evaluation.preflight import images_of
from advsphere.threat import Norm, ThreatModel

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
        write_kept(path, FORMAT, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """A saved curve. Raises UserError for a file that is missing, of another kind, or changed since."""
        values = read_kept(path, FORMAT)
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
