"""What all pairs say together."""

from __future__ import annotations

from pathlib import Path

import pytest

from advsphere.reproduce.overview import overview, summary
from advsphere.reproduce.together import Family, compared, families, largest, mean
from advsphere.results import Row
from tests.reproduce.made import bits, rows


def pair(recipe: str, *, gain: int, left: int, **other) -> list[Row]:
    plain = {"clean": bits(60), "PGD-50": bits(40), "worst case": bits(30)}
    sphere = {"clean": bits(60), "PGD-50 (s = 1)": bits(40 + gain), "PGD-50": bits(35), "worst case": bits(30 + left)}
    return [*rows(recipe, plain, **other), *rows(f"{recipe}-he", sphere, **other)]


def families_of(*measured: list[Row]) -> list[Family]:
    return families(compared({Path("r.jsonl"): [row for part in measured for row in part]}))


TWO = [*pair("small-fastat", gain=1, left=0), *pair("small-freeat", gain=2, left=1)]
THIRD = pair("tiny-imagenet-freeat", gain=3, left=2, suite="table4", data="other toys")


def test_a_mean_over_objectives_has_students_interval() -> None:
    """Of 1, 2 and 3: a standard error of 1 / sqrt(3), and 4.303 of them to each side."""
    assert mean([1, 2, 3]) == pytest.approx((2, -0.4841, 4.4841), abs=1e-4)


def test_each_objective_counts_once_and_three_are_needed() -> None:
    assert families_of(TWO) == [] and largest([]) is None
    again = [*pair("small-fastat", gain=9, left=9, suite="survival"),
             *pair("small-fastat", gain=9, left=9, weight_decay=2e-4, robust=0.2)]  # fmt: skip
    assert families_of(TWO, again) == [], "another suite and another weight decay"
    (family,) = families_of(TWO, THIRD)
    assert family.mean() == pytest.approx(mean([0.01, 0.02, 0.03]))
    assert family.mean("worst case") == pytest.approx(mean([0.0, 0.01, 0.02]))
    told = overview(compared({Path("r.jsonl"): [*TWO, *THIRD]}))
    (line,) = (line for line in told if line.startswith("| wrn-10-1, 0.0005 |"))
    assert line.endswith("| +2.0 (-0.5 to +4.5) | +1.0 (-1.5 to +3.5) |") and "FreeAT+HE on other toys" in line


def test_arms_that_validation_chose_are_a_family_of_their_own() -> None:
    """FastAT gains 5 points at the weight decay that is better for both arms; the others have theirs at 5e-4."""
    better = pair("small-fastat", gain=5, left=4, weight_decay=2e-4, robust=0.5)
    worse = [*pair("small-freeat", gain=9, left=9, weight_decay=2e-4, robust=0.1),
             *pair("tiny-imagenet-freeat", gain=9, left=9, suite="table4", data="other toys", weight_decay=2e-4,
                   robust=0.1)]  # fmt: skip
    found = {family.weight_decay: family for family in families_of(TWO, THIRD, better, worse)}
    assert found["0.0005"].mean().value == pytest.approx(0.02)
    assert found["each its best"].mean().value == pytest.approx((0.05 + 0.02 + 0.03) / 3)
    assert found["each its best"].mean("worst case").value == pytest.approx((0.04 + 0.01 + 0.02) / 3)


def test_a_pair_whose_arms_are_best_at_one_weight_decay_is_listed_once() -> None:
    """FreeAT's arms are best at 2e-4, so that the group of each arm's best has FastAT's pair of 5e-4 once more."""
    better = pair("small-freeat", gain=5, left=4, weight_decay=2e-4, robust=0.5)
    worse = pair("small-fastat", gain=9, left=9, weight_decay=2e-4, robust=0.1)
    found = compared({Path("r.jsonl"): [*TWO, *better, *worse]})
    listed = [(one.pair.method, one.group.weight_decay, one.at_their_best) for one in found]
    assert sorted(listed) == [("FastAT+HE", 2e-4, False), ("FastAT+HE", 5e-4, True),
                              ("FreeAT+HE", 2e-4, True), ("FreeAT+HE", 5e-4, False)]  # fmt: skip


def test_a_summary_has_both_arms_of_each_member_and_links_the_picture_from_where_it_stands(tmp_path: Path) -> None:
    (family,) = families_of(TWO, THIRD)
    told = summary(family, tmp_path / "docs" / "results", tmp_path)
    assert "| FreeAT | 100 of toys | 1 | 60.0 → 60.0 | 40.0 → 42.0 | +2.0 (" in told
    assert "is left" not in told, "the mean gain may be nothing"
    assert "**+2.0 (-0.5 to +4.5)**" in told and "(docs/results/together.svg)" in told
    (clear,) = families_of(pair("small-fastat", gain=8, left=2), pair("small-freeat", gain=9, left=1), THIRD,
                           pair("small-pgd-at", gain=8, left=1, suite="table2"))  # fmt: skip
    assert "s = 1, 21 % is left" in summary(clear, tmp_path, tmp_path)
