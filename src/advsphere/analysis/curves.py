"""Accuracy against eps: how fast a model gives way as the adversary may do more.

The ball of a smaller eps lies inside that of a larger one, so an example that was fooled at a smaller eps counts as
fooled at every larger one. An honest curve therefore never rises; one that would is a sign of an attack that failed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from advsphere.analysis.palette import INK, LINE, MARKERS, SERIES, SOFT
from advsphere.attacks import pgd
from advsphere.classifier import frozen
from advsphere.data import Images
from advsphere.draws import Draws
from advsphere.errors import UserError
from advsphere.evaluation import AttackSpec, Evaluation, data_checksum, model_checksum, radius, wilson
from advsphere.evaluation.judge import exact_float32, predict, strike
from advsphere.evaluation.preflight import device_of, images_of
from advsphere.evaluation.records import content_checksum, read_json
from advsphere.files import write_atomically
from advsphere.threat import Norm, ThreatModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT = "advsphere curve 1"
GRID = tuple(i / 4 for i in range(9))
"""The radii by default, as multiples of the threat's."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Accuracy under PGD at rising radii, an upper bound of robust accuracy at each.

    eps: the radii, rising, the first is 0 (clean images). broken: for each example the position in `eps` of the first
    radius at which it was misclassified, and len(eps) where none was enough. steps, seed: of the attack. model, data:
    checksums of what was attacked.
    """

    norm: Norm
    eps: tuple[float, ...]
    broken: tuple[int, ...]
    steps: int
    seed: int
    model: str
    data: str

    @property
    def n(self) -> int:
        return len(self.broken)

    @property
    def robust(self) -> tuple[int, ...]:
        """How many examples are left at each radius; never rising."""
        return tuple(sum(b > i for b in self.broken) for i in range(len(self.eps)))

    @property
    def accuracy(self) -> tuple[float, ...]:
        return tuple(k / self.n for k in self.robust)

    @property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """A 95 % Wilson interval at each radius, for the sample alone."""
        return tuple(wilson(k, self.n) for k in self.robust)

    def save(self, path: Path) -> None:
        """Write a JSON file, whole or not at all. Raises UserError where that can't be done."""
        content = {"format": FORMAT, **asdict(self)}
        write_atomically(path, json.dumps(content | {"checksum": content_checksum(content)}).encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """A saved curve. Raises UserError for a file that is missing, of another kind, or changed since."""
        data = read_json(path, FORMAT)
        if data.get("checksum") != content_checksum(data):
            raise UserError(f"{path} was changed after it was written; compute the curve again")
        fields: dict[str, Any] = {k: data[k] for k in cls.__dataclass_fields__}
        return cls(**fields | {"eps": tuple(data["eps"]), "broken": tuple(data["broken"])})


def accuracy_against_eps(
    model: nn.Module,
    images: Images | Tensor,
    labels: Tensor | None = None,
    *,
    threat: ThreatModel,
    eps: Sequence[float] | None = None,
    steps: int = 20,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Curve:
    """Attack with PGD at each radius in turn, and only what still resists.

    model, images, labels, seed, batch_size: as in `evaluate`. threat: its norm and bounds; its eps sets the default
    radii, from 0 to twice that in quarters. eps: radii of one's own, in any order; 0 is always added. steps: of PGD,
    each a quarter of the radius long, from a uniform start, keeping the best iterate and stopping at the first success.
    Every result is judged as in an evaluation: inside its own ball, and misclassified in float32. on_progress: told
    (radii done, radii in all), over all batches.

    Raises UserError for radii, images or labels that make no sense.
    """
    images = images_of(images, labels)
    radii = tuple(sorted({0.0, *([threat.eps * share for share in GRID] if eps is None else map(float, eps))}))
    if radii[0] < 0 or len(radii) == 1:
        raise UserError(f"a curve needs radii above 0, not {', '.join(map(radius, radii))}")
    device, broken = device_of(model), torch.full((len(images),), len(radii))
    batches = torch.arange(len(images)).split(batch_size)
    with exact_float32():
        for number, index in enumerate(batches):
            x, y = (t.to(device) for t in images.batch(index))
            with frozen(model) as exact:
                fooled = predict(exact, x, y)[0].cpu()
            broken[index[fooled]] = 0
            for i, radius_i in enumerate(radii[1:], 1):
                at = (broken[index] == len(radii)).to(device)
                if at.any():
                    ball = replace(threat, eps=radius_i)
                    draws = Draws(seed, index.to(device)[at])
                    verdict = strike(model, _pgd(ball, steps), ball, x[at], y[at], draws)
                    broken[index[at.cpu()][verdict.fooled.cpu()]] = i
                on_progress(number * (len(radii) - 1) + i, len(batches) * (len(radii) - 1))
    return Curve(
        norm=threat.norm,
        eps=radii,
        broken=tuple(broken.tolist()),
        steps=steps,
        seed=seed,
        model=model_checksum(model),
        data=data_checksum(images, batch_size),
    )


def curve_figure(curves: Mapping[str, Curve], evaluations: Mapping[str, Evaluation] | None = None) -> Figure:
    """Curves with their 95 % bands, by the models' names. evaluations: by the same names, adds each one's worst case at
    its own eps, as a hollow marker with its interval.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    highest = max(curve.eps[-1] for curve in curves.values())
    for i, (name, curve) in enumerate(curves.items()):
        colour, marker = SERIES[i % len(SERIES)], MARKERS[(i + i // len(SERIES)) % len(MARKERS)]
        percent = [100 * a for a in curve.accuracy]
        low, high = zip(*curve.intervals, strict=True)
        axes.fill_between(
            curve.eps, [100 * v for v in low], [100 * v for v in high], color=colour, alpha=0.16, linewidth=0
        )
        axes.plot(
            curve.eps, percent, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name, clip_on=False
        )
        if evaluations and name in evaluations:
            _worst(evaluations[name], axes, colour, marker)
    for eps in sorted({float(e.identity["threat"]["eps"]) for e in (evaluations or {}).values()}):
        axes.axvline(eps, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    ticks = next(iter(curves.values())).eps[::2]
    axes.set(xlim=(-0.02 * highest, 1.02 * highest), ylim=(0, 101), xticks=ticks, yticks=range(0, 101, 20))
    axes.set_xticklabels([radius(e) for e in ticks])
    axes.set_xlabel("eps", color=SOFT)
    axes.set_ylabel("accuracy, %", color=SOFT)
    axes.tick_params(colors=SOFT, length=0, labelsize=9)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    for text in axes.legend(loc="best", frameon=False, labelcolor=INK, fontsize=9).get_texts():
        text.set_parse_math(False)  # a name is a name, also with a $ in it
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
