"""A run can go on to more epochs: it equals one run of that length where schedules allow, and says so where not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from advsphere.cli import main
from advsphere.errors import UserError
from advsphere.hypersphere import HypersphereConfig, m_he
from advsphere.runs.config import Config
from advsphere.runs.folder import load_run, read_config, read_provenance
from advsphere.runs.train import train
from advsphere.schedule import Constant, Linear
from advsphere.training import Stopped, read_metrics
from tests.training.tiny import assert_same_run, few_digits, left_behind, stopping_after, tiny_config

LINEAR = Linear(((0.0, 1.0), (1.0, 0.0)))


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    few_digits(monkeypatch)


def with_epochs(config: Config, epochs: int) -> Config:
    return replace(config, training=replace(config.training, epochs=epochs))


def said_by(config: Config, folder: Path, **given: Any) -> list[str]:
    said: list[str] = []
    train(config, folder, resume=True, on_start=lambda trainer, notes: said.extend(notes), **given)
    return said


@pytest.mark.parametrize("name", ["pgd-at", "freeat-he"])
def test_an_extended_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    config = tiny_config(name, epochs=2, lr_schedule=Constant())
    train(config, tmp_path / "run")
    assert said_by(config, tmp_path / "run", epochs=4) == ["this run was to end after 2 epochs, now after 4"]
    train(with_epochs(config, 4), tmp_path / "at once")
    assert_same_run(tmp_path / "at once", tmp_path / "run")
    assert read_provenance(tmp_path / "run")["extended"] == [{"from": 2, "to": 4, "finished": 2}]
    assert read_config(tmp_path / "run") == with_epochs(config, 4) == load_run(tmp_path / "run").config
    assert "epochs: 2" in (tmp_path / "run" / "config.yaml").read_text(), "what the run started with"
    assert said_by(with_epochs(config, 4), tmp_path / "run") == []
    said_by(with_epochs(config, 5), tmp_path / "run")
    assert [change["to"] for change in read_provenance(tmp_path / "run")["extended"]] == [4, 5]


@pytest.mark.parametrize("changed", ["learning rate", "margin"])
def test_where_a_schedule_moves_the_difference_is_told(changed: str, tmp_path: Path) -> None:
    config = tiny_config("standard", epochs=3, lr_schedule=LINEAR if changed == "learning rate" else Constant())
    config = replace(config, sphere=m_he(HypersphereConfig()) if changed == "margin" else None)
    train(config, tmp_path / "run")
    (line,) = said_by(with_epochs(config, 4), tmp_path / "run")
    assert "its schedules are those of a run of 4, at 75% of it, so it does not equal a run that began with 4" in line
    rates = [metrics["lr"] for metrics in read_metrics(tmp_path / "run")]
    train(with_epochs(config, 4), tmp_path / "at once")
    at_once = [metrics["lr"] for metrics in read_metrics(tmp_path / "at once")]
    assert rates[3] == at_once[3], "the last epoch has the rates of a run of 4"
    assert (rates[:3] == at_once[:3]) == (changed == "margin")


def test_a_run_that_was_stopped_can_be_extended_or_shortened(tmp_path: Path) -> None:
    config = tiny_config("standard", epochs=4, lr_schedule=Constant())
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop=stopping_after(3))
    before = left_behind(tmp_path / "run"), read_provenance(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"trained into epoch 2 already, .* end after 1: resume with --epochs 2 or more"
    ):
        train(with_epochs(config, 1), tmp_path / "run", resume=True)
    assert (left_behind(tmp_path / "run"), read_provenance(tmp_path / "run")) == before
    said_by(with_epochs(config, 3), tmp_path / "run")
    train(with_epochs(config, 3), tmp_path / "at once")
    assert_same_run(tmp_path / "at once", tmp_path / "run")
    with pytest.raises(UserError, match="trained into epoch 3 already"):
        train(with_epochs(config, 2), tmp_path / "run", resume=True)


def test_an_epoch_that_was_validated_as_the_last_one_is_told(tmp_path: Path) -> None:
    config = tiny_config("standard", epochs=3, lr_schedule=Constant(), validate_every=2)
    train(config, tmp_path / "run")
    (line,) = said_by(with_epochs(config, 4), tmp_path / "run")
    assert "epoch 3 was validated as its last one, and may be the best" in line


def test_no_other_setting_may_change_and_the_record_is_protected(tmp_path: Path) -> None:
    config = tiny_config("standard", epochs=1)
    train(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"holds a run with other settings .*lr: "):
        train(config, tmp_path / "run", resume=True, epochs=2, lr=0.5)
    train(config, tmp_path / "run", resume=True, epochs=2)
    path = tmp_path / "run" / "provenance.json"
    content = json.loads(path.read_text())
    content["extended"][0]["to"] = 9
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="was changed after the run started"):
        read_config(tmp_path / "run")


def test_the_command_line_extends_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "digits-standard", "--out", str(tmp_path)]
    assert main([*command, "--epochs", "1"]) == 0
    assert main([*command, "--epochs", "2", "--resume"]) == 0
    assert "was to end after 1 epochs, now after 2" in " ".join(capsys.readouterr().out.split())
    assert len(read_metrics(tmp_path)) == 2
