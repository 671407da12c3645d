"""An evaluation that ends at any moment, by Ctrl-C or by kill -9, goes on and comes to the same ledger."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from advsphere.evaluation import Evaluation, Ledger, verify
from tests.evaluation.cases import linear
from tests.evaluation.dying import KINDS

ROOT = Path(__file__).parents[2]
SAMPLE = 6


@pytest.mark.parametrize("kind", KINDS)
def test_ended_at_any_moment_it_comes_to_the_same_ledger(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.evaluation.dying", str(tmp_path), kind, str(SAMPLE)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == SAMPLE
    with Ledger.read(tmp_path / "whole.sqlite") as book:
        whole = book.checksum()
    for moment, by, ended, again in lines:
        assert (by, ended, again) in {("SIGKILL", "-9", "0"), ("SIGINT", "130", "0")}, (moment, done.stderr)
        with Ledger.read(tmp_path / f"{moment}.sqlite") as book:
            assert book.checksum() == whole, moment
            result = Evaluation.of(book)
    model, images, _ = linear(40, classes=3, wrong=4)
    own = None if kind == "by name" else KINDS[kind]["suite"]
    result.save(tmp_path / f"{moment}.json")
    found = verify(tmp_path / f"{moment}.json", tmp_path / f"{moment}.sqlite", model, images, suite=own)
    assert found.passed, found
