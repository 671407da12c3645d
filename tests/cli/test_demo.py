"""The demo: train, compare and report in a row; it continues where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from rich.console import Console

from advsphere.analysis.curves import Curve
from advsphere.cli import compare, main
from advsphere.cli.demo import RECIPES, demo
from advsphere.errors import UserError
from advsphere.evaluation.results import Evaluation
from advsphere.recipes import recipe
from advsphere.runs.config import Config
from tests.report.parsed import parse


def short(lr: float = 0.1) -> list[Config]:
    """The demo's recipes with so little training that attacks succeed at once."""
    return [
        replace(recipe(name), training=replace(recipe(name).training, epochs=1, lr=lr), recipe=f"{name}-short")
        for name in RECIPES
    ]


class Made(NamedTuple):
    runs: list[Path]
    page: Path
    evaluations: list[Evaluation]


def evaluation_of(run: Path) -> Path:
    (found,) = run.glob("evaluations/*/evaluation.json")
    return found


@pytest.fixture(scope="module")
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, threads: None) -> Made:
    runs, page = demo(tmp_path_factory.mktemp("demo") / "out", Console(quiet=True), short())
    assert torch.get_num_threads() == 3
    return Made(runs, page, [Evaluation.load(evaluation_of(run)) for run in runs])


def test_everything_is_under_the_folder(made: Made) -> None:
    out = made.page.parent
    names = {"report.html", "report.json", "digits-pgd-at-short", "digits-pgd-at-he-short"}
    assert {path.name for path in out.iterdir()} == names
    for run, evaluation in zip(made.runs, made.evaluations, strict=True):
        assert run.parent == out and (run / "best.safetensors").is_file()
        assert [row.name for row in evaluation.rows] == [
            *("clean", "FGSM", "PGD-20", "PGD-100", "margin PGD-100", "worst case")
        ]
        assert evaluation.clean.n == Curve.load(evaluation_of(run).parent / "curve-500.json").n == 500


def test_the_numbers_do_not_depend_on_the_number_of_cores(made: Made) -> None:
    for run, evaluation in zip(made.runs, made.evaluations, strict=True):
        (environment,) = evaluation.environments
        assert environment["threads"] == json.loads((run / "provenance.json").read_text())["threads"] == 1


def test_the_networks_differ_in_the_sphere_alone(made: Made) -> None:
    assert [one.identity["model"]["scale"] for one in made.evaluations] == [1.0, 15.0]
    comparison = json.loads((made.runs[1] / "compared" / "comparison.json").read_text())
    assert comparison["confounders"] == [] and comparison["n"] == 500


def test_the_report_shows_both_and_the_pictures(made: Made) -> None:
    assert made.page.stat().st_size < 1_000_000
    tree = parse(made.page.read_text())
    robust = [f"{100 * one.worst.accuracy:.1f}" for one in made.evaluations]
    last = tree.one("accuracy").all("tbody")[0].all("tr")[-1]
    assert [cell.text.split()[0] for cell in last.all("td")][:2] == robust
    assert len(tree.one("pictures").all("img")) >= 6
    assert "of 1 epochs by robust accuracy on held-out" in tree.one("training").text
    lines = [node.text for node in tree.one("reproduce").all("code")]
    assert sum(line.startswith("advsphere verify") for line in lines) == 2


def test_an_interrupted_demo_goes_on(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(compare, "measure_gains", interrupt)
        demo(tmp_path, Console(quiet=True), short())
    written = [(run.name, (tmp_path / run.name / "best.safetensors").stat().st_mtime_ns) for run in made.runs]
    demo(tmp_path, Console(quiet=True), short())
    assert written == [(name, (tmp_path / name / "best.safetensors").stat().st_mtime_ns) for name, _ in written]
    again = [Evaluation.load(evaluation_of(tmp_path / run.name)) for run in made.runs]
    assert [one.ledger for one in again] == [one.ledger for one in made.evaluations]
    with pytest.raises(UserError, match="other settings"):
        demo(tmp_path, Console(quiet=True), short(lr=0.2))


def test_the_command_says_what_it_found_and_what_to_do_next(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = dict(zip(RECIPES, short(), strict=True))
    monkeypatch.setattr("advsphere.cli.demo.recipe", configs.__getitem__)
    assert main(["demo", "--out", str(made.page.parent)]) == 0
    above, after = capsys.readouterr().out.split("Next:")
    for one in made.evaluations:
        for row in one.rows:
            assert f"{100 * row.accuracy:.1f}" in above
    assert "worst case" in above and "conclusions hold for these checkpoints only" in above
    assert f"{made.page}" in after and f"advsphere verify {made.runs[-1]}" in after

    assert main(["verify", str(made.runs[-1])]) == 0
    assert "verified" in capsys.readouterr().out


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "upper bound of its robust accuracy" in words and "--out" in words and "runs/demo" in words
