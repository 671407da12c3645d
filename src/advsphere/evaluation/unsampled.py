"""Two arms whose worst case rests on a sample: intervals and tests that hold whatever the other images would do.

The outcomes of an evaluation with a certainty are an upper bound: so many more images may fall as its `Bound` says.
Each end of an interval is that of its least favourable completion: the most images fall in one arm, and none in the
other. Either end adds two limits, one of the images at (1 - confidence) / 2 and one of the sample. The order in which a
sample is drawn does not depend on the images, so both are rarely too low at once, and their sum is too low at most as
often as each of them. docs/statistics.md has the argument, and a simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from advsphere.errors import UserError
from advsphere.evaluation.results import WORST, Evaluation
from advsphere.evaluation.rows import Row, columns_of
from advsphere.evaluation.sampling import Bound
from advsphere.files import differences
from advsphere.stats import (
    CONFIDENCE,
    Columns,
    Estimate,
    PairedDifference,
    difference_of_arms,
    paired,
    share_of_difference,
)
from advsphere.typed import typed

Bounds = Sequence[Bound | int]
"""For each seed of an arm what a sample bounds, or a number of images that may fall: 0 if every attack ran on all."""
NOTHING: tuple[Bounds, Bounds] = ((), ())
SMALLEST = 1e-300


@typed
def compare(first: Evaluation, second: Evaluation, name: str = WORST) -> PairedDifference:
    """Compare two models on the same images.

    Args:
        first: An evaluation.
        second: Another one, of the same images under the same threat.
        name: The row to compare.

    Returns:
        The paired difference, first model minus second. If attacks of one of them ran on a sample, interval and p-value
        of the worst case hold whatever the other images would do.

    Raises:
        UserError: If images or threat differ, one of them lacks the row, or that attack ran on a sample.
    """
    for key in ("data", "threat"):
        if changed := differences(first.identity[key], second.identity[key], key):
            raise UserError(f"these evaluations can't be compared: {changed[0]}; evaluate both in the same way")
    rows = first.row(name), second.row(name)
    if any(row.sampled for row in rows):
        raise UserError(f"{name} ran only on images that other attacks left; compare the worst case")
    return paired_rows(*rows, ([bound_of(first)], [bound_of(second)]) if name == WORST else NOTHING)


def bound_of(evaluation: Evaluation) -> Bound | int:
    """What sampled attacks would still take: its bound, or all that they have not reached if the time was over."""
    sampled = any(row.sampled for row in evaluation.attacks)
    return evaluation.bound or (evaluation.worst.unreached or 0) * sampled


def paired_rows(first: Row, second: Row, bounds: tuple[Bounds, Bounds] = NOTHING) -> PairedDifference:
    """`stats.paired` of two rows of the same images, whose interval and test hold for all that bounds leave open."""
    found = paired(first.right, second.right)
    if not drawn(bounds):
        return found
    widened, p = covering_difference(columns_of([first]), columns_of([second]), bounds)
    return replace(found, low=widened.low, high=widened.high, p_value=p)


def left(bounds: Bounds, error: float) -> list[int]:
    """How many more images of each seed would fall, at most. The probability that any is too low is `error`."""
    samples = sum(not isinstance(one, int) and one.sampled < one.survivors for one in bounds)
    return [one if isinstance(one, int) else one.limit(error / max(1, samples)) for one in bounds]


def covering_difference(first: Columns, second: Columns, bounds: tuple[Bounds, Bounds]) -> tuple[Estimate, float]:
    """`stats.difference_of_arms`, whose interval and p-value hold whatever the images outside the samples would do.

    The p-value is the smallest error at which the difference is clear of 0, to 1 %.
    """
    found = [difference_of_arms(*pair) for pair in _completions(first, second, bounds, 1 - CONFIDENCE)]
    estimate, p = _widened([one for one, _ in found]), found[0][1]
    if not drawn(bounds):
        return estimate, p
    clear, unclear = 1.0, max(p, SMALLEST)
    while clear > 1.01 * unclear:
        error = math.sqrt(clear * unclear)
        clear, unclear = (error, unclear) if _p_value(first, second, bounds, error) <= error else (clear, error)
    return estimate, clear


def covering_share(
    part: tuple[Columns, Columns], whole: tuple[Columns, Columns], bounds: tuple[Bounds, Bounds]
) -> Estimate:
    """`stats.share_of_difference`, which holds whatever the images outside the samples of `part` would do."""
    pairs = _completions(*part, bounds, 1 - CONFIDENCE)
    return _widened([share_of_difference(pair, whole) for pair in pairs])


def _widened(found: Sequence[Estimate]) -> Estimate:
    """The first estimate, with an interval that contains all of them."""
    return replace(found[0], low=min(one.low for one in found), high=max(one.high for one in found))


def _p_value(first: Columns, second: Columns, bounds: tuple[Bounds, Bounds], error: float) -> float:
    """The largest of all completions, with the limits of the samples at this error, 1 if the difference may be 0."""
    found = [difference_of_arms(*pair) for pair in _completions(first, second, bounds, error)]
    values = [one.value for one, _ in found]
    return 1.0 if min(values) <= 0 <= max(values) else max(p for _, p in found)


def _completions(
    first: Columns, second: Columns, bounds: tuple[Bounds, Bounds], error: float
) -> list[tuple[Columns, Columns]]:
    """The outcomes as they are, and with samples those of the least and of the greatest difference."""
    if not drawn(bounds):
        return [(first, second)]
    of_first, of_second = (left(one, error / 2) for one in bounds)
    return [(first, second), (_fallen(first, of_first, second), second), (first, _fallen(second, of_second, first))]


def _fallen(arm: Columns, counts: Sequence[int], other: Columns) -> Columns:
    """The arm after so many images have fallen in each seed: those first whose fall widens the interval most, because
    the arm is already behind the other one there.
    """
    found = arm.copy()
    for row, count in zip(found, counts, strict=False):
        order = np.argsort(found.mean(0) - other.mean(0), kind="stable")
        row[order[row[order] == 1][:count]] = 0
    return found


def drawn(bounds: tuple[Bounds, Bounds]) -> bool:
    """Whether an image of either arm was left out of a sample."""
    return any(left([one], 0.0) != [0] for arm in bounds for one in arm)
