"""A bound on a finite population from a sample that may grow: known numbers, the exact test, and its coverage."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from advsphere import looks as planned
from advsphere.looks import at_most, looks, most_with

ROOT = Path(__file__).parents[1]
SIMULATION = "sample_coverage"


def exact(hits: int, size: int, population: int, having: int) -> float:
    """Exactly, in whole numbers."""
    ways = sum(math.comb(having, i) * math.comb(population - having, size - i) for i in range(hits + 1))
    return ways / math.comb(population, size)


@pytest.mark.parametrize(("hits", "size", "population", "having"), [(1, 20, 100, 5), (1, 41, 813, 163), (2, 9, 9, 3)])
def test_the_probability_is_hypergeometric(hits: int, size: int, population: int, having: int) -> None:
    assert at_most(hits, size, population, having) == pytest.approx(exact(hits, size, population, having))


@pytest.mark.parametrize(
    ("population", "allowed", "size"), [(5000, 50, 284), (5000, 25, 543), (500, 10, 119), (500, 5, 196)]
)
def test_the_first_look_with_all_the_error_has_the_known_sizes(
    population: int, allowed: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planned, "FIRST_SHARE", 1.0)
    assert next(looks(population, allowed)).size == size


@pytest.mark.parametrize(("population", "allowed"), [(5000, 50), (500, 5), (60, 3), (7, 0), (3, 5), (0, 0)])
def test_looks_grow_up_to_all_and_spend_no_more_than_is_allowed(population: int, allowed: int) -> None:
    plan = [*looks(population, allowed)]
    assert math.fsum(look.error for look in plan) < 0.05 and plan[-1].size == population
    assert all(a.size < b.size and a.hits < b.hits for a, b in pairwise(plan))
    for size, hits, error in plan[:-1]:
        most = most_with(hits, size, population, error)
        assert most - hits <= allowed
        assert size == 0 or exact(hits, size - 1, population, hits + allowed + 1) > error, "the smallest such sample"


@pytest.mark.parametrize(("hits", "size", "population"), [(0, 10, 50), (2, 12, 40), (5, 20, 33), (1, 40, 40)])
def test_the_limit_is_the_exact_one(hits: int, size: int, population: int) -> None:
    possible = range(hits, population - size + hits + 1)
    expected = max(k for k in possible if k == hits or exact(hits, size, population, k) > 0.05)
    assert most_with(hits, size, population, 0.05) == expected


def test_the_bound_holds_on_the_hardest_populations(simulation: ModuleType) -> None:
    """A part of what benchmarks/sample_coverage.py repeats with 2,000 populations for each line of the page."""
    rng = np.random.default_rng(0)
    for population, allowed in [(500, 5), (60, 3)]:
        for having in simulation.hardest(population, allowed)[:4]:
            assert simulation.false_claims(rng, population, allowed, having, trials=500) <= 0.05 + 0.02


def test_the_page_says_that_the_bound_holds(simulation: ModuleType) -> None:
    page = (ROOT / "docs" / "statistics.md").read_text().partition("<!-- sample -->")[2].partition("<!-- /sample")[0]
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert lines[0] == [*simulation.HEADS] and len(lines) == 1 + len(simulation.QUESTIONS)
    assert all(float(line[2]) >= 95 and float(line[3]) >= 94 for line in lines[1:])
