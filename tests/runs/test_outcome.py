"""What a run says at its end, in the comparison and in the report: collapses, robust overfitting, chance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from advsphere.comparison.confounders import remedied
from advsphere.data import load
from advsphere.objectives import FastAT
from advsphere.runs.folder import read_collapses, read_provenance, record
from advsphere.runs.outcome import warnings_of
from advsphere.runs.train import train
from advsphere.runs.validation import Validation
from advsphere.threat import ThreatModel
from advsphere.training import Collapse, Metrics, read_metrics
from advsphere.training.guard import FGSM, IMAGES, PGD, collapsed
from advsphere.training.log import MetricsLog
from tests.training.tiny import few_digits, tiny_config

COLLAPSE = Collapse(7, 6, 0.72, 0.02, "the noise of N-FGSM (2 eps)")


def run_of(folder: Path, *metrics: Metrics, held_out: int = 200) -> Path:
    """The folder of a run with these metrics and this many held-out images of ten classes."""
    config = tiny_config("fastat")
    config = replace(config, data=replace(config.data, validation=200))
    record(folder, config, {"held_out": held_out}, [str(i) for i in range(10)])
    lines = [{"epoch": epoch} | m for epoch, m in enumerate(metrics, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ([{"clean": 0.6, "robust": 0.45}, {"clean": 0.7, "robust": 0.44}], []),
        (
            [{"clean": 0.6, "robust": 0.45}, {}, {"clean": 0.8, "robust": 0.31}],
            ["robust overfitting: 45.0% of the held-out images resist PGD-10 after epoch 1, and 31.0% after the last"],
        ),
        ([{"clean": 0.12, "robust": 0.05}], ["the last network is at chance level: 12.0% of the held-out images"]),
        ([{"clean": 0.2, "robust": 0.05}], []),
        ([{}], []),
    ],
    ids=["good", "overfitted", "chance", "above chance", "never validated"],
)
def test_what_the_log_shows_is_said(metrics: Sequence[Metrics], said: Sequence[str], tmp_path: Path) -> None:
    found = warnings_of(run_of(tmp_path, *metrics))
    assert len(found) == len(said) and all(a.startswith(b) for a, b in zip(found, said, strict=True)), found


def test_few_held_out_images_say_little(tmp_path: Path) -> None:
    """7 of 18 against 4 of 18 is no overfitting, however many images the config asks for."""
    assert warnings_of(run_of(tmp_path, {"clean": 0.5, "robust": 7 / 18}, {"clean": 0.5, "robust": 4 / 18})) != []
    assert (
        warnings_of(run_of(tmp_path, {"clean": 0.5, "robust": 7 / 18}, {"clean": 0.5, "robust": 4 / 18}, held_out=18))
        == []
    )


def test_a_collapse_is_a_confounder() -> None:
    assert remedied("method", []) == []
    (line,) = remedied("method", [COLLAPSE])
    assert line.startswith("in the method, catastrophic overfitting in epoch 7 (FGSM 72.0%, PGD-10 2.0% on held-out")
    assert "went back to the end of epoch 6 and went on with the noise of N-FGSM" in line


def test_epochs_that_are_undone_are_no_longer_in_the_log(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for epoch in (1, 2, 3):
        log({"epoch": epoch, "loss": 1.0})
    log.go_back(1)
    for epoch in (2, 3):
        log({"epoch": epoch, "loss": 0.5})
    log.close()
    assert [(m["epoch"], m["loss"]) for m in read_metrics(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 0.5)]


def test_a_collapse_is_in_the_provenance_and_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_digits(monkeypatch)
    seen: list[Collapse] = []

    def canary(self: Validation, model: nn.Module, passes: int, robust: float | None) -> Metrics:
        return {FGSM: 0.7, PGD: 0.7 if seen or passes < 0 else 0.0, IMAGES: 100.0}

    monkeypatch.setattr(Validation, "canary", canary)
    train(tiny_config("fastat"), tmp_path / "run", on_collapse=seen.append)
    assert seen == read_collapses(tmp_path / "run") == [Collapse(1, 0, 0.7, 0.0, "the noise of N-FGSM (2 eps)")]
    assert read_provenance(tmp_path / "run")["collapses"] == [seen[0]._asdict()]
    assert [m.get("collapses") for m in read_metrics(tmp_path / "run")] == [1, 1]
    assert str(seen[0]) in warnings_of(tmp_path / "run")


def test_the_guard_changes_no_bit_of_a_run_that_does_not_collapse(tmp_path: Path) -> None:
    """With the canary itself, and also in the epochs that are not validated."""
    config = tiny_config("fastat", validate_every=2, epochs=3, batch_size=64)
    networks = {}
    for guard in ("remedy", "off"):
        part = replace(config.training, guard=guard)
        digits = load("digits")
        networks[guard] = train(replace(config, training=part), tmp_path / guard, data=digits).state_dict()
    assert all(value.equal(networks["off"][name]) for name, value in networks["remedy"].items())
    lines = read_metrics(tmp_path / "remedy")
    assert all(FGSM in line for line in lines) and [IMAGES in line for line in lines] == [True] * 3
    assert not any(FGSM in line for line in read_metrics(tmp_path / "off"))


@pytest.mark.slow
def test_a_training_that_collapses_does_not_end_so(tmp_path: Path) -> None:
    """Digits with FGSM of a large radius from the clean image."""
    threat = ThreatModel(norm="linf", eps=0.3)
    objective = FastAT(threat=threat, step_size=0.3, start="normal")
    config = tiny_config("fastat", epochs=20, batch_size=128)
    config = replace(config, objective=objective, threat=threat, data=replace(config.data, validation=200))
    train(config, tmp_path / "run", data=load("digits"))
    first, last = read_collapses(tmp_path / "run")[0], read_metrics(tmp_path / "run")[-1]
    assert first.fgsm > 0.2 and first.pgd < 0.1 and first.back_to == first.epoch - 1
    assert last["epoch"] == 20 and not collapsed(last, classes=10)
