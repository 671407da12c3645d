"""Metrics reach Weights & Biases and MLflow by one flag; stand-ins with the same calls take their place here."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from advsphere.cli import main
from advsphere.errors import MissingPackageError, UserError
from advsphere.runs.train import train
from advsphere.training import read_metrics
from tests.training.tiny import few_digits, names_in, tiny_config


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    few_digits(monkeypatch)


class StandIn(ModuleType):
    """The calls of wandb and of mlflow that are made, with their arguments."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.shown: list[tuple[int, dict[str, float]]] = []
        self.fails = ""

    def init(self, **given: Any) -> Any:
        self._note("init", given)
        return SimpleNamespace(id=given["id"] or "made", log=self.log_metrics, finish=lambda: self._note("finish", {}))

    def set_experiment(self, name: str) -> None:
        self._note("set_experiment", {"name": name})

    def start_run(self, **given: Any) -> Any:
        self._note("start_run", given)
        return SimpleNamespace(info=SimpleNamespace(run_id=given["run_id"] or "made"))

    def log_params(self, params: dict[str, Any]) -> None:
        self._note("log_params", params)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._note("log", {})
        self.shown.append((step, metrics))

    def end_run(self) -> None:
        self._note("finish", {})

    def _note(self, call: str, given: dict[str, Any]) -> None:
        if self.fails == call:
            raise RuntimeError("no network\nand more lines")
        self.calls.append((call, given))


@pytest.fixture(params=["wandb", "mlflow"])
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn(request.param)
    monkeypatch.setitem(sys.modules, request.param, made)
    return made


def test_each_epoch_is_shown_and_a_resume_continues_the_same_run(tracker: StandIn, tmp_path: Path) -> None:
    config, folder, name = tiny_config("fastat", epochs=2), tmp_path / "mine", tracker.__name__
    train(config, folder, log_to=name)
    assert tracker.shown == [(1, read_metrics(folder)[0]), (2, read_metrics(folder)[1])]
    known = {call: given for call, given in tracker.calls}
    started = known["init" if name == "wandb" else "start_run"]
    assert "mine" in started.values() and tracker.calls[-1][0] == "finish"
    settings = started["config"] if name == "wandb" else known["log_params"]
    assert settings["training.epochs"] == 2 and settings["objective.kind"] == "FastAT"
    assert "tensorboard" not in names_in(folder) and f"{name}.txt" in names_in(folder)
    tracker.calls.clear()
    train(config, folder, resume=True, epochs=3, log_to=name)
    assert "made" in tracker.calls[name == "mlflow"][1].values() and tracker.shown[2][0] == 3


def test_a_tracker_that_fails_is_told_at_the_start_and_costs_no_run_later(tracker: StandIn, tmp_path: Path) -> None:
    tracker.fails = "init" if tracker.__name__ == "wandb" else "start_run"
    with pytest.raises(UserError, match="can't begin: no network; mend that, or leave out --log-to"):
        train(tiny_config("standard"), tmp_path / "run", log_to=tracker.__name__)
    tracker.fails = "log"
    with pytest.warns(UserWarning, match="failed: no network; metrics.jsonl has all metrics"):
        train(tiny_config("standard"), tmp_path / "run", resume=True, log_to=tracker.__name__)
    assert len(read_metrics(tmp_path / "run")) == 2 and tracker.calls[-1][0] == "finish"


def test_a_missing_package_and_an_unknown_tracker_are_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("advsphere.training.trackers.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="wandb is not installed: pip install wandb"):
        train(tiny_config("standard"), tmp_path / "run", log_to="wandb")
    assert main(["train", "digits-standard", "--out", str(tmp_path / "run"), "--log-to", "mlflow"]) != 0
    assert "mlflow is not installed: pip install mlflow" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="log_to is 'clearml'; give one of 'tensorboard', 'wandb', 'mlflow'"):
        train(tiny_config("standard"), tmp_path / "run", log_to="clearml")
    assert not (tmp_path / "run").exists()
