"""Gains between evaluations of which attacks ran on a sample: whatever the other images would do, they hold."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advsphere.comparison.gain import measure_gains
from advsphere.errors import UserError
from advsphere.evaluation import WORST, Evaluation, compare
from advsphere.evaluation.sampling import Bound
from advsphere.evaluation.unsampled import bound_of, covering_difference, covering_share, left
from advsphere.looks import looks
from advsphere.stats import Columns, difference_of_arms, mcnemar, paired, share_of_difference
from tests.comparison.test_gain import BASE, N, arm
from tests.report import made


def bound(survivors: int, certainty: float, n: int = N) -> Bound:
    """The bound of a sample of which none fell, at the first look."""
    size = next(looks(survivors, math.floor(certainty * n / 100))).size
    known = Bound(certainty=certainty, survivors=survivors, sampled=size, fell=0, most=0, n=n, confidence=0.95,
                  looks=((size, 0),))  # fmt: skip
    return replace(known, most=known.limit(0.05))


def sampled(evaluation: Evaluation, certainty: float) -> Evaluation:
    """The same outcomes, of which the last attack is known on a sample alone."""
    proof = made.row("Square", evaluation.worst.outcomes, {"proof": True})
    attacks = (*evaluation.attacks, proof)
    return replace(evaluation, attacks=attacks, bound=bound(evaluation.worst.k, certainty, evaluation.worst.n))


def outcomes(evaluation: Evaluation) -> list[bool]:
    return [c == "1" for c in evaluation.worst.outcomes]


@pytest.mark.parametrize(("certainty", "verdict"), [(0.0, "more than half survives"), (1.5, "more than half survives"),
                                                    (3.0, "some survives"), (8.0, "cannot tell")])  # fmt: skip
def test_a_bound_weakens_a_verdict(certainty: float, verdict: str) -> None:
    """All of a gain of 10 points survives the search. The columns are nested, so an image of the method that falls is
    one that the baseline alone then gets right.
    """
    base, method = arm(*BASE), sampled(arm(0.8, 0.6, 0.55), certainty)
    found = measure_gains([base], [method])
    worst, known = found.gain(WORST), method.bound
    assert known is not None and found.verdict == verdict
    most = max(k for k in range(known.survivors - known.sampled + 1) if share_without(known, k) > 0.9 * 0.025)
    ends = [
        paired(method_outcomes, outcomes(base)) for method_outcomes in (outcomes(method), fallen(method, base, most))
    ]
    assert (worst.low, worst.high) == (ends[1].low, ends[0].high)
    assert worst.difference == pytest.approx(ends[0].difference) and worst.beyond == (0.0, known.most / N)
    assert found.share is not None and (found.sampled == ("Square",)) and "Square" in found.left_open
    if certainty == 0.0:
        whole = measure_gains([base], [arm(0.8, 0.6, 0.55)])
        assert replace(found, sampled=()) == whole and whole.left_open == ""
    assert [gain.name for gain in found.gains] == ["clean", "PGD-50", WORST]


def share_without(known: Bound, having: int) -> float:
    """The probability that no image of the sample would fall, if so many of the survivors would, in whole numbers."""
    return math.comb(known.survivors - having, known.sampled) / math.comb(known.survivors, known.sampled)


def fallen(method: Evaluation, base: Evaluation, count: int) -> list[bool]:
    both = [i for i, pair in enumerate(zip(outcomes(method), outcomes(base), strict=True)) if all(pair)]
    return [one and i not in both[:count] for i, one in enumerate(outcomes(method))]


def test_the_p_value_is_the_smallest_error_that_refutes_every_completion() -> None:
    base, method = arm(*BASE), sampled(arm(0.8, 0.6, 0.48), 1.0)
    p = measure_gains([base], [method]).gain(WORST).p_value
    pair, known = compare(method, base), method.bound
    assert known is not None and p == pair.p_value and pair.only_first - pair.only_second == 1000 * pair.difference

    def refuted(error: float) -> bool:
        return mcnemar(pair.only_first, pair.only_second + known.limit(error / 2)) <= error

    assert refuted(p) and not refuted(p / 1.02) and p > 3 * compare(replace(method, bound=None), base).p_value


def test_attacks_on_a_sample_are_not_compared_one_by_one() -> None:
    base, method = arm(*BASE), sampled(arm(0.8, 0.6, 0.55), 1.0)
    with pytest.raises(UserError, match="Square ran on a sample"):
        measure_gains([sampled(base, 1.0)], [method], pgd="Square")
    with pytest.raises(UserError, match="Square ran only on images"):
        compare(method, sampled(base, 1.0), "Square")
    assert compare(method, base, "PGD-50") == compare(arm(0.8, 0.6, 0.55), base, "PGD-50")


def test_a_sample_that_the_time_cut_bounds_nothing() -> None:
    """All images that were not reached may fall."""
    base, method = arm(*BASE), sampled(arm(0.8, 0.6, 0.55), 1.0)
    cut = replace(method, bound=None, worst=replace(method.worst, unreached=70))
    found = measure_gains([base], [cut]).gain(WORST)
    assert found.beyond == (0.0, 0.07) and found.low == paired(fallen(method, base, 70), outcomes(base)).low
    assert compare(cut, base).low == found.low and bound_of(base) == 0


def test_the_number_of_images_counts_the_bound_too() -> None:
    base, method = sampled(arm(*BASE), 1.0), sampled(arm(0.8, 0.6, 0.55), 1.0)
    found = measure_gains([base], [method])
    half = (found.gain(WORST).high - found.gain(WORST).low) / 2
    assert found.n_for_a_point == pytest.approx(N * (half / 0.01) ** 2, rel=0.05)


def test_a_seed_s_bound_holds_for_all_seeds_together() -> None:
    base = [arm(0.8, 0.5, 0.45, seed=seed) for seed in range(3)]
    method = [sampled(arm(0.8, 0.6, 0.55, seed=10 + seed), 1.0) for seed in range(3)]
    found, whole = (measure_gains(base, [replace(e, bound=b) for e, b in zip(method, bounds, strict=True)])
                    for bounds in ([e.bound for e in method], [None] * 3))  # fmt: skip
    counts = left([*map(bound_of, method)], 0.05)
    assert counts == [e.bound.limit(0.05 / 3) for e in method if e.bound]
    assert found.gain(WORST).beyond == (0.0, pytest.approx(sum(counts) / 3 / N))
    assert found.gain(WORST).high == whole.gain(WORST).high
    assert found.gain(WORST).low < whole.gain(WORST).low - sum(counts) / 3 / N


@st.composite
def pairs(draw: st.DrawFn) -> dict[str, Any]:
    """Columns of two arms of one seed, their bounds, and falls that these allow."""
    n = draw(st.integers(6, 60))
    columns = [np.array([draw(st.lists(st.booleans(), min_size=n, max_size=n))], dtype=float) for _ in range(4)]
    before = columns[0], columns[1]
    after = tuple(np.minimum(one, other) for one, other in zip(before, columns[2:], strict=True))
    bounds = [bound(int(one.sum()), draw(st.sampled_from([0.0, 5.0, 20.0, 60.0])), n) for one in after]
    completed = []
    for one, known in zip(after, bounds, strict=True):
        standing = np.flatnonzero(one[0])
        count = draw(st.integers(0, known.limit(0.025)))
        completed.append(one.copy())
        completed[-1][0, draw(st.permutations(standing.tolist()))[:count]] = 0
    return {"before": before, "after": after, "bounds": ([bounds[0]], [bounds[1]]), "completed": tuple(completed)}


@settings(max_examples=150, deadline=None)
@given(pairs())
def test_an_interval_contains_that_of_every_completion(case: dict[str, Any]) -> None:
    completed: tuple[Columns, Columns] = case["completed"]
    after: tuple[Columns, Columns] = case["after"]
    found, p = covering_difference(*after, case["bounds"])
    one, of_one = difference_of_arms(*completed)
    assert found.low <= one.low + 1e-12 and one.high <= found.high + 1e-12
    taken = [int(a.sum() - b.sum()) for a, b in zip(after, completed, strict=True)]
    if all(k <= left(bounds, p / 2)[0] for k, bounds in zip(taken, case["bounds"], strict=True)):
        assert of_one <= p + 1e-12
    whole, _ = difference_of_arms(*case["before"])
    if not whole.cannot_tell:
        most = covering_share(after, case["before"], case["bounds"])
        part = share_of_difference(completed, case["before"])
        assert most.low <= part.low + 1e-9 and part.high <= most.high + 1e-9
