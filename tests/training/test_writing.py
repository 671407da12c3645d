"""Checkpoints are written beside training: in order, whole, and an error in it is heard of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Event, current_thread
from typing import Any

import pytest
import torch
from torch import Tensor

from advsphere.errors import UserError
from advsphere.objectives import Standard
from advsphere.training import Hooks, Stopped, load_checkpoint
from advsphere.training import checkpoint as writing
from advsphere.training.checkpoint import CheckpointWriter
from tests.training.tiny import kept, same, state, stopping_after, tiny_trainer


def test_what_is_written_is_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on, in the same memory, while a slow disk writes; never two files at once."""
    begun, go_on, at_work = Event(), Event(), []
    save = writing.save

    def slowly(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        at_work.append(path.name)
        assert at_work == [path.name] and current_thread().name.startswith("checkpoint")
        begun.set()
        assert go_on.wait(30)
        save(path, tensors, meta)
        at_work.clear()

    monkeypatch.setattr(writing, "save", slowly)
    writer, weight, meta = CheckpointWriter(), torch.zeros(3), {"cursor": 1}
    writer.save(tmp_path / "best", {"w": weight}, meta)
    writer.save(tmp_path / "last", {"w": weight}, meta)
    assert begun.wait(30)
    weight.fill_(5.0)
    meta["cursor"] = 2
    assert not any(tmp_path.iterdir())
    go_on.set()
    writer.wait()
    for name in ("best", "last"):
        tensors, found = load_checkpoint(tmp_path / name)
        assert torch.equal(tensors["w"], torch.zeros(3)) and found == {"cursor": 1}


def test_copies_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, written = Event(), []

    def save(path: Path, *_: object) -> None:
        assert go_on.wait(30)
        written.append(path.name)

    monkeypatch.setattr(writing, "save", save)
    writer = CheckpointWriter()
    for i in range(2):
        writer.save(tmp_path / f"{i}", {}, {})
    go_on.set()
    writer.save(tmp_path / "2", {}, {})
    assert written[0] == "0", "it waited for the first"
    writer.wait()
    assert written == ["0", "1", "2"]


def test_after_one_that_failed_none_is_written(tmp_path: Path) -> None:
    """Else last would speak of a best that is not there."""
    writer = CheckpointWriter()
    (tmp_path / "best").mkdir()
    writer.save(tmp_path / "best", {}, {})
    writer.save(tmp_path / "last", {}, {})
    with pytest.raises(UserError, match=r"could not write .*best"):
        writer.wait()
    writer.thread.shutdown()
    assert not (tmp_path / "last").exists()


@pytest.mark.parametrize("steps", [None, 2], ids=["at the end", "stopped"])
def test_the_files_are_complete_when_training_returns(steps: int | None, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, Standard(), hooks=Hooks(stop=stopping_after(steps) if steps else lambda: False))
    try:
        trainer.fit()
    except Stopped:
        assert steps is not None
    assert same(kept(tmp_path, "last"), state(trainer.model))


@pytest.mark.parametrize("stop", [1, None], ids=["stopped", "at the end"])
def test_a_full_disk_is_heard_of(stop: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where training was about to say that it was stopped, and could be gone on with."""

    def full(*_: object) -> None:
        raise UserError("could not write it: no space left")

    monkeypatch.setattr(writing, "save", full)
    hooks = Hooks(stop=stopping_after(stop) if stop else lambda: False)
    with pytest.raises(UserError, match="no space left"):
        tiny_trainer(tmp_path, Standard(), hooks=hooks).fit()


def test_the_time_between_checkpoints_may_be_a_fraction_of_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of an epoch's five batches takes 3 s, and a checkpoint is due after 4.5 s."""
    trainer, clock, cursors = tiny_trainer(tmp_path, Standard(), batch_size=5, checkpoint_minutes=4.5 / 60), [], []
    monkeypatch.setattr("advsphere.training.loop.time.monotonic", lambda: 3.0 * len(clock))
    trainer.optimizer.register_step_post_hook(lambda *_: clock.append(None))
    monkeypatch.setattr(writing, "save", lambda path, _, meta: cursors.append(meta.get("cursor")))
    trainer.fit()
    within = [cursor for cursor in cursors if cursor is not None]
    assert within == [[0, 2, 0], [0, 4, 0], [1, 0, 0], [1, 2, 0], [1, 4, 0], [2, 0, 0]]
