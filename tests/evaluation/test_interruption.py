"""An evaluation that ends at any moment, by Ctrl-C or by kill -9, goes on and comes to the same ledger."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from advsphere.errors import UserError
from advsphere.evaluation import Evaluation, Ledger, evaluate, verify
from tests.evaluation.cases import FEW, THREAT, linear
from tests.evaluation.dying import KINDS
from tests.launching import run_ranks

PROGRAM = "from tests.evaluation import dying; dying.main()"
SAMPLE = 6


@pytest.mark.parametrize("kind", KINDS)
def test_ended_at_any_moment_it_comes_to_the_same_ledger(kind: str, tmp_path: Path) -> None:
    (done,) = run_ranks(1, PROGRAM, tmp_path, kind, SAMPLE, seconds=300)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == SAMPLE
    with Ledger.read(tmp_path / "whole.sqlite") as book:
        whole = outcome(book, kind)
    for moment, by, ended, again in lines:
        assert (by, ended, again) in {("SIGKILL", "-9", "0"), ("SIGINT", "130", "0")}, (moment, done.stderr)
        with Ledger.read(tmp_path / f"{moment}.sqlite") as book:
            assert outcome(book, kind) == whole, moment
            result = Evaluation.of(book)
    model, images, _ = linear(40, classes=3, wrong=4)
    own = None if kind == "by name" else KINDS[kind]["suite"]
    result.save(tmp_path / f"{moment}.json")
    found = verify(tmp_path / f"{moment}.json", tmp_path / f"{moment}.sqlite", model, images, suite=own)
    assert found.passed, found


def test_a_ledger_whose_last_write_was_cut_off_goes_on(tmp_path: Path) -> None:
    """Also if the batch size is not given, so that it is read from this ledger before anything is written."""
    known, settings = linear(), {"threat": THREAT, "suite": FEW}
    whole, cut = tmp_path / "whole.sqlite", tmp_path / "cut.sqlite"
    evaluate(*known, **settings, ledger=whole)
    with sqlite3.connect(whole) as db:
        db.execute("PRAGMA cache_size = 1")  # pages are written before the end of the transaction
        db.execute("UPDATE cells SET x_adv = randomblob(9000), status = 'resisted'")
        shutil.copy(whole, cut)
        shutil.copy(f"{whole}-journal", f"{cut}-journal")
        db.rollback()
    db.close()
    with pytest.raises(UserError, match="run the same evaluation again to complete it"):
        Ledger.read(cut)
    evaluate(*known, **settings, ledger=cut)
    nothing = tmp_path / "nothing.sqlite"  # what is left if the very first write was cut off
    with sqlite3.connect(nothing) as db:
        db.execute("PRAGMA user_version = 1")
    db.close()
    evaluate(*known, **settings, ledger=nothing)
    with Ledger.read(whole) as book:
        for path in (cut, nothing):
            with Ledger.read(path) as other:
                assert book.checksum() == other.checksum()


def outcome(book: Ledger, kind: str) -> object:
    """The checksum. Under a budget the clock decides which images are attacked together, and so the rounding."""
    if kind != "within a budget":
        return book.checksum()
    return {name: [cell[:3] for cell in book.cells(name)] for name in ("clean", *book.attacks)}
