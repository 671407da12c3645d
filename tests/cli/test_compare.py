"""`advsphere compare`, from two short runs to a verdict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from advsphere.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("compare")
    runs = [folder / "plain", folder / "sphere", folder / "other"]
    for run, recipe, more in zip(
        runs,
        ("digits-fastat", "digits-fastat-he", "digits-fastat"),
        ([], ["--weight-decay", "1e-3"], ["--seed", "1"]),
        strict=True,
    ):
        assert main(["train", recipe, "--epochs", "4", "--out", str(run), *more]) == 0
    return runs


def test_two_checkpoints_are_compared_and_everything_is_kept(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plain, sphere, _ = runs
    assert main(["compare", str(plain), str(sphere), "--n", "150", "--suite", "paper"]) == 0
    shown = capsys.readouterr().out
    assert (
        "PGD-50 (s = 1)" in shown and "worst case" in shown and "conclusions hold for these checkpoints only" in shown
    )
    assert "training.weight_decay" in shown
    assert "! suite paper has no black-box attack" in shown
    record = json.loads((sphere / "compared" / "comparison.json").read_text())
    assert record["verdict"].upper() in shown and record["n"] == 150 and record["pgd"] == "PGD-50 (s = 1)"
    assert record["sampled"] == [], "no attack of this suite runs on a sample"
    for arm, run in (("baseline", plain), ("method", sphere)):
        (evidence,) = record["evidence"][arm]
        evaluation = json.loads((Path(evidence["folder"]) / "evaluation.json").read_text())
        assert evaluation["ledger"] == evidence["ledger"] and run in Path(evidence["folder"]).parents
        assert main(["verify", evidence["folder"]]) == 0
    before = (sphere / "compared" / "comparison.json").read_bytes()
    capsys.readouterr()
    assert main(["compare", str(plain), str(sphere), "--n", "150", "--suite", "paper"]) == 0
    assert (sphere / "compared" / "comparison.json").read_bytes() == before


def test_two_seeds_of_one_recipe_can_not_be_told_apart(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    plain, _, other = runs
    assert main(["compare", str(plain), str(other), "--n", "150", "--suite", "paper"]) == 0
    shown = capsys.readouterr().out
    assert "CANNOT TELL" in shown and "different seeds" in shown


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--pgd", "PGD-7"], "have a row 'PGD-7'"),
        (["--suite", "adaptive", "--steps", "1", "--guides", "1"], "none of these"),
    ],
)
def test_a_mistake_gets_one_line(
    runs: list[Path], more: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    plain, sphere, _ = runs
    assert main(["compare", str(plain), str(sphere), "--n", "150", "--suite", "paper", *more]) == 1
    shown = "".join(capfd.readouterr())
    assert says in shown and "Traceback" not in shown
    assert main(["compare", str(plain), "nowhere"]) == 1


def test_runs_that_can_not_be_compared_are_found_before_the_work(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(*arguments: object, **settings: object) -> None:
        raise AssertionError("it has begun")

    monkeypatch.setattr("advsphere.cli.evaluate.evaluated", work)
    unfinished = shutil.copytree(runs[1], tmp_path / "unfinished")
    (unfinished / "best.safetensors").unlink()
    for method, said in ((runs[0] / "." / "", "a run is named twice"), (unfinished, "has no best.safetensors")):
        assert main(["compare", str(runs[0]), str(method)]) == 1
        assert said in "".join(capfd.readouterr())
