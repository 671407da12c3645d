"""An evaluation that ends at any moment, by Ctrl-C or by kill -9, goes on and comes to the same ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from advsphere.evaluation import Evaluation, Ledger, verify
from tests.evaluation.cases import linear
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


def outcome(book: Ledger, kind: str) -> object:
    """The checksum. Under a budget the clock decides which images are attacked together, and so the rounding."""
    if kind != "within a budget":
        return book.checksum()
    return {name: [cell[:3] for cell in book.cells(name)] for name in ("clean", *book.attacks)}
