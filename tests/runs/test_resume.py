"""A run that was stopped, or killed, and resumed ends with the bits of one that was not."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from advsphere import provenance
from advsphere.data import Augment
from advsphere.errors import UserError
from advsphere.hypersphere import HypersphereConfig
from advsphere.runs import network as building
from advsphere.runs.config import Config
from advsphere.runs.config_yaml import to_yaml
from advsphere.runs.train import train
from advsphere.schedule import Cosine, Linear, Steps
from advsphere.training import Stopped, load_checkpoint, read_metrics
from tests.launching import run_ranks
from tests.training.tiny import (
    assert_same_run,
    few_digits,
    left_behind,
    names_in,
    stopping_after,
    tiny_config,
    train_in_pieces,
)

OBJECTIVES = ("standard", "pgd-at", "alp", "trades", "fastat", "freeat")
MOVING = HypersphereConfig(
    scale=12.0,
    margin=0.2,
    scale_schedule=Linear(((0.0, 0.3), (1.0, 1.0))),
    margin_schedule=Cosine(start=0.0, end=1.0),
    margin_in_attack=True,
)
CASES: dict[str, Config] = {name: tiny_config(name) for name in OBJECTIVES} | {
    "scale and margin move": replace(tiny_config("trades"), sphere=MOVING),
    "average of weights": tiny_config("pgd-at", ema=0.7),
    "average, sphere moves": replace(tiny_config("fastat", ema=0.7), sphere=MOVING),
    "augmented": tiny_config(
        "freeat", augment=Augment(padding=2, flip=True, alternate=True, cutout=3), label_smoothing=0.1
    ),
    "no momentum, steps": tiny_config("standard", momentum=0.0, lr_schedule=Steps(at=(0.5,))),
    "float32": tiny_config("trades", precision="float32"),
    "m-he": tiny_config("freeat-m-he"),
    "validated once": tiny_config("fastat", validate_every=2),
}


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    few_digits(monkeypatch)


@pytest.mark.parametrize("name", CASES)
def test_stopped_after_every_step(name: str, tmp_path: Path) -> None:
    config = CASES[name]
    train(config, tmp_path / "at once")
    stops = train_in_pieces(config, tmp_path / "in pieces", steps=1)
    assert stops == 2 * 2 * config.objective.replays
    assert_same_run(tmp_path / "at once", tmp_path / "in pieces")


@pytest.mark.parametrize("steps", [2, 5, 7])
@pytest.mark.parametrize("name", ["freeat", "freeat-he"])
def test_stopped_in_the_middle_of_replays(name: str, steps: int, tmp_path: Path) -> None:
    config = tiny_config(name)
    train(config, tmp_path / "at once")
    assert train_in_pieces(config, tmp_path / "in pieces", steps=steps) == 12 // steps
    assert_same_run(tmp_path / "at once", tmp_path / "in pieces")


def test_with_dropout_in_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build: Any = vars(building)["build"]

    def with_dropout(*arguments: object, **settings: object) -> nn.Module:
        model = build(*arguments, **settings)
        model.network.bn3 = nn.Sequential(model.network.bn3, nn.Dropout(0.4))
        return model

    train(tiny_config("fastat"), tmp_path / "without")
    monkeypatch.setattr(building, "build", with_dropout)
    train(tiny_config("fastat"), tmp_path / "at once")
    torch.manual_seed(123)  # whatever state the caller's generator is in
    train_in_pieces(tiny_config("fastat"), tmp_path / "in pieces", steps=1)
    assert_same_run(tmp_path / "at once", tmp_path / "in pieces")
    assert left_behind(tmp_path / "without")["line 1"] != left_behind(tmp_path / "at once")["line 1"]


def test_checkpoints_within_an_epoch_change_nothing(tmp_path: Path) -> None:
    config = tiny_config("pgd-at", ema=0.5)
    train(config, tmp_path / "rarely")
    often = replace(config, training=replace(config.training, checkpoint_minutes=0.0))
    cursors = []
    writers: list[Any] = []

    def look() -> bool:
        writers[0].wait()
        if (tmp_path / "often" / "last.safetensors").exists():
            cursors.append(load_checkpoint(tmp_path / "often" / "last.safetensors")[1]["cursor"])
        return False

    train(often, tmp_path / "often", stop=look, on_start=lambda trainer, notes: writers.append(trainer.writer))
    assert cursors == [[0, 1, 0], [1, 0, 0], [1, 1, 0]], "asked after each step, before its checkpoint"
    assert_same_run(tmp_path / "rarely", tmp_path / "often")


KILLED = """
import os, signal, sys
from pathlib import Path
import pytest
from advsphere.runs.config_yaml import from_yaml
from advsphere.runs.train import train
from tests.training.tiny import few_digits

few_digits(pytest.MonkeyPatch())
replace, writes = os.replace, int(sys.argv[3])

def killed(source, target):
    global writes
    if Path(target).name == "last.safetensors":
        if writes == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        writes -= 1
    replace(source, target)

os.replace = killed
train(from_yaml(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
"""


def test_killed_while_writing_a_checkpoint(tmp_path: Path) -> None:
    """Killed for real at the end of an epoch, when its metrics are written but not its checkpoint."""
    config, folder = tiny_config("freeat-he", checkpoint_minutes=0.0), tmp_path / "killed"
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    (done,) = run_ranks(1, KILLED, tmp_path / "config.yaml", folder, 5)
    assert done.returncode == -signal.SIGKILL
    assert load_checkpoint(folder / "last.safetensors")[1]["cursor"] == [1, 2, 0]
    assert len(read_metrics(folder)) == 2
    half_written = [name for name in names_in(folder) if name.startswith(".last.safetensors.")]
    assert len(half_written) == 1, "the file that was being written"
    train(config, folder, resume=True)
    train(config, tmp_path / "at once")
    assert_same_run(tmp_path / "at once", folder)
    assert names_in(folder) == names_in(tmp_path / "at once"), "what was half written is gone"


def notes_of_a_resume(config: Config, folder: Path) -> list[str]:
    said: list[str] = []
    train(config, folder, resume=True, on_start=lambda trainer, notes: said.extend(notes))
    return said


def test_a_resume_elsewhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder, threads = tiny_config("standard"), tmp_path / "run", torch.get_num_threads()
    with pytest.raises(Stopped, match="stopped in epoch 1 after batch 1 of 2; continue with --resume"):
        train(config, folder, stop=stopping_after(1))
    shutil.copytree(folder, tmp_path / "same")
    shutil.copytree(folder, tmp_path / "other processor")
    assert notes_of_a_resume(config, tmp_path / "same") == []
    try:
        torch.set_num_threads(threads + 1)
        (note,) = notes_of_a_resume(config, folder)
    finally:
        torch.set_num_threads(threads)
    assert f"threads: {threads} then, {threads + 1} now" in note and "rounding" in note
    monkeypatch.setattr(provenance, "processor", lambda: "Another 9000")
    (note,) = notes_of_a_resume(config, tmp_path / "other processor")
    assert note.endswith("then, Another 9000 now")


def test_a_finished_run_resumes_to_nothing(tmp_path: Path) -> None:
    config, folder = tiny_config("pgd-at"), tmp_path / "run"
    model = train(config, folder)
    before = left_behind(folder)
    again = train(config, folder, resume=True, stop=lambda: pytest.fail("a step was taken"))
    assert left_behind(folder) == before
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["fastat", "freeat"])
def test_time_is_counted_over_all_pieces(name: str, tmp_path: Path) -> None:
    train_in_pieces(tiny_config(name), tmp_path / "run", steps=1)
    seconds = [m["seconds"] for m in read_metrics(tmp_path / "run")]
    assert 0 < seconds[0] < seconds[1]
    assert read_metrics(tmp_path / "run")[1]["images_per_second"] == pytest.approx(2 * 25 / seconds[1])


def test_a_checkpoint_that_is_not_this_run_s(tmp_path: Path) -> None:
    """Each is refused in one line, and the folder stays as it is."""
    config, folder = tiny_config("pgd-at", ema=0.5), tmp_path / "run"
    train(config, folder)
    train(replace(config, model=replace(config.model, name="wrn-10-1")), tmp_path / "wide")
    train(tiny_config("pgd-at"), tmp_path / "no average")
    last = folder / "last.safetensors"
    for source, message in {
        folder / "best.safetensors": "holds only a network",
        tmp_path / "wide" / "last.safetensors": "holds another network than the run's config.yaml describes",
        tmp_path / "no average" / "last.safetensors": "holds another network",
    }.items():
        shutil.copy(source, last)
        with pytest.raises(UserError, match=message) as caught:
            train(config, folder, resume=True)
        assert str(last) in str(caught.value) and "\n" not in str(caught.value)
        assert last.read_bytes() == source.read_bytes()
