"""Where a subject's places are written, and where they are found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from advsphere.runs.target import EvaluationTarget


def test_places_are_found_from_anywhere_and_after_a_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    folder = here / "runs" / "a" / "evaluations" / "quick"
    (here / "elsewhere").mkdir(parents=True)
    folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    given = EvaluationTarget(run=Path("runs/a"), data=Path("photos"), weights=Path("/nets/net.safetensors"))
    given.save(Path("runs/a/evaluations/quick"))
    written = json.loads((folder / "subject.json").read_text())
    assert (written["run"], written["data"]) == ("../..", "../../../../photos"), "no name of this machine's folders"
    assert written["weights"] == "/nets/net.safetensors", "as it was given"
    assert EvaluationTarget.read(Path("runs/a/evaluations/quick")) == given
    monkeypatch.chdir(here / "elsewhere")
    found = EvaluationTarget.read(Path("../runs/a/evaluations/quick"))
    assert (found.run, found.data) == (Path("../runs/a"), Path("../photos"))
    there = here.rename(tmp_path / "there")
    found = EvaluationTarget.read(there / "runs" / "a" / "evaluations" / "quick")
    assert (found.run, found.data) == (there / "runs" / "a", there / "photos")


def test_a_run_that_is_named_in_full_is_still_found_beside_its_evaluation(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "evaluations" / "quick"
    folder.mkdir(parents=True)
    EvaluationTarget(run=tmp_path / "a", data=tmp_path / "photos").save(folder)
    moved = (tmp_path / "a").rename(tmp_path / "b")
    found = EvaluationTarget.read(moved / "evaluations" / "quick")
    assert (found.run, found.data) == (moved, tmp_path / "photos")
