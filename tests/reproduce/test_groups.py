"""Which rows stand in one table: equal in everything but the method and the seed."""

from __future__ import annotations

import pytest

from advsphere.errors import UserError
from advsphere.reproduce.groups import groups, method_name, on_imagenet
from advsphere.reproduce.results import StoredResult
from advsphere.reproduce.tables import TABLES
from tests.reproduce.made import PLAIN, SPHERE, bits, stored, trained

TABLE = TABLES["table3"]


def found(*given: StoredResult) -> list:
    return groups(given, TABLE, suite="paper")


@pytest.mark.parametrize(
    ("recipe", "overrides", "name"),
    [
        ("small-fastat", (), "FastAT"),
        ("small-fastat-he", (), "FastAT+HE"),
        ("small-freeat-m-he", (), "FreeAT+m-HE"),
        ("small-fastat-he", ("sphere.normalize_features: True -> False",), "FastAT+HE, no FN"),
        ("small-fastat-he", ("sphere.scale: 15.0 -> 30.0",), "FastAT+HE, s = 30"),
        ("small-fastat-he", ("sphere.margin: 0.2 -> 0.1",), "FastAT+HE, margin = 0.1"),
        ("small-standard", (), "standard training"),
    ],
)
def test_a_run_is_called_as_in_the_paper_whatever_its_seed(recipe: str, overrides: tuple[str, ...], name: str) -> None:
    for seed in (0, 3):
        assert method_name(stored(recipe, PLAIN, overrides=overrides, seed=seed).run) == name


def test_seeds_come_together_in_order_and_other_methods_stay_out() -> None:
    (group,) = found(
        stored("small-fastat-he", SPHERE, seed=1),
        stored("small-fastat", PLAIN, seed=1),
        stored("small-fastat", PLAIN),
        stored("small-pgd-at", PLAIN),
        stored("small-fastat", PLAIN, suite="quick"),
        stored("tiny-imagenet-fastat", PLAIN),
    )
    assert {name: [one.run["seed"] for one in arm] for name, arm in group.arms.items()} == {
        "FastAT": [0, 1],
        "FastAT+HE": [1],
    }
    assert group.attacks() == list(SPHERE)


@pytest.mark.parametrize(
    "other",
    [
        {"network": "wrn-10-2"},
        {"data": "other toys"},
        {"eps": 4 / 255},
        {"checkpoint": "last"},
        {"outcomes": {name: bits(20, 50) for name in SPHERE}},
        {"settings": {"tries": 5}},
    ],
)
def test_evaluations_of_other_confounders_are_never_mixed(other: dict) -> None:
    both = found(stored("small-fastat", PLAIN), stored("small-fastat-he", **{"outcomes": SPHERE} | other))
    assert [list(group.arms) for group in both] == [["FastAT"], ["FastAT+HE"]]
    assert len({group.title for group in both}) == 2


def test_an_arm_of_runs_that_differ_in_more_than_their_seed_is_refused() -> None:
    with pytest.raises(UserError, match="FastAT has runs that differ"):
        found(stored("small-fastat", PLAIN), stored("small-fastat", PLAIN, overrides=("training.lr: 0.2 -> 0.1",)))


def test_each_arm_at_its_best_is_chosen_on_held_out_images_by_the_seeds_that_all_weight_decays_have() -> None:
    plain = [stored("small-fastat", PLAIN, seed=seed, robust=0.30) for seed in (0, 1)]
    better = [stored("small-fastat", SPHERE, seed=seed, weight_decay=2e-4, robust=0.31) for seed in (0, 1)]
    sphere = [stored("small-fastat-he", SPHERE, seed=seed, robust=robust) for seed, robust in ((0, 0.4), (1, 0.1))]
    worse = trained("small-fastat-he", weight_decay=2e-4, robust=0.35)
    *single, best = found(*plain, *better, *sphere, worse)
    assert [group.weight_decay for group in single] == [5e-4, 2e-4] and best.weight_decay is None
    chosen = {name: [(one.run["weight_decay"], one.run["seed"]) for one in arm] for name, arm in best.arms.items()}
    assert chosen == {"FastAT": [(2e-4, 0), (2e-4, 1)], "FastAT+HE": [(5e-4, 0), (5e-4, 1)]}
    assert [single[0].at_its_best(name) for name in single[0].arms] == [False, True]
    *_, best = found(*plain, *better, *sphere)
    assert list(best.arms) == ["FastAT"], "the other arm has one weight decay, and no choice"


def test_where_all_arms_are_best_at_one_weight_decay_they_are_not_shown_twice() -> None:
    arms = [stored("small-fastat", PLAIN), stored("small-fastat-he", SPHERE)]
    worse = [trained(name, weight_decay=2e-4, robust=0.2) for name in ("small-fastat", "small-fastat-he")]
    (group,) = found(*arms, *worse)
    assert group.weight_decay == 5e-4 and all(map(group.at_its_best, group.arms))


def test_an_ablation_without_an_ablated_arm_is_none() -> None:
    pair = [stored("small-fastat", PLAIN), stored("small-fastat-he", SPHERE)]
    assert groups(pair, TABLES["ablation"], suite="paper") == []
    more = stored("small-fastat-he", SPHERE, overrides=("sphere.normalize_features: True -> False",))
    (group,) = groups([*pair, more], TABLES["ablation"], suite="paper")
    assert list(group.arms) == ["FastAT", "FastAT+HE", "FastAT+HE, no FN"]


def test_tiny_imagenet_stands_for_imagenet() -> None:
    assert on_imagenet(stored("tiny-imagenet-freeat", PLAIN).run)
    assert not on_imagenet(stored("small-freeat", PLAIN).run)
    (group,) = groups([stored("tiny-imagenet-freeat", PLAIN, suite="table4")], TABLES["table4"], suite="table4")
    assert list(group.arms) == ["FreeAT"]
