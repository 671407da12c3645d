"""What is evaluated is found again; every question has a folder; a refused call leaves what is there untouched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from advsphere.cli import main
from advsphere.cli.evaluate import Options, folder_of
from advsphere.errors import UserError
from advsphere.evaluation import Effort
from advsphere.recipes import recipe
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


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"run": Path("a"), "model": "mine:build"}, "--model is for your own model, but a is a run"),
        ({"run": Path("a"), "weights": Path("net.pt")}, "--weights is for"),
        ({"run": Path("a"), "image_size": 32}, "--image-size is for"),
        ({"run": Path("a"), "mean": (0.5,), "std": (0.5,)}, "--mean is for"),
        ({"model": "mine:build", "data": Path("b"), "checkpoint": "last"}, "--checkpoint is for a run"),
        ({"model": "mine:build"}, "--data DIR"),
        ({}, "name a run"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        EvaluationTarget(**given).load()


CONFIG = recipe("digits-pgd-at")


def folder(options: Options, **changed: Any) -> Path:
    """As for an evaluation of the digits; changed: of its identity."""
    threat = {"norm": options.norm or "linf", "eps": options.eps or 0.2}
    suite = {"name": options.suite, "restarts": 1, "steps": None, "guides": 100, "cascade": False}
    identity: dict[str, Any] = {
        "threat": threat,
        "suite": suite,
        "batch_size": options.batch_size or 250,
        "data": {"shape": [1, 8, 8]},
    }
    for key, value in changed.items():
        identity[key] = {**identity.get(key, {}), **value} if isinstance(value, dict) else value
    return folder_of(options, CONFIG if options.subject.run else None, identity)


RUN = Options(subject=EvaluationTarget(run=Path("a")))


def test_the_usual_questions_have_plain_folders() -> None:
    place = Path("a/evaluations")
    assert folder(RUN) == folder(replace(RUN, batch_size=250)) == place / "quick-best-linf-0.2"
    last = replace(RUN, subject=EvaluationTarget(run=Path("a"), checkpoint="last", n=40))
    assert folder(replace(last, eps=8 / 255)) == place / "quick-last-linf-0.03137-n40"
    more = Effort(restarts=2, cascade=True)
    assert folder(replace(RUN, effort=more), suite={"restarts": 2, "cascade": True}) == (
        place / "quick-best-linf-0.2-restarts2-cascade"
    )


def questions() -> Iterator[tuple[Options, dict[str, Any]]]:
    own = Options(subject=EvaluationTarget(model="mine:build", data=Path("photos")))
    for changed in (
        {},
        {"seed": 1},
        {"batch_size": 10},
        {"precision": "bfloat16"},
        {"precision": "float32"},
        {"head": "network.1"},
        {"eps": 0.2000001},
        {"eps": 8 / 255},
        {"eps": 0.03137},
        {"norm": "l2"},
        {"suite": "paper"},
    ):
        yield replace(RUN, **changed), {}
    elsewhere = replace(RUN, subject=EvaluationTarget(run=Path("a"), data=Path("b")))
    yield elsewhere, {"data": {"checksum": "1"}}
    yield elsewhere, {"data": {"checksum": "2"}}
    for attack in ("x", "y"):
        yield replace(RUN, suite="mine:suite"), {"suite": {"rank": 1}, "attacks": {"mine": {"source": attack}}}
    yield RUN, {"anew": "1"}
    yield RUN, {"anew": "2"}
    for key in ("checksum", "classes", "scale"):
        yield own, {"model": {key: "1"}}
        yield own, {"model": {key: "2"}}
    yield own, {"seed": 1}
    yield own, {"data": {"checksum": "1"}}


def test_every_other_question_has_a_folder_of_its_own() -> None:
    places = [folder(options, **changed) for options, changed in questions()]
    assert len(set(places)) == len(places) > 20
    assert [folder(options, **changed) for options, changed in questions()] == places


CLAIM = """
import torch
from torch import nn

def images():
    x = torch.cat([torch.full((6, 3, 8, 8), 60 / 255), torch.full((6, 3, 8, 8), 200 / 255)])
    return x, torch.arange(2).repeat_interleave(6)

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
"""


def test_a_refused_call_leaves_everything_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "claim.py").write_text(CLAIM)
    for label, grey in enumerate((60, 200)):
        place = tmp_path / "photos" / "val" / f"class{label}"
        place.mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8), (grey + i,) * 3).save(place / f"{i}.png")
    for name, factor in {"good": 1.0, "other": 0.5}.items():
        weight = torch.stack([-torch.ones(192), torch.ones(192)]) * factor
        torch.save({"1.weight": weight, "1.bias": factor * torch.tensor([96.0, -96.0])}, tmp_path / f"{name}.pt")
    monkeypatch.chdir(tmp_path)
    own = ["evaluate", "--model", "claim:build", "--data", "photos", "--image-size", "8", "--steps", "2"]
    found = ["--out", "found"]
    assert main([*own, "--weights", "good.pt", *found]) == 0
    before = {path: path.read_bytes() for path in Path("found").iterdir()}
    for refused in (
        ["--weights", "other.pt", *found],
        ["--weights", "good.pt", "--seed", "1", *found],
        ["--weights", "good.pt", "--suite", "quik", *found],
        ["--weights", "good.pt", "--checkpoint", "last", *found],
    ):
        assert main([*own, *refused]) == 1
        assert {path: path.read_bytes() for path in Path("found").iterdir()} == before
    assert main(["verify", "found"]) == 0
    # Without --out each has a folder of its own, where the same call goes on.
    for _ in range(2):
        assert main([*own, "--weights", "good.pt"]) == main([*own, "--weights", "good.pt", "--seed", "1"]) == 0
    assert len([*Path("runs/own").iterdir()]) == 2
    # Images may also come from a function.
    own = [*own[:4], "claim:images", *own[7:]]
    assert main([*own, "--weights", "good.pt", "--out", "named"]) == main(["verify", "named"]) == 0
    capfd.readouterr()


def test_a_changed_description_is_refused(tmp_path: Path) -> None:
    EvaluationTarget(run=Path("run"), n=40).save(tmp_path)
    path = tmp_path / "subject.json"
    whole = path.read_text()
    for content, said in (
        (whole.replace("40", "41"), "was changed after it was written"),
        (whole.replace("best", "last"), "was changed after it was written"),
        ("[]", "is damaged"),
        ("[" * 100_000, "is damaged"),
        (whole[:-5], "is damaged"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=said):
            EvaluationTarget.read(tmp_path)
