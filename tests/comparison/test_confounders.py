from __future__ import annotations

from dataclasses import replace

from advsphere.comparison.confounders import confounders, divided_otherwise, trained_elsewhere, within
from advsphere.recipes import recipe


def test_a_pair_that_differs_in_the_sphere_alone_has_none() -> None:
    plain, sphere = recipe("digits-pgd-at"), recipe("digits-pgd-at-he")
    assert confounders([plain], [sphere]) == []


def test_what_else_differs_is_named_with_its_reason() -> None:
    plain, sphere = recipe("digits-pgd-at"), recipe("digits-pgd-at-he")
    heavier = replace(sphere, training=replace(sphere.training, weight_decay=5e-3, epochs=7, seed=3))
    found = confounders([plain], [heavier])
    assert len(found) == 3
    assert found[0].startswith("training.epochs: 20 -> 7; longer training")
    assert any(line.startswith("training.weight_decay: ") and "several points" in line for line in found)
    assert any("different seeds" in line for line in found)


def test_how_batch_norm_saw_the_batch_is_named_and_what_was_kept_in_memory_is_not() -> None:
    plain, sphere = recipe("digits-pgd-at"), recipe("digits-pgd-at-he")
    other = replace(sphere.training, sync_bn=True, accumulate=2, checkpoint_activations=True)
    assert confounders([plain], [replace(sphere, training=other)]) == [
        "training.accumulate: 1 -> 2; batch norm normalises each part of a batch separately",
        "training.sync_bn: False -> True; batch norm has different statistics over all processes and over one share",
    ]


def test_another_objective_is_the_method_itself() -> None:
    assert confounders([recipe("digits-pgd-at")], [recipe("digits-trades")]) == []


def test_the_runs_of_an_arm_differ_in_their_seed_alone() -> None:
    plain = recipe("digits-pgd-at")
    seeds = [replace(plain, training=replace(plain.training, seed=i)) for i in range(3)]
    assert confounders(seeds, seeds) == []
    odd = [*seeds[:2], replace(seeds[2], training=replace(seeds[2].training, lr=0.5))]
    assert confounders(seeds, odd) == ["within the method, training.lr: 0.1 -> 0.5"]
    assert within("TRADES", [seeds[0], recipe("digits-pgd-at-he")])[0] == "within TRADES, sphere.scale: None -> 15.0"


def test_another_radius_in_training_is_said() -> None:
    plain = recipe("digits-pgd-at")
    assert trained_elsewhere("baseline", plain, plain.objective.threat.eps) == []  # type: ignore[attr-defined]
    assert trained_elsewhere("method", plain, 0.1) == ["the method was trained at eps 0.2 and is evaluated at 0.1"]
    assert trained_elsewhere("method", recipe("digits-standard"), 0.1) == []


def test_another_number_of_processes_is_said() -> None:
    assert divided_otherwise([1, 1], [1]) == divided_otherwise([8], [8]) == []
    (line,) = divided_otherwise([1, 1], [8, 1])
    assert line.startswith("processes: 1 -> 1 or 8; without --sync-bn, batch norm normalises each process's share")
