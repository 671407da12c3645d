"""The simulation of `benchmarks/comparison_coverage.py`, and why two limits of independent errors may be added."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from advsphere.evaluation.unsampled import covering_difference
from advsphere.stats import difference_of_arms

ROOT = Path(__file__).parents[1]
SIMULATION = "comparison_coverage"


@pytest.mark.parametrize("error", [0.025, 0.005, 0.1])
def test_the_sum_of_two_limits_is_exceeded_no_more_often_than_one_of_them(error: float) -> None:
    """A normal and an exponential error, of any ratio of their limits, integrated over the normal one. Whoever knows it
    chooses how many images would fall, so that the sample errs by as much as it takes.
    """
    z = np.linspace(-9, 9, 200_001)
    weights = np.diff(ndtr(z))
    middle, limit = (z[1:] + z[:-1]) / 2, -ndtri(error)
    found = []
    for ratio in np.geomspace(0.01, 300, 60):  # the sample's limit in standard errors of the difference
        beyond = np.maximum(0, 1 + (limit - middle) / ratio)
        found.append(float(weights @ error**beyond))
    assert max(found) <= error and min(found) < error / 2


def test_a_few_lines_are_simulated_again(simulation: ModuleType) -> None:
    rng = np.random.default_rng(1)
    for settings, trials in (((1, 250, 1.0, "the method"), 150), ((1, 1000, 10.0, "the method"), 100)):
        ours = naive = 0
        for _ in range(trials):
            one = simulation.comparison(rng, *settings)
            method, baseline = one.after[::-1]
            found, _ = covering_difference(method, baseline, one.bounds[::-1])
            as_if_whole, _ = difference_of_arms(method, baseline)
            ours += found.low <= one.gain <= found.high
            naive += as_if_whole.low <= one.gain <= as_if_whole.high
        assert ours >= 0.93 * trials
    assert naive < 0.6 * trials, "the bound is needed"


def test_the_page_says_that_the_interval_holds(simulation: ModuleType) -> None:
    page = (ROOT / "docs" / "statistics.md").read_text().partition("<!-- comparison -->")[2].partition("<!-- /comp")[0]
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert lines[0] == [*simulation.HEADS] and len(lines) == 1 + len(simulation.SETTINGS)
    assert all(float(line[4]) >= 94 and float(line[6]) >= 93 for line in lines[1:])
