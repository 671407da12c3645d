"""What all pairs say together."""

from __future__ import annotations

from pathlib import Path

from advsphere.reproduce.overview import mean_told, overview
from advsphere.results import Row
from tests.reproduce.made import bits, rows


def pair(recipe: str, *, gain: int, left: int, **other) -> list[Row]:
    plain = {"clean": bits(60), "PGD-50": bits(40), "worst case": bits(30)}
    sphere = {"clean": bits(60), "PGD-50 (s = 1)": bits(40 + gain), "PGD-50": bits(35), "worst case": bits(30 + left)}
    return [*rows(recipe, plain, **other), *rows(f"{recipe}-he", sphere, **other)]


def test_a_mean_over_objectives_has_students_interval() -> None:
    """Of 1, 2 and 3 points: a standard error of 1 / sqrt(3), and 4.303 of them to each side."""
    assert mean_told([0.01, 0.02, 0.03]) == "+2.0 (-0.5 to +4.5)"


def test_each_objective_counts_once_and_three_are_needed() -> None:
    two = [*pair("small-fastat", gain=1, left=0), *pair("small-freeat", gain=2, left=1)]
    assert "## Together" not in overview({Path("r.jsonl"): two})
    again = [*two, *pair("small-fastat", gain=9, left=9, suite="survival"),
             *pair("small-fastat", gain=9, left=9, weight_decay=2e-4)]  # fmt: skip
    assert "## Together" not in overview({Path("r.jsonl"): again}), "another suite and another weight decay"
    third = pair("tiny-imagenet-freeat", gain=3, left=2, suite="table4", data="other toys")
    told = overview({Path("r.jsonl"): [*two, *third]})[-1]
    assert told.endswith("| +2.0 (-0.5 to +4.5) | +1.0 (-1.5 to +3.5) |") and "FreeAT+HE on other toys" in told
