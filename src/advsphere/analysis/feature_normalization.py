"""The paper's Table 7: a few steps of PGD on a network, with FN on the attack's path only.

FN claims to make perturbations more effective: without it, part of a step goes into the norm of the features, which
changes no prediction. So the same network is attacked twice, by the same steps from the same starts; one attack sees
the logits with FN, the other without. Success is judged by the untouched network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from advsphere.analysis.angles import HeadParts, split_head
from advsphere.analysis.canvas import MARKERS, SERIES, SOFT, canvas, legend, quiet
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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INFERRED = ThreatModel(norm="linf", eps=0.031)
STEP_SIZE = 0.003
"""The paper gives neither radius nor step for its Table 7; these are inferred, from its Table 2."""

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""What s is multiplied with, for the sweep."""

PAPER = {(1, False): 67.09, (1, True): 62.89, (2, False): 50.37, (2, True): 33.75}
"""{(steps, with FN): accuracy in %} of Table 7, of a standardly trained WRN-34-10 on CIFAR-10."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One attack. factor: of s. resisted: for each image, whether the untouched network still classifies it as
    labelled.
    """

    steps: int
    fn: bool
    factor: float
    resisted: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        return sum(self.resisted) / len(self.resisted)

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % Wilson interval, for the sample alone."""
        return wilson(sum(self.resisted), len(self.resisted))


@dataclass(frozen=True, kw_only=True)
class FewSteps:
    """All attacks of one network. radius: its mean clean ||z||, which is s at factor 1 unless it has FN of its own."""

    cells: tuple[Cell, ...]
    threat: ThreatModel
    step_size: float
    start: str
    seed: int
    radius: float

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(sorted({cell.steps for cell in self.cells}))

    @property
    def factors(self) -> tuple[float, ...]:
        return tuple(sorted({cell.factor for cell in self.cells}))

    def cell(self, steps: int, *, fn: bool, factor: float = 1.0) -> Cell:
        """One of them. Raises KeyError for an attack that was not run."""
        for cell in self.cells:
            if (cell.steps, cell.fn, cell.factor) == (steps, fn, factor):
                return cell
        raise KeyError(f"PGD-{steps}, FN {fn}, factor {factor}")

    def gain(self, steps: int, *, factor: float = 1.0) -> PairedDifference:
        """How many more images FN fools, as a share of all; paired, image by image."""
        without, with_ = (self.cell(steps, fn=fn, factor=factor).resisted for fn in (False, True))
        return paired(without, with_)

    def strongest(self, steps: int, *, fn: bool) -> Cell:
        """The one of the sweep that leaves the fewest images."""
        return min((self.cell(steps, fn=fn, factor=factor) for factor in self.factors), key=lambda cell: cell.accuracy)


def few_steps(
    anatomy: HeadParts,
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
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> FewSteps:
    """Attack with each number of steps, with FN and without, at each multiple of s.

    loss: of s W'z/||z|| + b with FN, and of factor * W'z + b without, so that a gain by FN can be told from one by the
    temperature alone. Log-odds have cross-entropy's direction and no gradient that is exactly zero; the paper's
    cross-entropy has one on confident images, which is no merit of FN but can look like one. s, the mean clean ||z||
    times the factor, is our choice: the paper does not say. start: uniform, as in the official evaluator. on_progress:
    told (batches done, in all). Raises UserError where 1 is not among the factors.
    """
    if 1.0 not in factors or not steps:
        raise UserError("a sweep of s needs its middle, the factor 1, and at least one number of steps")
    keys = [(k, fn, factor) for k in steps for factor in factors for fn in (False, True)]
    found: dict[tuple[int, bool, float], list[bool]] = {key: [] for key in keys}
    batches, done = torch.arange(len(images)).split(batch_size), 0
    with exact_float32(), frozen(anatomy.model) as exact:
        for index in batches:
            x, y = images.batch(index)
            rng = Rng(seed, index.to(x.device))
            for k, fn, factor in keys:
                attack = partial(pgd, threat=threat, steps=k, step_size=step_size, start=start, loss=loss, rng=rng)
                verdict = judge(exact, threat, x, attack(anatomy.path(fn=fn, factor=factor), x, y), y)
                found[k, fn, factor] += (~verdict.fooled).tolist()
                done += 1
                on_progress(done, len(batches) * len(keys))
    cells = tuple(Cell(steps=k, fn=fn, factor=f, resisted=tuple(hits)) for (k, fn, f), hits in found.items())
    return FewSteps(cells=cells, threat=threat, step_size=step_size, start=start, seed=seed, radius=anatomy.radius)


def table7(
    model: nn.Module, images: Images, *, head: str | None = None, seed: int = 0, batch_size: int = 250
) -> FewSteps:
    """Table 7 of any network in one call; arguments as in `split_head` and `few_steps`."""
    anatomy = split_head(model, images, head=head, batch_size=batch_size)
    return few_steps(anatomy, images, seed=seed, batch_size=batch_size)


def few_steps_figure(found: Mapping[str, FewSteps]) -> Figure:
    """By the networks' names, a row each: accuracy under a few steps against the logit scale, with FN on the attack's
    path and without; and the paired difference with its 95 % interval.
    """
    figure, axes = canvas(9.2, 2.9 * len(found), len(found), 2, sharex=True, sharey="col")
    for row, (name, one) in enumerate(found.items()):
        left, right = axes[2 * row : 2 * row + 2]
        for (i, k), fn in product(enumerate(one.steps), (False, True)):
            left.plot(
                one.factors,
                [100 * one.cell(k, fn=fn, factor=factor).accuracy for factor in one.factors],
                color=SERIES[0] if fn else SOFT,
                linestyle="-" if fn else (0, (4, 2)),
                linewidth=1.5,
                marker=MARKERS[i],
                markersize=5,
                label=f"PGD-{k} {'with' if fn else 'without'} FN",
            )
        for i, k in enumerate(one.steps):
            _gains(right, one, k, i)
        for ax in (left, right):
            ax.axvline(1, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
            ax.set_xscale("log", base=2)
            ax.set_xticks(one.factors, [f"{factor:g}" for factor in one.factors])
            ax.minorticks_off()
        right.axhline(0, color=SOFT, linewidth=0.8)
        x_label = "logit scale in the attack, over the network's own" if row == len(found) - 1 else ""
        quiet(left, x_label, "accuracy, %", title=f"{name}: mean ||z|| = {one.radius:.3g}")
        quiet(right, x_label, "fooled more with FN, points")
    axes[1].margins(y=0.3)  # room for the legend, in all rows
    legend(axes[1], loc="upper left", ncols=2)
    legend(axes[0])
    return figure


def _gains(axes: Axes, one: FewSteps, steps: int, number: int) -> None:
    """The paired differences of one number of steps, a little beside each other."""
    gains = [one.gain(steps, factor=factor) for factor in one.factors]
    axes.errorbar(
        [factor * 1.06 ** (2 * number - len(one.steps) + 1) for factor in one.factors],
        [100 * gain.difference for gain in gains],
        yerr=[
            [100 * (gain.difference - gain.low) for gain in gains],
            [100 * (gain.high - gain.difference) for gain in gains],
        ],
        color=SERIES[number],
        marker=MARKERS[number],
        markersize=5,
        linewidth=0,
        elinewidth=1.4,
        label=f"PGD-{steps}",
    )
