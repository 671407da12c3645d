"""Every table on the digits: trained, attacked, kept as rows, shown, recomputed."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace
from pathlib import Path

import pytest

from advsphere.cli import main
from advsphere.files import content_checksum
from advsphere.reproduce import pages, results
from advsphere.reproduce.tables import TABLES


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder in which all tables were reproduced: once, by the process that needs it first; the others wait for it.
    Tests read it, and write elsewhere.
    """
    own = tmp_path_factory.getbasetemp()
    place = (own if worker_id == "master" else own.parent) / "smoke"
    with place.with_name("smoke.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        if not place.exists():
            unfinished = tmp_path_factory.mktemp("smoke")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(unfinished)
                assert main(["reproduce", "all", "--budget", "smoke"]) == 0
            unfinished.rename(place)
    return place


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_every_table_and_figure_is_measured(place: Path, tmp_path: Path) -> None:
    rows = {place / "runs" / "results" / "smoke.jsonl": results.read(place / "runs" / "results" / "smoke.jsonl")}
    assert all(pages.page(table, rows, tmp_path)[1] for table in TABLES.values())
    for table in TABLES.values():
        text, _ = pages.page(table, rows)
        shown = {method.name for method in table.methods if table.name != "table5" or method.data == "imagenet"}
        assert all(f"| {name}" in text or f"### {name}" in text for name in shown), table.name
    assert list((place / "runs" / "results" / "pictures").glob("*.png"))
    assert (tmp_path / "gradients-smoke-0.svg").is_file()


def test_asked_again_it_does_nothing_and_shows_the_same(place: Path, capsys: pytest.CaptureFixture[str]) -> None:

    def written() -> dict[Path, int]:
        files = (path for path in (place / "runs").rglob("*") if path.is_file())
        return {path: path.stat().st_mtime_ns for path in files if "results" not in path.parts}

    before = written()
    kept = (place / "runs" / "results" / "smoke.jsonl").read_bytes()
    assert main(["reproduce", "table3", "--budget", "smoke"]) == 0
    shown = capsys.readouterr().out
    assert "FastAT+m-HE" in shown and "worst" in shown and "paper" in shown
    assert written() == before
    assert (place / "runs" / "results" / "smoke.jsonl").read_bytes() == kept


def test_a_plan_is_shown_and_nothing_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    assert main(["reproduce", "table3", "--budget", "smoke", "--runs", str(runs), "--only", "plan"]) == 0
    shown = capsys.readouterr().out
    assert "runs: " in shown and "train" in shown and not runs.exists()


def test_without_a_table_it_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--budget", "smoke"]) == 1
    assert "name a table: table3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--jobs", "0"], "at least 1"),
        (["--methods"], "--methods is empty"),
        (["--seeds", "7"], "7 is not a seed"),
        (["--weight-decay", "0.1"], "choose from 0.0005"),
        (["--rows", "runs"], "a folder"),
        (["--runs", "runs/results/smoke.jsonl"], "could not write"),
    ],
)
def test_what_would_fail_is_said_before_anything_runs(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "table3", "--budget", "smoke", *arguments]) == 1
    assert says in capsys.readouterr().err


def test_results_are_recomputed_from_their_evidence(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = results.read(place / "runs" / "results" / "smoke.jsonl")
    assert main(["results", "runs/results", "runs", "--check"]) == 0
    assert f"{len(stored)} results confirmed, 0 results WRONG, 0 results no evidence" in capsys.readouterr().out
    assert main(["results", "runs/results", "runs/results", "--check"]) == 0
    assert f"{len(stored)} results no evidence here" in capsys.readouterr().out


def all_right(row: dict) -> None:
    row["outcomes"] = "1" * row["n"]


def one_more(document: dict) -> None:
    document["k"] += 1


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("evaluation", lambda document: all_right(document["attacks"][0])),
        ("evaluation", lambda document: one_more(document["attacks"][0])),
        ("corruptions", lambda document: document["cells"][0].update(outcomes="1" * 10)),
        ("evaluation", lambda document: document["environments"][0].update(commit="another")),
        ("evaluation", lambda document: document["identity"].update(seed=7)),
        ("training", one_more),
        ("diagnosis", lambda document: one_more(document["table 7"]["cells"][0])),
        ("diagnosis", lambda document: document.update(gradients={})),
    ],
)
def test_a_result_that_its_evidence_denies_is_wrong(
    kind: str, change, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = results.read(place / "runs" / "results" / "smoke.jsonl")
    victim = next(one for one in stored if one.kind == kind)
    document = json.loads(json.dumps(victim.document))
    change(document)
    if "checksum" in document:
        document["checksum"] = content_checksum(document)
    results.add(tmp_path / "results.jsonl", [replace(victim, document=document)])
    assert main(["results", str(tmp_path / "results.jsonl"), "runs", "--check"]) == 1
    assert "1 results WRONG" in capsys.readouterr().out


def test_a_result_of_another_run_is_wrong(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = results.read(place / "runs" / "results" / "smoke.jsonl")
    victim = next(one for one in stored if one.kind == "evaluation")
    trained = victim.run["trained"] | {"commit": "another"}
    results.add(tmp_path / "results.jsonl", [replace(victim, run=victim.run | {"seed": 9, "trained": trained})])
    assert main(["results", str(tmp_path / "results.jsonl"), "runs", "--check"]) == 1
    said = capsys.readouterr().out
    assert "has another seed" in said and "has another commit" in said


def test_a_result_names_no_place_of_this_machine(place: Path) -> None:
    assert str(place.parent) not in (place / "runs" / "results" / "smoke.jsonl").read_text()
