"""Measure how much of a gain survives: a baseline and a method under each attack, and the share of the gain that
remains in the worst case.

With one or two checkpoints per arm, conclusions hold for these checkpoints only, and the images are the sample. With
at least three seeds per arm they hold for the method: the seeds are also a sample, and their spread enters every
interval. docs/statistics.md describes the intervals and the words of the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from advsphere.errors import UserError
from advsphere.evaluation.display import html_table
from advsphere.evaluation.ledger import CLEAN
from advsphere.evaluation.results import WORST, Evaluation
from advsphere.evaluation.rows import Row, columns_of
from advsphere.evaluation.unsampled import (
    NOTHING,
    Bounds,
    bound_of,
    covering_difference,
    covering_share,
    left,
)
from advsphere.files import differences
from advsphere.stats import CONFIDENCE, ENOUGH_SEEDS, Columns, holm, images_for

Verdict = Literal[
    "more than half survives",
    "some survives",
    "some survives, less than half",
    "less than half survives",
    "turns into a loss",
    "cannot tell",
    "no gain",
]
SHOWN: dict[Verdict, str] = {
    "more than half survives": "more than half of {} survives",
    "some survives": "some of {} survives",
    "some survives, less than half": "some of {} survives, but less than half",
    "less than half survives": "less than half of {} survives",
    "turns into a loss": "{} turns into a loss",
}
"""What each verdict on a gain says: only what the interval of the share shows."""
HALF = 0.5
COVERS_THE_METHOD = {1: (19, 94), 2: (20, 93)}
"""In how many of 100 simulated cases an interval over images alone contains the gain of the method, at least and at
most, by the number of seeds in each arm; a test compares them with the table in docs/statistics.md."""
BARE = " (s = 1)"


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The method's accuracy minus the baseline's under one attack, in [-1, 1], with its 95 % interval (low, high).

    `baseline` and `method` are the arms' mean accuracies, `p_value` is that of no difference, and `adjusted` is the
    p-value after Holm's correction (1979) for the attacks that were not chosen beforehand. `beyond` is how much lower
    the two accuracies of the worst case would be at most (95 %) if no attack had run on a sample; interval and p-value
    hold for each of these cases.
    """

    name: str
    baseline: float
    method: float
    low: float
    high: float
    p_value: float
    adjusted: float
    beyond: tuple[float, float] = (0.0, 0.0)

    @property
    def difference(self) -> float:
        return self.method - self.baseline

    @property
    def length(self) -> float:
        return self.high - self.low

    @property
    def accuracies(self) -> tuple[str, str]:
        """Both accuracies in percent, "40.7 to 41.2" where attacks on a sample leave it open."""
        of_baseline, of_method = (
            f"{100 * (accuracy - beyond):.1f} to {100 * accuracy:.1f}" if beyond else f"{100 * accuracy:.1f}"
            for accuracy, beyond in zip((self.baseline, self.method), self.beyond, strict=True)
        )
        return of_baseline, of_method

    @property
    def clear(self) -> bool:
        """Whether the difference is significant: its interval excludes 0, also after Holm's correction."""
        return not self.low <= 0 <= self.high and self.adjusted <= 1 - CONFIDENCE


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
        n_for_a_point: The number of images for which the worst case's gain would have an interval of +- 1 point, with
            the same seeds; None if the spread of the seeds is too large for any number.
        sampled: Attacks that ran on a sample of the images in some evaluation. They count in the worst case only.
    """

    n: int
    seeds: tuple[int, int]
    gains: tuple[Gain, ...]
    pgd: str
    share: tuple[float, float, float] | None
    verdict: Verdict
    n_for_a_point: int | None
    sampled: tuple[str, ...] = ()

    @property
    def of_the_method(self) -> bool:
        """Whether there are enough seeds for conclusions on the method instead of these checkpoints."""
        return min(self.seeds) >= ENOUGH_SEEDS

    @property
    def scope(self) -> str:
        """For what the conclusions hold, in one sentence."""
        if self.of_the_method:
            return "Conclusions hold for the method."
        few = "one seed per arm" if max(self.seeds) == 1 else "fewer than three seeds in an arm"
        covers = covers_the_method(min(self.seeds))
        return f"With {few}, conclusions hold for these checkpoints only: {covers} (docs/statistics.md)."

    def gain(self, name: str) -> Gain:
        return next(gain for gain in self.gains if gain.name == name)

    @property
    def left_open(self) -> str:
        """What the attacks that ran on a sample would still take, in one sentence; "" if there are none."""
        if not self.sampled:
            return ""
        names, (of_baseline, of_method) = ", ".join(self.sampled), (100 * share for share in self.gain(WORST).beyond)
        if of_baseline == of_method == 0:
            return f"{names} ran on all images that the other attacks left, and count only in the worst case."
        return (
            f"{names} ran only on images that the other attacks left, and count only in the worst case. On all of "
            f"these they would take at most {of_baseline:.2f} points more from the baseline and "
            f"{of_method:.2f} from the method (95 %); interval and verdict hold whatever they would take."
        )

    def __repr__(self) -> str:
        return f"<Gains: {self.verdict}; {self.n} images, {self.seeds[0]} and {self.seeds[1]} seeds>"

    def _repr_html_(self) -> str:
        """The gain under each attack, and the verdict, for a notebook."""
        title = f"accuracy on {self.n} images in %, differences in points"
        headings = ["", "baseline", "method", "difference", "95 % interval", ""]
        rows = [
            [
                gain.name,
                *gain.accuracies,
                f"{100 * gain.difference:+.1f}",
                f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}",
                "" if gain.clear else "cannot tell",
            ]
            for gain in self.gains
        ]
        below = [f"{self.verdict}: {self.sentence}", *[self.left_open] * bool(self.sampled), self.scope]
        return html_table(title, headings, rows, below)

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
            return f"{differs}, which is not significant; {left}."
        told = SHOWN.get(self.verdict, "the sample cannot tell how much of {} survives").format("it")
        share, low, high = map(in_percent, self.share)
        return f"{gained}; {told}: {left}, {share} % of it ({low} to {high})."


def measure_gains(baseline: Sequence[Evaluation], method: Sequence[Evaluation], *, pgd: str | None = None) -> Gains:
    """Compare two arms evaluated by the same suite, with one evaluation for each seed.

    Args:
        baseline: The evaluations of the baseline.
        method: The evaluations of the method.
        pgd: The attack whose gain is tested; by default the first PGD on cross-entropy at s = 1, as in the paper's
            official code, else the first PGD. A plain head's s is 1, so its rows also count as the rows "(s = 1)".

    Returns:
        The gains under all attacks that the evaluations share and that ran on all images, and the verdict. If attacks
        ran on a sample in some evaluations (a certainty), the worst case and the verdict hold whatever they would do on
        the other images.

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
    sampled = tuple(dict.fromkeys(row.name for one in everything for row in one.attacks if row.sampled))
    names = [name for name in _shared(everything) if name not in sampled]
    arms = {name: (_columns(baseline, name), _columns(method, name)) for name in names}
    chosen = pgd or _default(names)
    if chosen in sampled:
        raise UserError(f"{chosen} ran on a sample of the images; name another attack, or evaluate without a certainty")
    if chosen not in names:
        raise UserError(f"these evaluations do not all have a row {chosen!r}; choose one of {', '.join(names)}")
    bounds = [*map(bound_of, baseline)], [*map(bound_of, method)]
    worst = _gain(WORST, *arms[WORST], bounds)
    gains = _holm([*(_gain(name, *arms[name]) for name in names if name != WORST), worst], chosen)
    share, verdict = what_survives(arms[chosen], arms[WORST], bounds)
    widened = (worst.length - _gain(WORST, *arms[WORST]).length) / 2
    return Gains(
        n=arms[WORST][0].shape[1],
        seeds=(len(baseline), len(method)),
        gains=tuple(gains),
        pgd=chosen,
        share=share,
        verdict=verdict,
        n_for_a_point=images_for(*arms[WORST], half=0.01, beyond=widened),
        sampled=sampled,
    )


def what_survives(
    before: tuple[Columns, Columns], after: tuple[Columns, Columns], bounds: tuple[Bounds, Bounds] = NOTHING
) -> tuple[tuple[float, float, float] | None, Verdict]:
    """The share of a gain that remains in the worst case, and the verdict.

    Args:
        before: (seeds, images) outcomes of the baseline and of the method, under the attack whose gain is tested.
        after: The same in the worst case.
        bounds: What attacks that ran on a sample would still take there, for each seed of both arms.

    Returns:
        The attributes `share` and `verdict` of `Gains`.
    """
    tested, worst = _gain("", *before), _gain(WORST, *after, bounds)
    if not tested.clear or tested.difference < 0:
        return None, "no gain" if tested.clear else "cannot tell"
    found = covering_share(after[::-1], before[::-1], bounds[::-1])
    share = found.value, found.low, found.high
    return share, _verdict(worst, *share[1:])


def _verdict(worst: Gain, low: float, high: float) -> Verdict:
    some = low > 0 and worst.clear
    if some and low > HALF:
        return "more than half survives"
    if high < 0 and worst.clear:
        return "turns into a loss"
    if high < HALF:
        return "some survives, less than half" if some else "less than half survives"
    return "some survives" if some else "cannot tell"


def _shared(evaluations: Sequence[Evaluation]) -> list[str]:
    """The names of the rows that all evaluations have."""
    longest = max(evaluations, key=lambda e: len(e.rows))
    return [row.name for row in longest.rows if all(row_for(e, row.name) is not None for e in evaluations)]


def row_for(evaluation: Evaluation, name: str) -> Row | None:
    """The row with that name; None if that attack did not run. A plain head's s is 1, so its rows also count as the
    rows "(s = 1)".
    """
    own = {row.name: row for row in evaluation.rows if row.ran}
    plain = own.get(name.removesuffix(BARE)) if evaluation.identity["model"]["scale"] == 1.0 else None
    return own.get(name, plain)


def _columns(evaluations: Sequence[Evaluation], name: str) -> Columns:
    return columns_of([row for e in evaluations if (row := row_for(e, name)) is not None])


def _default(names: Sequence[str]) -> str:
    bare, pgd = ([n for n in names if n.startswith("PGD") and n.endswith(end)] for end in (BARE, ""))
    if not (bare or pgd):
        raise UserError(f"none of these rows is a PGD attack: {', '.join(names)}; name the attack whose gain is tested")
    return (bare or pgd)[0]


def _gain(name: str, baseline: Columns, method: Columns, bounds: tuple[Bounds, Bounds] = NOTHING) -> Gain:
    """The difference of two arms, its interval and its test."""
    found, p = covering_difference(method, baseline, bounds[::-1])
    of_baseline, of_method = (
        sum(left(one, 1 - CONFIDENCE)) / arm.size for one, arm in zip(bounds, (baseline, method), strict=True)
    )
    return Gain(
        name=name,
        baseline=float(baseline.mean()),
        method=float(method.mean()),
        low=found.low,
        high=found.high,
        p_value=p,
        adjusted=p,
        beyond=(of_baseline, of_method),
    )


def _holm(gains: Sequence[Gain], chosen: str) -> list[Gain]:
    """The gains with Holm's correction over the attacks. Clean, the worst case and the attack whose gain is tested are
    chosen before the comparison, so each is tested alone.
    """
    attacks = [g for g in gains if g.name not in (CLEAN, WORST, chosen)]
    adjusted = dict(zip([g.name for g in attacks], holm([g.p_value for g in attacks]), strict=True))
    return [replace(gain, adjusted=adjusted.get(gain.name, gain.p_value)) for gain in gains]


def covers_the_method(seeds: int) -> str:
    """How well an interval over images alone, with so many seeds in each arm, covers the method."""
    low, high = COVERS_THE_METHOD[seeds]
    return f"an interval over images alone contains the gain of a method in {low} to {high} % of simulated cases"


def in_percent(share: float) -> str:
    """A share of a gain in whole percent."""
    return f"{100 * share:z.0f}" if abs(share) < 10 else "below -1000" if share < 0 else "over 1000"


def _points(gain: Gain) -> str:
    return f"{100 * gain.difference:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
