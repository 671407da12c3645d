"""The paper's Table 7: PGD with a few steps on one network, with and without FN in the attack's forward pass.

The paper claims that FN makes perturbations more effective, because without it part of a step changes the norm of the
features, which changes no prediction. So the same network is attacked twice with the same steps and starts. One attack
uses the logits with FN, the other those without, and the unchanged network judges both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch

from advsphere.analysis.canvas import SERIES, SOFT, canvas, interval_marks, legend, quiet, reference, style
from advsphere.analysis.crafting import OnProgress, silent
from advsphere.analysis.linear_head import HeadParts
from advsphere.attacks import pgd
from advsphere.classifier import frozen
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation.judge import exact_float32, judge
from advsphere.losses import Loss, log_odds
from advsphere.rng import Rng
from advsphere.stats import PairedDifference, paired, wilson
from advsphere.threat import ThreatModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INFERRED = ThreatModel(norm="linf", eps=0.031)
STEP_SIZE = 0.003
"""The paper gives neither the radius nor the step size of its Table 7. These are inferred from its Table 2."""

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The multiples of s in the sweep."""

PAPER = {(1, False): 67.09, (1, True): 62.89, (2, False): 50.37, (2, True): 33.75}
"""{(steps, with FN): accuracy in %} in Table 7, for a WRN-34-10 with standard training on CIFAR-10."""


@dataclass(frozen=True, kw_only=True)
class ShortAttack:
    """One attack at `factor` times s; `resisted` marks the images that the unchanged network still classifies right."""

    steps: int
    fn: bool
    factor: float
    resisted: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        return sum(self.resisted) / len(self.resisted)

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % Wilson interval, which covers only the sampling of images."""
        return wilson(sum(self.resisted), len(self.resisted))


@dataclass(frozen=True, kw_only=True)
class FewSteps:
    """All attacks on one network. `mean_norm` is its mean clean ||z||: s at factor 1, unless the network has FN."""

    attacks: tuple[ShortAttack, ...]
    threat: ThreatModel
    step_size: float
    start: str
    seed: int
    mean_norm: float

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(sorted({attack.steps for attack in self.attacks}))

    @property
    def factors(self) -> tuple[float, ...]:
        return tuple(sorted({attack.factor for attack in self.attacks}))

    def attack(self, steps: int, *, fn: bool, factor: float = 1.0) -> ShortAttack:
        """One of the attacks. Raises KeyError for one that was not run."""
        for attack in self.attacks:
            if (attack.steps, attack.fn, attack.factor) == (steps, fn, factor):
                return attack
        raise KeyError(f"PGD-{steps}, FN {fn}, factor {factor}")

    def gain(self, steps: int, *, factor: float = 1.0) -> PairedDifference:
        """The share of images fooled with FN minus the share fooled without, paired image by image."""
        without, with_ = (self.attack(steps, fn=fn, factor=factor).resisted for fn in (False, True))
        return paired(without, with_)

    def strongest(self, steps: int, *, fn: bool) -> ShortAttack:
        """The attack of the sweep with the lowest accuracy."""
        return min((self.attack(steps, fn=fn, factor=factor) for factor in self.factors), key=lambda a: a.accuracy)


def few_steps(
    parts: HeadParts,
    images: Images,
    *,
    threat: ThreatModel = INFERRED,
    step_size: float = STEP_SIZE,
    steps: Sequence[int] = (1, 2),
    factors: Sequence[float] = FACTORS,
    start: Literal["uniform", "clean"] = "uniform",
    loss: Loss = log_odds,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: OnProgress = silent,
) -> FewSteps:
    """Attack with each number of steps, with FN and without, at each multiple of s.

    The attack without FN is scaled as well, to separate the effect of FN from that of the logit scale. Log-odds have
    the gradient direction of cross-entropy, but their gradient never vanishes. That of the paper's cross-entropy is
    exactly zero on confident images, which has nothing to do with FN but can look like it. s, the mean clean ||z||, is
    our choice, because the paper does not give it. The uniform start is that of the official evaluator. Raises
    UserError if 1 is not among the factors.
    """
    if 1.0 not in factors or not steps:
        raise UserError("a sweep of s needs the factor 1, and at least one number of steps")
    keys = [(k, fn, factor) for k in steps for factor in factors for fn in (False, True)]
    found: dict[tuple[int, bool, float], list[bool]] = {key: [] for key in keys}
    batches, done = torch.arange(len(images)).split(batch_size), 0
    with exact_float32(), frozen(parts.model) as exact:
        for index in batches:
            x, y = images.batch(index)
            rng = Rng(seed, index.to(x.device))
            for k, fn, factor in keys:
                attack = partial(pgd, threat=threat, steps=k, step_size=step_size, start=start, loss=loss, rng=rng)
                verdict = judge(exact, threat, x, attack(parts.path(fn=fn, factor=factor), x, y), y)
                found[k, fn, factor] += (~verdict.fooled).tolist()
                done += 1
                on_progress(done, len(batches) * len(keys))
    attacks = tuple(ShortAttack(steps=k, fn=fn, factor=f, resisted=tuple(hits)) for (k, fn, f), hits in found.items())
    return FewSteps(
        attacks=attacks, threat=threat, step_size=step_size, start=start, seed=seed, mean_norm=parts.mean_norm
    )


def few_steps_figure(found: Mapping[str, FewSteps]) -> Figure:
    """A row for each network: accuracy against the logit scale for attacks with and without FN, and the paired
    difference with its 95 % interval.
    """
    figure, axes = canvas(9.2, 2.9 * len(found), len(found), 2, sharex=True, sharey="col")
    for row, (name, one) in enumerate(found.items()):
        left, right = axes[2 * row : 2 * row + 2]
        for i, k in enumerate(one.steps):
            colour, marker = style(i)
            for fn, label, line, dashes in (
                (False, "without FN", SOFT, (0, (4, 2))),
                (True, "with FN", SERIES[0], "-"),
            ):
                percent = [100 * one.attack(k, fn=fn, factor=factor).accuracy for factor in one.factors]
                (drawn,) = left.plot(one.factors, percent, color=line, linestyle=dashes, label=f"PGD-{k} {label}")
                drawn.set(marker=marker, markersize=5, linewidth=1.5)
            gains = [one.gain(k, factor=factor) for factor in one.factors]
            beside = [factor * 1.06 ** (2 * i - len(one.steps) + 1) for factor in one.factors]
            differences, intervals = [g.difference for g in gains], [(g.low, g.high) for g in gains]
            look = {"markersize": 5, "elinewidth": 1.4, "label": f"PGD-{k}"}
            interval_marks(right, beside, differences, intervals, colour, marker, **look)
        for ax in (left, right):
            reference(ax, x=1)
            ax.set_xscale("log", base=2)
            ax.set_xticks(one.factors, [f"{factor:g}" for factor in one.factors])
            ax.minorticks_off()
        right.axhline(0, color=SOFT, linewidth=0.8)
        x_label = "logit scale in the attack, relative to the network's own" if row == len(found) - 1 else ""
        quiet(left, x_label, "accuracy, %", title=f"{name}: mean ||z|| = {one.mean_norm:.3g}")
        quiet(right, x_label, "fooled more with FN, points")
    axes[1].margins(y=0.3)  # room for the legend, in all rows
    legend(axes[1], loc="upper left", ncols=2)
    legend(axes[0])
    return figure
