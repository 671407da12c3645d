"""A ledger has one writer, stays at its place while it is written, and computes nothing by itself."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch

from advsphere.errors import UserError
from advsphere.evaluation import Cell, Ledger, evaluate, verify
from advsphere.evaluation.progress import Progress
from advsphere.files import file_lock, fingerprint, packed, unpacked
from tests.evaluation.cases import THREAT, linear, pgd_spec


def measured(path: Path, on_progress: Callable[[Progress], None] | None = None) -> Path:
    known = linear()
    result = evaluate(*known, threat=THREAT, suite=[pgd_spec()], ledger=path, batch_size=20, on_progress=on_progress)
    result.save(path.with_name("evaluation.json"))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measured(tmp_path_factory.mktemp("finished") / "ledger.sqlite").parent


@pytest.fixture
def path(finished: Path, tmp_path: Path) -> Path:
    """The ledger of a finished evaluation, which the test may change."""
    return Path(shutil.copytree(finished, tmp_path / "evaluation")) / "ledger.sqlite"


def test_two_evaluations_into_one_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advsphere.evaluation.work.file_lock", partial(file_lock, patience=0))
    path = tmp_path / "ledger.sqlite"
    code = "import sys; from pathlib import Path; from advsphere.files import file_lock\n"
    code += "with file_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"ledger\.sqlite \(process {other.pid} on .*, since 20.*\); wait until"):
            measured(path)
        other.kill()
    measured(path)
    assert (tmp_path / ".ledger.sqlite.lock").read_text() == ""


@pytest.mark.parametrize("how", ["file", "folder", "replaced"])
def test_a_ledger_that_goes_away_ends_the_evaluation(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()

    def remove(progress: Progress) -> None:
        if progress.attack != "clean" and progress.done == 40:
            if how == "file":
                (folder / "ledger.sqlite").unlink()
            else:
                folder.rename(tmp_path / "elsewhere")
            if how == "replaced":
                shutil.copytree(tmp_path / "elsewhere", folder)

    with pytest.raises(UserError, match=r"ledger\.sqlite was removed or replaced while it was being written"):
        measured(folder / "ledger.sqlite", remove)
    assert not (folder / "evaluation.json").exists()


def test_a_ledger_that_goes_away_after_the_last_batch(tmp_path: Path) -> None:
    def remove(progress: Progress) -> None:
        if progress.attack != "clean" and progress.done == 60:
            (tmp_path / "ledger.sqlite").unlink()

    with pytest.raises(UserError, match=r"was removed or replaced"):
        measured(tmp_path / "ledger.sqlite", remove)


def test_verify_says_that_the_evaluation_went_on(path: Path) -> None:
    known = linear()

    class Writing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with closing(sqlite3.connect(path)) as db, db:
                db.execute("INSERT OR REPLACE INTO environments VALUES ('{}')")
            return known.model(x)  # type: ignore[no-any-return]

    with pytest.raises(UserError, match="was continued while it was read"):
        verify(path.with_name("evaluation.json"), path, Writing(), known.images, known.labels, suite=[pgd_spec()])


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE VIEW more AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "DROP TABLE meta; CREATE VIEW meta AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) "
        "SELECT i AS key, i AS value FROM n",
        "CREATE TRIGGER forge AFTER INSERT ON cells BEGIN DELETE FROM cells; END",
        "CREATE TABLE more (a, b GENERATED ALWAYS AS (zeroblob(a)))",
        "CREATE TABLE more (a CHECK (length(zeroblob(a)) > 0))",
    ],
)
def test_a_ledger_that_computes_is_refused(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(sql)
    with pytest.raises(UserError, match="a view, trigger or computed table"):
        Ledger.read(path)
    with pytest.raises(UserError, match="a view, trigger or computed table"):
        Ledger.create_or_resume(path, identity={}, labels=[], environment={})


@pytest.mark.parametrize("value", ["[" * 100_000, "{", "1" * 5000])
def test_values_that_are_no_json_or_too_deep(path: Path, value: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'threat'", (value,))
    with Ledger.read(path) as book, pytest.raises(UserError, match="it is damaged, so use another copy"):
        assert book.identity


def test_images_that_unpack_to_gigabytes_take_no_memory() -> None:
    squeezed = zlib.compressobj(9)
    bomb = b"".join(squeezed.compress(bytes(2**20)) for _ in range(32)) + squeezed.flush()
    for shape in ([3, 8, 8], [2**16, 2**16], [2**40, 0, -1], ["a"], json.loads("[1e300]")):
        with pytest.raises(ValueError):
            unpacked(bomb, shape)
    assert fingerprint(packed(torch.arange(6.0)) or b"") == fingerprint(zlib.compress(torch.arange(6.0).numpy(), 9))
    assert len({fingerprint(one) for one in (bomb, bomb[:-9], bomb[:-1], b"", b"x")}) == 5


def test_where_memory_runs_out_smaller_parts_have_the_same_draws() -> None:
    from advsphere.memory import leading_part

    def cells(index: torch.Tensor) -> tuple[list[Cell], int]:
        if len(index) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [Cell(i, "resisted") for i in index.tolist()], 7

    found, forwards = leading_part(cells, torch.arange(20))
    assert [cell.example for cell in found] == list(range(5)) and forwards == 7

    def never(index: torch.Tensor) -> tuple[list[Cell], int]:
        raise MemoryError

    with pytest.raises(MemoryError):
        leading_part(never, torch.arange(20))
