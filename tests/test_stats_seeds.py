"""Intervals over images and seeds, against what the definitions and other packages give."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t, ttest_ind, ttest_rel

from advsphere.stats import difference_of_arms, images_for, mean_over_seeds, share_of_difference


def arm(seeds: int, n: int, level: float, *, seed: int, spread: float = 0.1) -> np.ndarray:
    """Outcomes of one arm; the images' difficulties are the same in every arm."""
    difficulty = np.random.default_rng(0).standard_normal(n)
    rng = np.random.default_rng(seed)
    of_seed = spread * rng.standard_normal((seeds, 1))
    return (level + of_seed + 0.5 * rng.standard_normal((seeds, n)) > difficulty).astype(float)


def test_two_seeds_have_students_paired_interval_over_images() -> None:
    first, second = arm(2, 300, 0.3, seed=1), arm(2, 300, 0.0, seed=2)
    found, p = difference_of_arms(first, second)
    exact = ttest_rel(first.mean(0), second.mean(0))
    assert (found.low, found.high) == pytest.approx(tuple(exact.confidence_interval(0.95)))
    assert p == pytest.approx(exact.pvalue)


def test_three_seeds_have_satterthwaites_degrees_of_freedom_of_the_sum() -> None:
    first, second = arm(3, 300, 0.3, seed=1), arm(4, 300, 0.0, seed=2)
    found, p = difference_of_arms(first, second)
    difference = first.mean(0) - second.mean(0)
    parts = [
        (difference.var(ddof=1) / 300, 299),
        (first.mean(1).var(ddof=1) / 3, 2),
        (second.mean(1).var(ddof=1) / 4, 3),
    ]
    variance = sum(v for v, _ in parts)
    freedom = variance**2 / sum(v * v / f for v, f in parts)
    assert found.high - found.value == pytest.approx(t.ppf(0.975, freedom) * math.sqrt(variance))
    assert p == pytest.approx(2 * t.sf(found.value / math.sqrt(variance), freedom))
    of_seeds = ttest_ind(first.mean(1), second.mean(1), equal_var=False)
    assert freedom > of_seeds.df, "more than those of the seeds alone"


def test_numbers_other_than_outcomes_have_one_method_too() -> None:
    """Mean accuracies under corruptions: one seed has Student's paired interval, not that of two classifiers."""
    first, second = arm(5, 100, 0.3, seed=1).mean(0)[None], arm(5, 100, 0.0, seed=2).mean(0)[None]
    found, _ = difference_of_arms(first, second)
    exact = ttest_rel(first[0], second[0]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(exact))


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_the_share_holds_exactly_what_the_difference_of_a_combination_does_not_exclude(seeds: int) -> None:
    before = arm(seeds, 400, 0.5, seed=1), arm(seeds, 400, 0.0, seed=2)
    after = arm(seeds, 400, 0.2, seed=1), arm(seeds, 400, -0.1, seed=2)
    share = share_of_difference(after, before)
    assert share.value == pytest.approx((after[0].mean() - after[1].mean()) / (before[0].mean() - before[1].mean()))
    for end in (share.low, share.high):
        at_the_end, _ = difference_of_arms(*(own - end * whole for own, whole in zip(after, before, strict=True)))
        assert min(abs(at_the_end.low), abs(at_the_end.high)) < 1e-6, "0 is an end of its interval"


def test_a_share_of_a_difference_that_may_be_0_has_no_end() -> None:
    before = arm(2, 100, 0.01, seed=1), arm(2, 100, 0.0, seed=2)
    after = arm(2, 100, 0.4, seed=1), arm(2, 100, 0.0, seed=2)
    share = share_of_difference(after, before)
    assert math.inf in (share.high, -share.low)


def test_more_images_shrink_the_images_variance_alone() -> None:
    first, second = arm(3, 300, 0.3, seed=1, spread=0.02), arm(3, 300, 0.0, seed=2, spread=0.02)
    found, _ = difference_of_arms(first, second)
    half = (found.high - found.low) / 2
    assert images_for(first, second, half) == pytest.approx(300, rel=0.02), "as many as there are"
    rough = images_for(first, second, 0.9 * half)
    assert rough is not None and rough > 300 / 0.9**2, "seeds do not shrink"
    assert images_for(first, second, 0.001) is None, "the seeds alone spread by more"
    few = images_for(first[:2], second[:2], 0.01)
    alone, _ = difference_of_arms(first[:2], second[:2])
    assert few == pytest.approx(300 * ((alone.high - alone.low) / 0.02) ** 2, rel=0.03)


def test_seeds_that_agree_leave_the_images_interval() -> None:
    columns = np.tile(arm(1, 200, 0.0, seed=1), (3, 1))
    found = mean_over_seeds(columns)
    assert found.high - found.value == pytest.approx(t.ppf(0.975, 199) * columns[0].std(ddof=1) / math.sqrt(200))
