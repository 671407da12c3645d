"""The guard: the sign of catastrophic overfitting, the way back, the remedies, and the same bits whatever happens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.objectives import ALP, NFGSM, PGDAT, TRADES, FastAT, FreeAT, Objective, Standard
from advsphere.runs.validation import Validation
from advsphere.threat import ThreatModel
from advsphere.training import Collapse, Metrics, Stopped, Trainer, load_checkpoint
from advsphere.training.guard import COST, FGSM, IMAGES, MOST, PGD, Suspicion, affordable, collapsed, remedied, watched
from tests.laws import OBJECTIVES, assert_same_state, conv_net, global_randomness_untouched, state_of
from tests.training.tiny import few_images, kept, same, stopping_after, tiny_trainer

FAST = FastAT(threat=ThreatModel(norm="linf", eps=0.05), step_size=0.05)
SOUND, FALLEN = {FGSM: 0.6, PGD: 0.5, IMAGES: 100.0}, {FGSM: 0.72, PGD: 0.02, IMAGES: 100.0}
FAINT = {FGSM: 0.28, PGD: 0.02, IMAGES: 40.0}  # of four classes


# The sign.


@pytest.mark.parametrize(
    ("fgsm", "pgd", "n", "seen"),
    [
        (0.72, 0.02, 200, True),
        (0.30, 0.02, 60, True),
        (0.72, 0.60, 200, False),
        (0.50, 0.30, 200, False),  # healthy at a large radius
        (0.40, 0.19, 200, False),  # more than half fell, but not clearly
        (0.25, 0.06, 60, True),
        (0.10, 0.00, 200, False),  # a tenth of ten classes is chance
        (1.00, 0.00, 3, False),  # three images say little
        (1.00, 0.00, 4, True),
        (0.02, 0.72, 200, False),
    ],
)
def test_what_counts_as_a_collapse(fgsm: float, pgd: float, n: int, seen: bool) -> None:
    assert collapsed({FGSM: fgsm, PGD: pgd, IMAGES: float(n)}, classes=10) == seen


def test_epochs_that_look_unsound_add_up_until_one_looks_sound() -> None:
    """FGSM on 10 of 60 images is not clearly above chance, and on 20 of 120 it is."""
    faint, sound = {FGSM: 1 / 6, PGD: 0.04, IMAGES: 60.0}, {FGSM: 1 / 6, PGD: 0.1, IMAGES: 60.0}
    once = Suspicion().after(faint)
    assert once == (60, 10, 2) and not once.collapsed(10)
    assert once.after(faint) == (120, 20, 4) and once.after(faint).collapsed(10)
    assert once.after(sound) == once.after({}) == Suspicion()
    assert not once.after(sound).after(faint).collapsed(10)


def test_nothing_is_seen_without_a_canary() -> None:
    assert not collapsed({}, classes=10) and not watched(Standard())
    assert all(watched(row.objective) for name, row in OBJECTIVES.items() if name != "Standard")


# The remedies.


def test_one_step_gets_the_noise_of_n_fgsm_and_then_several_steps() -> None:
    threat = FAST.threat
    first, second, third = (remedied(FAST, i) for i in (1, 2, 3))
    several = PGDAT(threat=threat, steps=4, step_size=0.025, start="uniform", mode="train")
    assert first and first.objective == NFGSM(threat=threat) and first.words == "the noise of N-FGSM (2 eps)"
    assert second and second.objective == several and second.words == "4 steps of PGD of 0.025"
    assert third and third.objective == replace(several, steps=8, step_size=0.0125)
    assert third.words == "8 steps of 0.0125"
    assert remedied(FAST, 0) == (FAST, "") and remedied(FAST, MOST + 1) is None
    assert remedied(first.objective, 1) == second


@pytest.mark.parametrize("objective", [PGDAT(steps=2), ALP(steps=1), TRADES()])
def test_other_methods_keep_their_loss_and_get_shorter_steps_that_reach_as_far(objective: Any) -> None:
    found = remedied(objective, 2)
    assert found
    assert found.objective == replace(objective, step_size=objective.step_size / 4, steps=4 * objective.steps)


def test_free_training_has_no_steps_to_add() -> None:
    assert remedied(FreeAT(repeats=2, step_size=0.5), 1) == (FreeAT(repeats=2, step_size=0.25), "steps of 0.25")


def test_a_method_without_a_step_size_has_no_remedy() -> None:
    assert remedied(Standard(), 1) is None


# The loop.


def guarded(
    folder: Path, *, at: tuple[int, ...] = (2,), faint: int = -1, objective: Objective = FAST, **settings: Any
) -> Trainer:
    """A trainer of four epochs whose canary sees a collapse once after each of these epochs, in turn, and a faint sign
    after the epoch of index `faint`.
    """
    trainer = tiny_trainer(folder, objective, epochs=4, **settings)

    def canary(model: nn.Module, passes: int, robust: float | None) -> Metrics:
        due = at[len(trainer.collapses)] if len(trainer.collapses) < len(at) else None
        doubtful = trainer.cursor.epoch == faint and not trainer.collapses
        return FALLEN if trainer.cursor.epoch + 1 == due else FAINT if doubtful else SOUND

    trainer.hooks.canary = canary
    trainer.hooks.validate = lambda model: {"robust": 0.1 * trainer.cursor.epoch}
    return trainer


def numbers(folder: Path, which: str) -> Any:
    """All that a checkpoint holds but the time."""
    tensors, meta = load_checkpoint(folder / f"{which}.safetensors")
    for one in (meta, meta.get("metrics", {})):
        for name in ("seconds", "images_per_second"):
            one.pop(name, None)
    return {name: t.tolist() for name, t in tensors.items()}, meta


def test_a_collapse_is_undone_and_the_remedy_goes_on_from_the_last_good_epoch(tmp_path: Path) -> None:
    """As a run of one epoch on one step and three of N-FGSM, to the bit."""
    trainer, seen, logged = guarded(tmp_path / "a"), list[Collapse](), list[Metrics]()
    trainer.hooks.on_collapse, trainer.hooks.on_epoch = lambda collapses: seen.append(collapses[-1]), logged.append
    trainer.fit()
    assert seen == trainer.collapses == [Collapse(2, 1, 0.72, 0.02, "the noise of N-FGSM (2 eps)")]
    assert [m["epoch"] for m in logged] == [1, 2, 3, 4] and "collapses" not in logged[0]
    assert (logged[1]["collapses"], logged[1]["collapse_fgsm"], logged[1]["collapse_pgd"]) == (1, 0.72, 0.02)
    assert "collapse_fgsm" not in logged[2] and [m["best"] for m in logged] == pytest.approx([0, 0.1, 0.2, 0.3])

    by_hand = guarded(tmp_path / "b", at=())
    by_hand.hooks.stop = stopping_after(3)
    with pytest.raises(Stopped):
        by_hand.fit()
    by_hand._close_epoch()
    other = guarded(tmp_path / "b", at=(), objective=NFGSM(threat=FAST.threat))
    other.resume()
    other.fit()
    assert same(kept(tmp_path / "a", "last"), kept(tmp_path / "b", "last"))
    plain = guarded(tmp_path / "c", at=())
    plain.fit()
    assert not same(kept(tmp_path / "a", "last"), kept(tmp_path / "c", "last")), "the remedy would not show"


def test_an_epoch_that_looked_unsound_is_not_gone_back_to(tmp_path: Path) -> None:
    trainer = guarded(tmp_path, at=(3,), faint=1)
    trainer.fit()
    assert [(one.epoch, one.back_to) for one in trainer.collapses] == [(3, 1)] and trainer.cursor.epoch == 4


CASES = {
    "an average": {"ema": 0.6},
    "free": {"objective": FreeAT(repeats=2, threat=FAST.threat, step_size=0.05), "at": (2, 2)},
    "at once": {"at": (1, 3)},
    "adam": {"optimizer": "torch.optim:Adam"},
    "after doubt": {"at": (3,), "faint": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_at_any_step_it_ends_with_the_same_bits(case: str, tmp_path: Path) -> None:
    """Also when it is killed while it goes back."""
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    guarded(whole, **CASES[case]).fit()

    class Killed(Exception):
        pass

    def kill(collapses: object) -> None:
        raise Killed

    stops = kills = 0
    while True:
        trainer = guarded(pieces, **CASES[case])
        if (pieces / "last.safetensors").exists():
            trainer.resume()
        trainer.hooks.stop = stopping_after(2)
        if kills == len(trainer.collapses):
            trainer.hooks.on_collapse = kill
        try:
            trainer.fit()
        except Stopped:
            stops += 1
        except Killed:
            kills += 1
        else:
            break
    assert stops > 5 and kills == len(trainer.collapses) > 0
    for which in ("last", "best", "good"):
        assert numbers(whole, which) == numbers(pieces, which), which


def test_it_stops_at_the_last_good_epoch_and_a_resume_adds_nothing(tmp_path: Path) -> None:
    trainer = guarded(tmp_path / "stop", at=(3,), guard="stop")
    trainer.fit()
    assert trainer.cursor == (2, 0, 0) and trainer.collapses == [Collapse(3, 2, 0.72, 0.02, "")]
    assert "went back to the end of epoch 2 and stopped" in str(trainer.collapses[0])
    short = guarded(tmp_path / "two", at=(), guard="off")
    short.hooks.stop = stopping_after(6)
    with pytest.raises(Stopped):
        short.fit()
    assert same(kept(tmp_path / "stop", "last"), kept(tmp_path / "two", "last"))
    again = guarded(tmp_path / "stop", at=(), guard="stop")
    again.resume()
    again.fit()
    assert numbers(tmp_path / "stop", "last")[1]["cursor"] == [2, 0, 0] and again.over


def test_without_a_good_epoch_or_a_further_remedy_there_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"in epoch 1 .* went back to the start and stopped, so there is no good network"
    ):
        guarded(tmp_path / "stop", at=(1,), guard="stop").fit()
    assert not (tmp_path / "stop" / "best.safetensors").exists()
    with pytest.raises(UserError, match="so there is no good network"):
        guarded(tmp_path / "remedy", at=(1,) * (MOST + 1)).fit()
    trainer = guarded(tmp_path / "later", at=(2,) * (MOST + 1))
    trainer.fit()
    assert trainer.over and trainer.cursor.epoch == 1 and len(trainer.collapses) == MOST + 1


def test_switched_off_it_does_not_look_and_changes_nothing(tmp_path: Path) -> None:
    off, on = guarded(tmp_path / "off", guard="off"), guarded(tmp_path / "on", at=())
    for trainer in (off, on):
        trainer.fit()
    assert not off.collapses and not (tmp_path / "off" / "good.safetensors").exists()
    assert same(kept(tmp_path / "off", "last"), kept(tmp_path / "on", "last"))


# The canary.


def validation(n: int = 22, eps: float = 0.05) -> Validation:
    return Validation(few_images(n), ThreatModel(norm="linf", eps=eps), None)


def test_the_canary_leaves_the_model_and_all_randomness_alone() -> None:
    model = conv_net()
    before = state_of(model)
    with global_randomness_untouched():
        first, again = (validation().canary(model, 10_000, None) for _ in range(2))
    assert_same_state(before, state_of(model))
    assert first == again and first[IMAGES] == 22


def test_the_canary_knows_a_network_that_resists_one_step_alone() -> None:
    """Logits that rise with the first step of the sign and fall with shorter ones: by hand, a parabola."""

    class Parabola(nn.Module):
        """Right at distance 0 and at the corner of the ball, and wrong half way there."""

        def __init__(self, x: Tensor) -> None:
            super().__init__()
            self.centre = x

        def forward(self, x: Tensor) -> Tensor:
            moved = (x - self.centre[: len(x)]).flatten(1).mean(1)
            score = (moved - 0.02) * (moved - 0.08) + 0.0005
            return torch.stack([score, -score], 1)

    x = torch.full((40, 3, 8, 8), 0.5)
    looked = Validation(
        ImageSet(x, torch.zeros(40, dtype=torch.long), ("a", "b")), ThreatModel(norm="linf", eps=0.1), None
    )
    found = looked.canary(Parabola(x), 10_000, None)
    assert found == {FGSM: 1.0, PGD: 0.0, IMAGES: 40.0} and collapsed(found, classes=2)


def passes_of(model: nn.Module) -> list[int]:
    """Counts the images of every forward pass, and of every backward pass through it."""
    counted: list[int] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counted.append(len(inputs[0]))
        if output.requires_grad:
            output.register_hook(lambda grad: counted.append(len(grad)))

    model.register_forward_hook(note)
    return counted


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "Standard"])
def test_the_canary_costs_at_most_three_percent_of_the_passes(name: str, tmp_path: Path) -> None:
    objective, n = OBJECTIVES[name].objective, 440
    trainer = tiny_trainer(tmp_path, objective, images=few_images(n), batch_size=40, epochs=1)
    counted = passes_of(trainer.model)
    trainer._train_epoch()
    trained = sum(counted) - 2  # the check of the folding
    allowed = affordable(objective, n)
    assert allowed <= COST * trained
    for robust in (None, 0.5):
        counted.clear()
        looked = validation(200).canary(trainer.model, allowed, robust)
        assert looked[IMAGES] >= 1 and 0 < sum(counted) <= allowed + 4, "and the check of the folding"
