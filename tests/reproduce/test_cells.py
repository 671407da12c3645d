"""Cells and differences with known answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from advsphere.reproduce.cells import entry, pairs, paper_gain, paper_gains
from advsphere.reproduce.groups import Group, groups
from advsphere.reproduce.pages import page
from advsphere.reproduce.results import StoredResult
from advsphere.reproduce.tables import TABLES
from advsphere.stats import paired, wilson
from tests.reproduce.made import PLAIN, SPHERE, bits, stored

TABLE = TABLES["table3"]


def group(*given: StoredResult) -> Group:
    (found,) = groups(given, TABLE, suite="paper")
    return found


def test_one_seed_has_a_wilson_interval_and_a_plain_head_is_its_own_at_s_1() -> None:
    both = group(stored("small-fastat", PLAIN), stored("small-fastat-he", SPHERE))
    plain = entry(both, "FastAT", "PGD-50 (s = 1)", TABLE)
    assert plain is not None and plain.seeds == (0.4,) and (plain.low, plain.high) == wilson(40, 100)
    assert plain.paper == pytest.approx(0.4640)
    sphere = entry(both, "FastAT+HE", "PGD-50", TABLE)
    assert sphere is not None and sphere.value == 0.44 and sphere.paper is None, "the paper attacks bare cosines"
    assert entry(both, "FastAT+HE", "Square", TABLE) is None


def test_seeds_are_averaged_and_from_three_on_their_spread_widens_the_interval() -> None:
    def arm(*right: int) -> list:
        return [
            stored("small-fastat", PLAIN | {"PGD-50": bits(k), "worst case": bits(min(k, 36))}, seed=seed)
            for seed, k in enumerate(right)
        ]

    two, three, spread = (
        entry(group(*arm(*right)), "FastAT", "PGD-50", TABLE) for right in ((30, 50), (40, 40, 40), (30, 40, 50))
    )
    assert two is not None and three is not None and spread is not None
    assert [one.value for one in (two, three, spread)] == pytest.approx([0.4] * 3)
    assert three.high - 0.4 == pytest.approx(1.9842 * (0.24 / 99) ** 0.5, abs=1e-4), "seeds that agree add nothing"
    assert spread.high - spread.low > 1.3 * (three.high - three.low)
    # Over images alone: 30 of them have mean 1, 20 a half, the others 0.
    assert two.high - 0.4 == pytest.approx(1.9842 * (0.19 / 99) ** 0.5, abs=1e-4)


def test_a_pair_of_equal_confounders_is_compared_under_each_attack() -> None:
    ((pair,), _) = pairs(group(stored("small-fastat", PLAIN), stored("small-fastat-he", SPHERE)), TABLE)
    assert pair.gains.pgd == "PGD-50 (s = 1)"
    gain = pair.gains.gain("worst case")
    expected = paired([c == "1" for c in bits(41)], [c == "1" for c in bits(36)])
    assert (gain.low, gain.high) == (expected.low, expected.high) and gain.difference == pytest.approx(0.05)
    assert pair.gains.share is not None and pair.gains.share[0] == pytest.approx(0.25)
    assert paper_gain(TABLE, "FastAT", "FastAT+HE", "PGD-50 (s = 1)") == pytest.approx(0.0615)
    assert paper_gain(TABLE, "FastAT", "FastAT+HE", "PGD-50") is None


@pytest.mark.parametrize(
    ("network", "clean", "gain"),
    [
        ("torchvision:resnet50", 60.28, 8.46),
        ("torchvision:wide_resnet101_2", 66.15, 6.81),
        ("timm:resnet18", 60.28, 8.46),
    ],
)
def test_the_papers_number_is_of_our_network_where_it_has_that(network: str, clean: float, gain: float) -> None:
    table, names = TABLES["table4"], ("imagenet-freeat-wrn101-2", "imagenet-freeat-he-wrn101-2")
    arms = [stored(name, PLAIN, suite="table4", network=network) for name in names]
    (found,) = groups(arms, table, suite="table4")
    plain = entry(found, "FreeAT", "clean", table)
    assert plain is not None and plain.paper == pytest.approx(clean / 100)
    ((pair,), _) = pairs(found, table)
    theirs = pair.paper_gain("PGD-50 (s = 1)")
    assert theirs == pytest.approx(gain / 100)


def test_a_network_of_which_the_paper_has_one_row_alone_is_set_beside_that() -> None:
    outcomes = {"clean": bits(85), "AutoAttack: + Square": bits(50), "RayS": bits(57), "worst case": bits(50)}
    arms = [
        stored(f"cifar10-{name}", outcomes, suite="table6", network="wrn-34-20")
        for name in ("pgd-at-s10-wrn-34-20", "pgd-at-he-s10-wrn-34-20")
    ]
    (found,) = groups(arms, TABLES["table6"], suite="table6")
    told = [entry(found, name, "AutoAttack: + Square", TABLES["table6"]) for name in ("PGD-AT", "PGD-AT+HE")]
    assert [one and one.paper for one in told] == [None, pytest.approx(0.5374)]
    text, _ = page(TABLES["table6"], {Path("r.jsonl"): arms})
    assert "paper 59.00" in text and "57.8" not in text


@pytest.mark.parametrize("change", ["training.epochs: 15 -> 5", "training.lr: 0.2 -> 0.1"])
def test_a_pair_that_differs_in_more_than_the_sphere_is_refused(change: str) -> None:
    found = pairs(group(stored("small-fastat", PLAIN), stored("small-fastat-he", SPHERE, overrides=(change,))), TABLE)
    assert found == ([], [f"FastAT+HE and FastAT are not compared: {change}."])


def test_what_the_papers_own_columns_say_of_the_worst_case() -> None:
    told = paper_gains(TABLES["table2"])
    assert told[0] == "PGD-AT+HE +5.39 under PGD-20, +1.65 in the worst column" and len(told) == 3
    assert paper_gains(TABLES["table3"]) == [], "one attack has no worst"


def test_only_seeds_that_both_arms_have_are_compared() -> None:
    arms = [stored("small-fastat", PLAIN, seed=seed) for seed in (0, 1, 2)] + [
        stored("small-fastat-he", SPHERE, seed=1)
    ]
    ((pair,), _) = pairs(group(*arms), TABLE)
    assert pair.gains.seeds == (1, 1)
    (none, (refused,)) = pairs(group(arms[0], arms[-1]), TABLE)
    assert none == [] and "no seed" in refused


def test_three_seeds_in_each_arm_speak_of_the_method() -> None:
    both = (("small-fastat", PLAIN), ("small-fastat-he", SPHERE))
    arms = [stored(recipe, outcomes, seed=seed) for recipe, outcomes in both for seed in (0, 1, 2)]
    ((pair,), _) = pairs(group(*arms), TABLE)
    assert pair.gains.of_the_method


def test_arms_at_their_own_best_weight_decay_are_compared() -> None:
    given = [
        stored("small-fastat", PLAIN, robust=0.3),
        stored("small-fastat", PLAIN, weight_decay=2e-4, robust=0.4),
        stored("small-fastat-he", SPHERE, robust=0.4),
        stored("small-fastat-he", SPHERE, weight_decay=2e-4, robust=0.3),
    ]
    *_, best = groups(given, TABLE, suite="paper")
    ((pair,), _) = pairs(best, TABLE)
    assert pair.gains is not None
