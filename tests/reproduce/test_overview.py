"""What all pairs say together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from advsphere.reproduce.cells import Family, every_pair, families, largest, two_decays
from advsphere.reproduce.pages import overview, summary
from advsphere.reproduce.results import StoredResult
from advsphere.stats import Estimate, mean_over_pairs
from tests.reproduce.made import bits, stored


def pair(recipe: str, *, gain: int, left: int, **other) -> list[StoredResult]:
    plain = {"clean": bits(60), "PGD-50": bits(40)} | dict.fromkeys(("margin PGD-50", "worst case"), bits(30))
    sphere = {"clean": bits(60), "PGD-50 (s = 1)": bits(40 + gain), "PGD-50": bits(40)}
    sphere |= dict.fromkeys(("margin PGD-50", "worst case"), bits(30 + left))
    return [stored(recipe, plain, **other), stored(f"{recipe}-he", sphere, **other)]


def families_of(*measured: list[StoredResult]) -> list[Family]:
    return families(every_pair({Path("r.jsonl"): [one for part in measured for one in part]}))


TWO = [*pair("small-fastat", gain=1, left=0), *pair("small-freeat", gain=2, left=1)]
THIRD = pair("tiny-imagenet-freeat", gain=3, left=2, suite="table4", data="other toys")


def ends(found: Estimate) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def test_a_mean_over_pairs_has_students_interval() -> None:
    """Of 1, 2 and 3, on images that are all alike: a standard error of 1 / sqrt(3), and 4.303 of them to each side."""
    assert ends(mean_over_pairs([[np.full(50, value) for value in (1.0, 2.0, 3.0)]])) == pytest.approx(
        (2, -0.4841, 4.4841), abs=1e-4
    )


def test_images_that_pairs_share_count_once_and_others_for_themselves() -> None:
    """Three pairs alike, half of whose 100 images gain: a standard error of 0.05, with 99 degrees of freedom."""
    one = np.repeat([0.0, 1.0], 50)
    assert ends(mean_over_pairs([[one, one, one]])) == pytest.approx(
        (0.5, 0.5 - 1.9842 * 0.05, 0.5 + 1.9842 * 0.05), abs=1e-4
    )
    apart = 1.9680 * 0.05 / 3**0.5  # 3 * 99 degrees of freedom
    assert ends(mean_over_pairs([[one], [one], [one]])) == pytest.approx((0.5, 0.5 - apart, 0.5 + apart), abs=1e-4)
    few = np.tile([0.0, 1.0], 25)  # of the first 50 images; all have a mean of 0.5
    both = 1.9842 * (50 * (0.5 / 200 + 0.5 / 100) ** 2 + 50 * (0.5 / 200) ** 2) ** 0.5
    assert ends(mean_over_pairs([[np.tile([0.0, 1.0], 50), few]])) == pytest.approx(
        (0.5, 0.5 - both, 0.5 + both), abs=1e-4
    )


def test_each_objective_counts_once_and_three_are_needed() -> None:
    assert families_of(TWO) == [] and largest([]) is None
    again = [*pair("small-fastat", gain=9, left=9, suite="survival"),
             *pair("small-fastat", gain=9, left=9, weight_decay=2e-4, robust=0.2)]  # fmt: skip
    assert families_of(TWO, again) == [], "another suite and another weight decay"
    (family,) = families_of(TWO, THIRD)
    assert family.mean().value == pytest.approx(0.02) and family.mean("worst case").value == pytest.approx(0.01)
    told = overview(every_pair({Path("r.jsonl"): [*TWO, *THIRD]}))
    (line,) = (line for line in told if line.startswith("| wrn-10-1, 0.0005 |"))
    assert "| +2.0 (" in line and "| +1.0 (" in line and "FreeAT+HE on other toys, linf 8/255" in line


def test_arms_that_validation_chose_are_a_family_of_their_own() -> None:
    """FastAT gains 5 points at the weight decay that is better for both arms; the others have theirs at 5e-4."""
    better = pair("small-fastat", gain=5, left=4, weight_decay=2e-4, robust=0.5)
    worse = [*pair("small-freeat", gain=9, left=9, weight_decay=2e-4, robust=0.1),
             *pair("tiny-imagenet-freeat", gain=9, left=9, suite="table4", data="other toys", weight_decay=2e-4,
                   robust=0.1)]  # fmt: skip
    found = {family.weight_decay: family for family in families_of(TWO, THIRD, better, worse)}
    assert found["0.0005"].mean().value == pytest.approx(0.02)
    assert found["each at its best"].mean().value == pytest.approx((0.05 + 0.02 + 0.03) / 3)
    assert found["each at its best"].mean("worst case").value == pytest.approx((0.04 + 0.01 + 0.02) / 3)


def test_a_pair_whose_arms_are_best_at_one_weight_decay_is_listed_once() -> None:
    """FreeAT's arms are best at 2e-4, so that the group of each arm's best has FastAT's pair of 5e-4 once more."""
    better = pair("small-freeat", gain=5, left=4, weight_decay=2e-4, robust=0.5)
    worse = pair("small-fastat", gain=9, left=9, weight_decay=2e-4, robust=0.1)
    found = every_pair({Path("r.jsonl"): [*TWO, *better, *worse]})
    listed = [(one.method, one.group.weight_decay, one.at_their_best) for one in found]
    assert sorted(listed) == [("FastAT+HE", 2e-4, False), ("FastAT+HE", 5e-4, True),
                              ("FreeAT+HE", 2e-4, True), ("FreeAT+HE", 5e-4, False)]  # fmt: skip


def test_a_summary_has_both_arms_of_each_member_and_links_the_picture_from_where_it_stands(tmp_path: Path) -> None:
    (family,) = families_of(TWO, THIRD)
    told = summary(family, tmp_path / "docs" / "results", tmp_path)
    assert "| FreeAT | 100 of toys | linf 8/255 | 1 | 60.0 → 60.0 | PGD-50: 40.0 → 42.0 | +2.0 (" in told
    assert "of 2 attacks" not in told and "of 3 attacks: 30.0 → 31.0 | +1.0 (" in told
    assert "| **together** |" in told and "(docs/results/together.svg)" in told


def test_what_was_made_of_he_stands_beside_the_plain_one_and_beside_he() -> None:
    sphere = {"clean": bits(60), "PGD-50 (s = 1)": bits(44), "PGD-50": bits(35)}
    sphere |= dict.fromkeys(("margin PGD-50", "worst case"), bits(31))
    found = every_pair({Path("r.jsonl"): [*TWO, stored("small-fastat-m-he", sphere)]})
    gains = {(one.method, one.baseline): one.gains.gain(one.gains.pgd).difference for one in found}
    assert gains["FastAT+m-HE", "FastAT"] == pytest.approx(0.04)
    assert gains["FastAT+m-HE", "FastAT+HE"] == pytest.approx(0.03)


def test_a_last_checkpoint_that_is_the_best_one_is_shown_once() -> None:
    """The stored evaluations of both name the same ledger."""
    pair_of_last = pair("small-fastat", gain=1, left=0, checkpoint="last")
    found = every_pair({Path("r.jsonl"): [*TWO, *pair_of_last]})
    assert [(one.method, one.group.checkpoint) for one in found] == [("FastAT+HE", "best"), ("FreeAT+HE", "best")]


def test_a_gain_at_two_weight_decays_is_compared_image_by_image() -> None:
    """At 2e-4 HE gains five images of a hundred more, so each of their differences is 1, and the others' 0."""
    other = pair("small-fastat", gain=6, left=3, weight_decay=2e-4)
    (both,) = two_decays(every_pair({Path("r.jsonl"): [*TWO, *other]}))
    change = both.change(both.first.gains.pgd)
    half = 1.9842 * (0.05 * 0.95 / 99) ** 0.5
    assert ends(change) == pytest.approx((0.05, 0.05 - half, 0.05 + half), abs=1e-5)
    told = "\n".join(overview(every_pair({Path("r.jsonl"): [*TWO, *other]})))
    assert "| 0.0002 minus 0.0005 | 0 | +5.0 (+0.7 to +9.3) | +3.0 (" in told
