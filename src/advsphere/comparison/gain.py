"""Measure how much of a gain survives: a baseline and a method under each attack, and the share of the gain that
remains in the worst case.

With one checkpoint per arm, conclusions hold for these checkpoints only, and the images are the sample. With at least
three seeds per arm they hold for the method: the seeds are also a sample, and their spread enters every interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from advsphere.errors import UserError
from advsphere.evaluation.ledger import CLEAN
from advsphere.evaluation.results import WORST, Evaluation
from advsphere.evaluation.rows import Row
from advsphere.files import differences
from advsphere.stats import CONFIDENCE, ENOUGH_SEEDS, Columns, bootstrap, difference_of_arms, holm

Verdict = Literal["survives", "partly", "does not survive", "cannot tell", "no gain"]
REPLICATES = 10_000
HALF, WHOLE = 0.5, 0.9
"""Shares of a gain. A gain survives if its share is above the first and may reach the second."""
BARE = " (s = 1)"


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The method's accuracy minus the baseline's under one attack, in [-1, 1], with its 95 % interval (low, high).

    `baseline` and `method` are the arms' mean accuracies, `p_value` is that of no difference, and `adjusted` is the
    p-value after Holm's correction (1979) for several attacks.
    """

    name: str
    baseline: float
    method: float
    low: float
    high: float
    p_value: float
    adjusted: float

    @property
    def difference(self) -> float:
        return self.method - self.baseline

    @property
    def clear(self) -> bool:
        """Whether the difference is significant, also after Holm's correction."""
        return self.apart and self.adjusted <= 1 - CONFIDENCE

    @property
    def apart(self) -> bool:
        """Whether the interval excludes 0, as if this attack were the only one."""
        return not self.low <= 0 <= self.high


@dataclass(frozen=True, kw_only=True)
class Gains:
    """The result of `measure_gains`.

    Attributes:
        n: The number of images.
        seeds: The number of seeds of the baseline and of the method.
        gains: The gain under each attack, the worst case last.
        pgd: The attack whose gain is tested.
        share: The share of that gain that remains in the worst case (share, low, high); None if the gain itself is not
            significant.
        verdict: The verdict, which depends on the intervals alone.
        n_for_a_point: The number of images for which the worst case's gain would have an interval of +- 1 point.
    """

    n: int
    seeds: tuple[int, int]
    gains: tuple[Gain, ...]
    pgd: str
    share: tuple[float, float, float] | None
    verdict: Verdict
    n_for_a_point: int

    @property
    def of_the_method(self) -> bool:
        """Whether there are enough seeds for conclusions on the method instead of these checkpoints."""
        return min(self.seeds) >= ENOUGH_SEEDS

    def gain(self, name: str) -> Gain:
        return next(gain for gain in self.gains if gain.name == name)

    @property
    def sentence(self) -> str:
        """The verdict in one plain sentence."""
        before, after = self.gain(self.pgd), self.gain(WORST)
        one = self.of_the_method or self.seeds[1] == 1
        who = "the method" if self.of_the_method else "the method's checkpoint" + "s" * (not one)
        gained = f"Under {self.pgd} {who} gain{'s' * one} {_points(before)}"
        differs = f"Under {self.pgd} {who} differ{'s' * one} by {_points(before)}"
        left = f"in the worst case {_points(after)}"
        if self.verdict == "no gain":
            return f"{differs}: there is no gain to survive; {left}."
        if self.share is None:
            why = " after Holm's correction" if before.apart else ""
            return f"{differs}, which is not significant{why}; {left}."
        share = "{:.0f} % of it ({:.0f} to {:.0f})".format(*(100 * part for part in self.share))
        ends = {
            "survives": f"the gain survives: {left}, {share}",
            "partly": f"a part of it survives: {left}, {share}",
            "does not survive": f"that does not survive: {left}, {share}",
            "cannot tell": f"the sample cannot tell how much survives: {left}, {share}",
        }
        return f"{gained}; {ends[self.verdict]}."


def measure_gains(baseline: Sequence[Evaluation], method: Sequence[Evaluation], *, pgd: str | None = None) -> Gains:
    """Compare two arms evaluated by the same suite, with one evaluation for each seed.

    Args:
        baseline: The evaluations of the baseline.
        method: The evaluations of the method.
        pgd: The attack whose gain is tested; by default the first PGD on cross-entropy at s = 1, as in the paper's
            official code, else the first PGD. A plain head's s is 1, so its rows also count as the rows "(s = 1)".

    Returns:
        The gains under all attacks that the evaluations share, and the verdict.

    Raises:
        UserError: If images, threat or rows differ, or an arm contains a checkpoint twice.
    """
    everything = [*baseline, *method]
    for arm in (baseline, method):
        if len({one.identity["model"]["checksum"] for one in arm}) < len(arm):
            raise UserError("one arm contains the same checkpoint twice; give another seed")
    for other in everything[1:]:
        for key in ("data", "threat"):
            if changed := differences(everything[0].identity[key], other.identity[key], key):
                raise UserError(f"these evaluations can't be compared: {changed[0]}; evaluate all in the same way")
    names = _shared(everything)
    arms = {name: (_columns(baseline, name), _columns(method, name)) for name in names}
    gains = _holm([_gain(name, *arms[name]) for name in names])
    chosen = pgd or _default(names)
    if chosen not in names:
        raise UserError(f"these evaluations do not all have a row {chosen!r}; choose one of {', '.join(names)}")
    before, after = (next(g for g in gains if g.name == name) for name in (chosen, WORST))
    share = _share(arms[chosen], arms[WORST]) if before.difference > 0 and before.clear else None
    half = (after.high - after.low) / 2
    return Gains(
        n=arms[WORST][0].shape[1],
        seeds=(len(baseline), len(method)),
        gains=tuple(gains),
        pgd=chosen,
        share=share,
        verdict=_verdict(before, after, share),
        n_for_a_point=math.ceil(arms[WORST][0].shape[1] * (half / 0.01) ** 2),
    )


def _verdict(before: Gain, after: Gain, share: tuple[float, float, float] | None) -> Verdict:
    if before.difference < 0 and before.clear:
        return "no gain"
    if share is None:
        return "cannot tell"
    _, low, high = share
    if after.difference > 0 and after.clear:
        return "partly" if high < WHOLE else "survives" if low > HALF else "cannot tell"
    return "does not survive" if high < HALF else "cannot tell"


def _shared(evaluations: Sequence[Evaluation]) -> list[str]:
    """The names of the rows that all evaluations have."""
    longest = max(evaluations, key=lambda e: len(e.rows))
    return [row.name for row in longest.rows if all(row_for(e, row.name) is not None for e in evaluations)]


def row_for(evaluation: Evaluation, name: str) -> Row | None:
    """The row with that name, or None. A plain head's s is 1, so its rows also count as the rows "(s = 1)"."""
    own = {row.name: row for row in evaluation.rows}
    plain = own.get(name.removesuffix(BARE)) if evaluation.identity["model"]["scale"] == 1.0 else None
    return own.get(name, plain)


def _columns(evaluations: Sequence[Evaluation], name: str) -> Columns:
    rows = [row for e in evaluations if (row := row_for(e, name)) is not None]
    return np.array([[c == "1" for c in row.outcomes] for row in rows], dtype=float)


def _default(names: Sequence[str]) -> str:
    bare, pgd = ([n for n in names if n.startswith("PGD") and n.endswith(end)] for end in (BARE, ""))
    if not (bare or pgd):
        raise UserError(f"none of these rows is a PGD attack: {', '.join(names)}; name the attack whose gain is tested")
    return (bare or pgd)[0]


def _gain(name: str, baseline: Columns, method: Columns) -> Gain:
    """The difference of two arms, its interval and its test."""
    found, p = difference_of_arms(method, baseline)
    accuracies = {"baseline": float(baseline.mean()), "method": float(method.mean())}
    return Gain(name=name, **accuracies, low=found.low, high=found.high, p_value=p, adjusted=p)


def _holm(gains: Sequence[Gain]) -> list[Gain]:
    """The gains with Holm's correction over the attacks; clean and worst case are tested alone."""
    attacks = [g for g in gains if g.name not in (CLEAN, WORST)]
    adjusted = dict(zip([g.name for g in attacks], holm([g.p_value for g in attacks]), strict=True))
    return [replace(gain, adjusted=adjusted.get(gain.name, gain.p_value)) for gain in gains]


def _share(before: tuple[Columns, Columns], after: tuple[Columns, Columns]) -> tuple[float, float, float]:
    """The worst case's gain divided by the PGD gain, with a percentile bootstrap interval over images and, if there are
    enough, seeds.
    """
    sizes = [len(arm) for arm in before]
    # Images with the same outcomes everywhere are interchangeable, so only the count of each kind is drawn.
    kinds, counts = np.unique(np.concatenate([*before, *after]), axis=1, return_counts=True)
    parts = np.split(kinds, np.cumsum([*sizes, *sizes])[:-1])

    def ratio(images: Tensor, *seeds: Tensor) -> Tensor:
        """The share of each replicate, from how often each kind of image and each seed was drawn."""
        drawn = [of_arm.numpy() for of_arm in seeds] or [np.ones((1, size)) for size in sizes]
        of_baseline, of_method = (of_arm / size for of_arm, size in zip(drawn, sizes, strict=True))
        weights = images.numpy() / counts.sum()
        gained, left = (
            ((of_method @ method - of_baseline @ baseline) * weights).sum(1)
            for baseline, method in (parts[:2], parts[2:])
        )
        # A replicate without a gain has no share. There are few, and they count at the upper end.
        return torch.from_numpy(np.where(gained > 0, left / np.where(gained > 0, gained, 1.0), np.inf))

    seeds = [[1] * size for size in sizes] if min(sizes) >= ENOUGH_SEEDS else []
    found = bootstrap(ratio, counts.tolist(), *seeds, repeats=REPLICATES)
    gain, rest = (float(arm[1].mean() - arm[0].mean()) for arm in (before, after))
    return rest / gain, found.low, found.high


def _points(gain: Gain) -> str:
    return f"{100 * gain.difference:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
