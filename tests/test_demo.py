"""The demo: ends with evidence that verifies, goes on after an interruption, begins afresh when it was finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from advsphere.analysis.angles import Spread
from advsphere.analysis.curves import Curve
from advsphere.cli import main
from advsphere.cli.demo import RECIPES, Demo, Progress, demo
from advsphere.cli.evaluate import Options, _folder
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation
from advsphere.recipes import recipe
from advsphere.runs.config import Config
from advsphere.runs.target import EvaluationTarget
from tests.report.parsed import parse


def short(epochs: int = 1) -> list[Config]:
    """The demo's recipes, but hardly trained: what is left to attack is soon fooled."""
    return [
        replace(recipe(name), training=replace(recipe(name).training, epochs=epochs), recipe=f"{name}-short")
        for name in RECIPES
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Demo, list[Progress]]:
    told: list[Progress] = []
    out: Path = tmp_path_factory.mktemp("demo") / "out"
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        result = demo(out, configs=short(), on_progress=told.append)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    return result, told


def test_everything_is_under_the_folder(made: tuple[Demo, list[Progress]]) -> None:
    result, _ = made
    out = result.report.parent
    assert {p.name for p in out.iterdir()} == {
        "demo.json",
        "report.html",
        "report.json",
        "digits-pgd-at-short",
        "digits-pgd-at-he-short",
    }
    for arm in result.arms:
        assert arm.run.parent == out and (arm.run / "best.safetensors").is_file()
        assert Evaluation.load(arm.evidence.folder / "evaluation.json") == arm.judged.evaluation
        assert Curve.load(arm.evidence.folder / "curve-500.json") == arm.judged.curve
        assert Spread.load(arm.evidence.folder / "angles-500.json") == arm.judged.spread
    names = [row.name for row in result.judged[0].evaluation.rows]
    assert names == ["clean", "FGSM", "PGD-20", "PGD-100", "margin PGD-100", "worst case"]
    assert result.judged[0].evaluation.clean.n == 500


def test_the_evidence_lies_where_evaluate_would_put_it(made: tuple[Demo, list[Progress]]) -> None:
    for config, arm in zip(short(), made[0].arms, strict=True):
        assert _folder(Options(subject=EvaluationTarget(run=arm.run)), config.threat) == arm.evidence.folder


def test_the_numbers_do_not_depend_on_the_number_of_cores(made: tuple[Demo, list[Progress]]) -> None:
    for model in made[0].judged:
        (environment,) = model.evaluation.environments
        assert environment["threads"] == model.training["trained with"]["threads"] == 1


def test_the_networks_have_their_names_and_sphere(made: tuple[Demo, list[Progress]]) -> None:
    plain, sphere = made[0].judged
    assert (plain.name, sphere.name) == ("PGD-AT", "PGD-AT+HE")
    scales = [model.evaluation.identity["model"]["scale"] for model in (plain, sphere)]
    assert scales == [1.0, 15.0]
    assert "of 1 epochs by robust accuracy on 200 held-out" in plain.training["checkpoint"]


def test_progress_goes_from_stage_to_stage(made: tuple[Demo, list[Progress]]) -> None:
    _, told = made
    stages = list(dict.fromkeys((p.model, p.stage) for p in told))
    assert stages == [(m, s) for m in ("PGD-AT", "PGD-AT+HE") for s in ("train", "attack", "curve", "angles")]
    for stage in stages:
        counts = [p.done for p in told if (p.model, p.stage) == stage]
        (total,) = {p.total for p in told if (p.model, p.stage) == stage}
        assert counts == sorted(counts) and counts[-1] == total


def test_the_report_shows_both_and_the_pictures(made: tuple[Demo, list[Progress]]) -> None:
    result, _ = made
    assert result.report.stat().st_size < 1_000_000
    tree = parse(result.report.read_text())
    left = [f"{100 * model.evaluation.worst.accuracy:.1f}" for model in result.judged]
    last = tree.one("accuracy").all("tbody")[0].all("tr")[-1]
    assert [cell.text.split()[0] for cell in last.all("td")][:2] == left
    assert len(tree.one("pictures").all("img")) >= 6
    assert "what differs" in tree.one("training").text.lower()
    lines = [node.text for node in tree.one("reproduce").all("code")]
    assert lines[1:] == [f"advsphere verify {arm.run}" for arm in result.arms]


def test_an_interrupted_demo_goes_on_and_a_finished_one_begins_afresh(
    made: tuple[Demo, list[Progress]], tmp_path: Path
) -> None:
    def interrupt(p: Progress) -> None:
        if p.model == "PGD-AT" and p.stage == "attack" and p.done > 600:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path, configs=short(), on_progress=interrupt)
    assert not (tmp_path / "report.html").exists()
    written = (tmp_path / "digits-pgd-at-short" / "best.safetensors").stat().st_mtime_ns
    told: list[Progress] = []
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path, configs=short(), on_progress=_until("PGD-AT+HE", told))
    assert (tmp_path / "digits-pgd-at-short" / "best.safetensors").stat().st_mtime_ns == written, "trained again"
    again = Evaluation.load(next((tmp_path / "digits-pgd-at-short").rglob("evaluation.json")))
    assert again.ledger == made[0].judged[0].evaluation.ledger

    # Another network, as after an upgrade: what an earlier demo left makes room.
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path, configs=short(epochs=2), on_progress=_until("PGD-AT", told))
    assert not (tmp_path / "digits-pgd-at-short" / "last.safetensors").exists()

    mark = json.loads((tmp_path / "demo.json").read_text())
    (tmp_path / "demo.json").write_text(json.dumps(mark | {"finished": True}))
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path, configs=short(epochs=2), on_progress=_until("PGD-AT", told))
    assert not (tmp_path / "report.html").exists()


def _until(model: str, told: list[Progress]) -> Callable[[Progress], None]:
    """Interrupts as soon as this model's turn comes."""

    def show(p: Progress) -> None:
        told.append(p)
        if p.model == model:
            raise KeyboardInterrupt

    return show


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "digits-pgd-at" / "last.safetensors"
    mine.parent.mkdir()
    mine.write_text("weeks of work")
    with pytest.raises(UserError, match="something else"):
        demo(tmp_path)
    assert mine.read_text() == "weeks of work" and [p.name for p in tmp_path.iterdir()] == ["digits-pgd-at"]
    with pytest.raises(UserError, match="something else"):
        demo(mine)


def test_the_command_says_what_it_found_and_what_to_do_next(
    made: tuple[Demo, list[Progress]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result, told = made

    def replayed(out: Path, *, on_progress: Callable[[Progress], None]) -> Demo:
        assert out == Path("runs/demo")
        for p in told:
            on_progress(p)
        return result

    monkeypatch.setattr("advsphere.cli.demo.demo", partial(replayed))
    assert main(["demo"]) == 0
    shown = capsys.readouterr().out
    *above, after = shown.split("Next:")
    assert max(len(line) for line in above[0].splitlines()) <= 80
    for model in result.judged:
        for row in model.evaluation.rows:
            low, high = row.interval
            assert f"{100 * row.accuracy:.1f} ({100 * low:.1f}-{100 * high:.1f})" in shown
    words = " ".join(shown.split())
    assert "cannot tell" in words and "upper bound" in words and "these two checkpoints" in words
    assert f"{result.report}" in after and f"advsphere verify {result.arms[-1].run}" in after

    assert main(["verify", str(result.arms[-1].run)]) == 0
    assert "verified" in capsys.readouterr().out


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["demo", "--help"])
    words = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert exited.value.code == 0
    assert "upper bound of robust accuracy" in words and "--out" in words and "runs/demo" in words
