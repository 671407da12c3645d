from __future__ import annotations

import shutil
import sqlite3
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from advsphere.errors import UserError
from advsphere.evaluation import CLEAN, Cell, Cost, Ledger
from tests.evaluation.cases import change

IDENTITY: dict[str, Any] = {
    "model": {"checksum": "ab"},
    "data": {"name": "few", "shape": [1, 2, 2]},
    "seed": 0,
    "attacks": {"second": {"steps": 1}, "first": {"steps": 2}},
}
HERE = {"torch": "2.11", "threads": 1}
X = torch.linspace(0, 1, 4).view(1, 2, 2) / 3
BATCHES: list[tuple[str, int, list[Cell]]] = [
    (CLEAN, 0, [Cell(0, "fooled", 1, 0.0), Cell(1, "resisted", 0, 0.0)]),
    (CLEAN, 1, [Cell(2, "resisted", 0, 0.0), Cell(3, "resisted", 1, 0.0)]),
    ("second", 0, [Cell(0, "not_run"), Cell(1, "fooled", 1, 0.1, X)]),
    ("second", 1, [Cell(2, "resisted", 0, 0.1), Cell(3, "invalid", None, 0.7)]),
    ("first", 0, [Cell(0, "not_run"), Cell(1, "resisted", 0, 0.1)]),
    ("first", 1, [Cell(2, "fooled", -1, 0.1, X + 0.5), Cell(3, "resisted", 1, 0.1)]),
]


def begin(path: Path | None, identity: dict[str, Any] = IDENTITY, environment: dict[str, Any] = HERE) -> Ledger:
    return Ledger.create_or_resume(path, identity=identity, labels=[0, 0, 0, 1], environment=environment)


def write(ledger: Ledger, batches: list[tuple[str, int, list[Cell]]] = BATCHES, seconds: float = 0.5) -> None:
    for attack, batch, cells in batches:
        ledger.record(attack, batch, cells, Cost(seconds, 7))


@pytest.mark.parametrize("kept", ["in a file", "in memory"])
def test_every_number_is_a_query(kept: str, tmp_path: Path) -> None:
    with begin(tmp_path / "ledger.sqlite" if kept == "in a file" else None) as ledger:
        write(ledger)
        assert ledger.outcomes(CLEAN).count("1") == 3
        assert ledger.outcomes("second") == "0011" and ledger.outcomes("first") == "0101"
        assert ledger.worst_case() == (1, 4) and ledger.outcomes() == "0001"
        assert ledger.counts("second") == {"not_run": 1, "fooled": 1, "resisted": 1, "invalid": 1}
        assert ledger.cost("first") == Cost(1.0, 14)
        assert ledger.labels == [0, 0, 0, 1] and ledger.environments == [HERE]
        assert ledger.identity == IDENTITY and list(ledger.attacks) == ["second", "first"]


def test_an_adversarial_image_comes_back_bit_for_bit(tmp_path: Path) -> None:
    with begin(tmp_path / "ledger.sqlite") as ledger:
        write(ledger)
    with Ledger.read(tmp_path / "ledger.sqlite") as ledger:
        stored = ledger.adversarial("second", 1)
        assert stored is not None and torch.equal(stored, X)
        assert ledger.adversarial("first", 1) is None
        assert ledger.cells("first")[2] == Cell(2, "fooled", -1, 0.1)


def test_a_batch_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with begin(tmp_path / "ledger.sqlite") as ledger:
        write(ledger, BATCHES[:2])
        before = ledger.checksum()
        with pytest.raises(UserError):
            ledger.record("second", 0, [Cell(0, "not_run"), Cell(1, "resisted"), Cell(1, "resisted")], Cost(0, 0))
        assert ledger.checksum() == before and ledger.done("second") == set()


def test_the_checksum_is_of_the_content_alone(tmp_path: Path) -> None:
    with begin(tmp_path / "a.sqlite") as one, begin(None) as other:
        write(one)
        # Another order, other times, and an interruption.
        write(other, BATCHES[3:], seconds=9.0)
        write(other, BATCHES[:3], seconds=1.0)
        assert one.checksum() == other.checksum()
    change(tmp_path / "a.sqlite", "UPDATE cells SET status = 'resisted' WHERE attack = 'first' AND example = 2")
    with Ledger.read(tmp_path / "a.sqlite") as one, begin(None) as other:
        write(other)
        assert one.checksum() != other.checksum()


def test_the_checksum_does_not_depend_on_how_well_images_were_compressed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with begin(path) as ledger:
        write(ledger)
        before = ledger.checksum()
    for raw, same in ((X, True), (X + 1e-6, False)):
        blob = zlib.compress(raw.numpy().tobytes(), 0)
        change(path, "UPDATE cells SET x_adv = ? WHERE attack = 'second' AND example = 1", blob)
        with Ledger.read(path) as ledger:
            assert (ledger.checksum() == before) == same


def test_parts_of_a_batch_become_the_batch(tmp_path: Path) -> None:
    def parts(ledger: Ledger, batches: list[tuple[str, int, list[Cell]]], *, last: bool) -> None:
        for attack, batch, cells in batches:
            if not last:
                ledger.record(attack, batch, cells[:1], Cost(0.25, 3), more=True)
            else:
                ledger.record(attack, batch, cells[1:], Cost(0.25, 4))

    with begin(None) as whole:
        write(whole)
        expected = whole.checksum()
    path, part = tmp_path / "ledger.sqlite", tmp_path / "part.sqlite"
    with begin(path) as ledger:
        parts(ledger, BATCHES, last=False)
        assert ledger.done("first") == set() and ledger.cost("first") == Cost(0.5, 6)
        parts(ledger, BATCHES[:3], last=True)
    beside = Ledger.create_or_resume(part, identity=IDENTITY, labels=[0, 0, 0, 1], environment=HERE, beside=path)
    with beside as other:
        assert [c.example for c in other.cells("first")] == [0, 2]
        parts(other, BATCHES[3:], last=True)
    with begin(path) as ledger, begin(part) as other:
        for _ in range(2):  # a second merge, as after a crash, changes nothing
            ledger.take_over([other])
            assert ledger.checksum() == expected and ledger.cost("first") == Cost(1.0, 14)


def test_resumes_with_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with begin(path) as ledger:
        write(ledger, BATCHES[:3])
    with begin(path) as ledger:
        assert [ledger.done(name) for name in (CLEAN, "second", "first")] == [{0, 1}, {0}, set()]
        write(ledger, BATCHES[3:])
        assert ledger.worst_case() == (1, 4)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": {"checksum": "cd"}}, "model.checksum: ab -> cd"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"data": {"name": "few", "shape": [1, 2, 3]}}, r"data.shape\[2\]: 2 -> 3"),
        ({"attacks": {"second": {"steps": 5}, "first": {"steps": 2}}}, "attacks.second.steps: 1 -> 5"),
        ({"attacks": {"first": {"steps": 2}, "second": {"steps": 1}}}, "another order"),
    ],
)
def test_another_evaluation_is_refused_by_what_differs(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with begin(path) as ledger:
        write(ledger)
        before = ledger.checksum()
    with pytest.raises(UserError, match=named):
        begin(path, IDENTITY | changed)
    with Ledger.read(path) as ledger:
        assert ledger.checksum() == before


def test_another_environment_is_written_down(tmp_path: Path) -> None:
    path, later = tmp_path / "ledger.sqlite", HERE | {"commit": "0", "threads": 0}
    for environment, batches in ((HERE, BATCHES[:1]), (later, BATCHES[1:]), (HERE | {"threads": 9}, [])):
        with begin(path, environment=environment) as ledger:
            write(ledger, batches)
    with begin(None) as at_once:
        write(at_once)
        whole = at_once.checksum()
    with Ledger.read(path) as ledger:
        assert ledger.environments == [HERE, later], "where nothing was computed does not count"
        assert ledger.checksum() == whole, "who computed what does not change what was found"


def test_a_full_disk_leaves_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    big = torch.rand(1, 300, 300, generator=torch.Generator().manual_seed(0))
    with begin(path) as ledger:
        write(ledger, BATCHES[:2])
        before = ledger.checksum()
        (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
        ledger._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(UserError, match="full; free some space"):
            ledger.record("second", 0, [Cell(0, "not_run"), Cell(1, "fooled", 1, 0.1, big)], Cost(0, 0))
        assert ledger.checksum() == before
    with begin(path) as ledger:
        write(ledger, BATCHES[2:])
        assert ledger.worst_case() == (1, 4)


def test_a_power_cut_leaves_what_was_written(tmp_path: Path) -> None:
    """The files as they lie on the disk in the middle of a transaction, half of it written over the old content."""
    path, after = tmp_path / "ledger.sqlite", tmp_path / "after.sqlite"
    noise = torch.rand(1, 300, 300, generator=torch.Generator().manual_seed(0))
    with begin(path) as ledger:
        write(ledger, BATCHES[:3])
        before = ledger.checksum()
        ledger._db.execute("PRAGMA cache_size = 1")
        with ledger._transaction():
            ledger._db.execute("UPDATE cells SET x_adv = ?", (noise.numpy().tobytes(),))
            shutil.copy(path, after)
            shutil.copy(f"{path}-journal", f"{after}-journal")
    assert after.stat().st_size > 300_000 and Path(f"{after}-journal").stat().st_size > 0
    with pytest.raises(UserError, match="run the same evaluation again to complete it"):
        Ledger.read(after)
    with begin(after) as ledger:
        assert ledger.checksum() == before
        write(ledger, BATCHES[3:])
        assert ledger.worst_case() == (1, 4)


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.sqlite"
    text.write_text("my notes " * 1000)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (value)")
    db.close()
    for path in (text, other):
        before = path.read_bytes()
        for open_ in (begin, Ledger.read):
            with pytest.raises(UserError, match="no ledger"):
                open_(path)
        assert path.read_bytes() == before
    with pytest.raises(UserError, match="there is no ledger at"):
        Ledger.read(tmp_path / "nothing.sqlite")
    assert not (tmp_path / "nothing.sqlite").exists()
    with pytest.raises(UserError, match="check that the folder exists"):
        begin(tmp_path / "no folder" / "ledger.sqlite")


def test_a_truncated_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with begin(path) as ledger:
        write(ledger)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        Ledger.read(path)


@pytest.mark.parametrize(
    "place", ["examples SET label = ''", "cells SET status = 1.5", "batches SET forwards = 'many'"]
)
def test_a_value_of_another_type_is_refused(place: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with begin(path) as ledger:
        write(ledger)
    change(path, f"UPDATE {place.replace('1.5', '?')}", *[b"1"] * ("1.5" in place))
    with pytest.raises(UserError, match=f"a value of another type in its {place.partition(' ')[0]}"):
        Ledger.read(path)


def test_rows_that_nobody_read_to_the_end_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lost.append)
    with begin(tmp_path / "ledger.sqlite") as ledger:
        write(ledger)
        rows = ledger._rows("SELECT * FROM cells")
        next(rows)
    del rows
    assert lost == []


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with begin(path) as ledger:
        write(ledger)
    change(path, "UPDATE cells SET x_adv = ? WHERE attack = 'second' AND example = 1", b"not compressed")
    with Ledger.read(path) as ledger, pytest.raises(UserError, match="image 1 of second"):
        ledger.adversarial("second", 1)
