"""A share of the campaign, the files that it once found, and the laws of its own machinery."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign import machine, page
from tests.campaign.artefacts import ARTEFACTS
from tests.campaign.crashes import Change, Disk
from tests.campaign.fuzz import damaged, folder_of, judged, parses
from tests.campaign.record import GOOD, read

CORPUS = Path(__file__).with_name("corpus")


def test_a_share_of_the_campaign(tmp_path: Path) -> None:
    """A kill of a training and of an evaluation, a loss of power, bad surroundings, some damaged files."""
    if machine.library() is None:
        pytest.skip("needs Linux and a C compiler")
    path = tmp_path / "record.jsonl"
    line = [sys.executable, "-m", "tests.campaign", "--share", "0.003", "--first", "1", "--out", str(path)]
    done = subprocess.run(line, cwd=machine.ROOT, capture_output=True, text=True, timeout=300, check=False)
    lines = [*read(path)]
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line["part"] for line in lines} >= {"training killed", "evaluation killed", "power lost", "fuzz"}
    killed = [line for line in lines if "killed" in line]
    assert killed and all(line["killed"] for line in killed)
    assert all(line["outcome"] in GOOD for line in lines)


@pytest.mark.parametrize("found", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_a_campaign_found_stays_mended(found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (artefact,) = [one for name, one in ARTEFACTS.items() if folder_of(name) == found.parent.name]
    artefact.make(tmp_path)
    valid = artefact.read(tmp_path)
    (file,) = [file for file in artefact.files if Path(file).name == found.name.partition("@")[2]]
    (tmp_path / file).write_bytes(found.read_bytes())
    verdict = judged(artefact, tmp_path, tmp_path / file, valid)
    assert verdict.outcome in GOOD, verdict.said


def test_a_case_depends_on_its_number_alone(tmp_path: Path) -> None:
    artefact = ARTEFACTS["config"]
    artefact.make(tmp_path)
    once, again = (damaged(artefact, "config", 7, tmp_path) for _ in range(2))
    assert once == again != damaged(artefact, "config", 8, tmp_path)
    assert parses(artefact, (tmp_path / "mine.yaml").read_bytes()) and not parses(artefact, b"a: [")


class Breaking:
    def __del__(self) -> None:
        raise OSError


def test_a_fault_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that breaks, or takes a damaged file for a good one, is a fault."""
    monkeypatch.setattr("tests.campaign.fuzz.SECONDS", 0.2)
    artefact = ARTEFACTS["log"]
    for outcome, read_it in {
        "traceback of an error while an object was deleted": lambda folder: [Breaking() for _ in "a"] and "valid",
        "traceback of KeyError": lambda folder: {}["a"],
        "wrong": lambda folder: "else",
        "right": lambda folder: "valid",
        "hang": lambda folder: [None for _ in iter(int, 1)],
    }.items():
        case = type(artefact)(artefact.make, artefact.files, read_it, artefact.parses, artefact.changes)
        assert judged(case, tmp_path, tmp_path / "metrics.jsonl", "valid").outcome == outcome


def test_power_lost_between_a_rename_and_its_sync() -> None:
    """A file that is renamed before it is synced may be empty; one that is synced before is whole or absent."""

    def left(*changes: Change, how: str) -> dict[str, bytes]:
        disk = Disk()
        for change in changes:
            disk.apply(change)
        return disk.left(random.Random(0), how)

    made, written = Change("create", "/f/.a", "", 0, b""), Change("write", "/f/.a", "", 0, b"content")
    renamed, synced = Change("rename", "/f/.a", "/f/a", 0, b""), Change("sync", "/f/.a", "", 0, b"")
    assert left(made, written, renamed, how="names") == {"/f/a": b""}
    assert left(made, written, renamed, how="zeros") == {"/f/a": bytes(7)}
    assert left(made, written, synced, renamed, how="names") == {"/f/a": b"content"}
    assert left(made, written, synced, renamed, how="least") == {}
    folder = Change("sync", "/f", "", 0, b"")
    assert left(made, written, synced, renamed, folder, how="least") == {"/f/a": b"content"}


def test_the_page_has_the_figures_of_the_record() -> None:
    text = page.PAGE.read_text()
    assert page.table([*read(page.RECORD)]) in text, "write it with python -m tests.campaign --page"
    named = [word.strip("`") for word in text.split() if word.startswith("`tests/") and "::" in word]
    for name in named:
        file, _, test = name.rstrip("`.,;|").partition("::")
        assert f"def {test}(" in (machine.ROOT / file).read_text(), name
