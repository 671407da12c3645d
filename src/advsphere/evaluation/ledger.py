"""The ledger: one row for each example and attack in a SQLite file, from which every printed number is a query.

The clean images are the first "attack", called "clean". An example is robust as far as the ledger knows unless a row
says `fooled`, so robust accuracy is an upper bound. A batch of an attack is one transaction: what was interrupted is
done again, what was finished stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from advsphere.errors import UserError
from advsphere.files import canonical, differences

# FOLDED cells: A cell of the ledger: what became of one example under one attack.

Status = Literal["fooled", "resisted", "invalid", "not_run"]
"""`fooled`: inside the ball and misclassified by the model in float32. `invalid`: the attack left the ball, which
counts as resisted. `not_run`: the clean image is misclassified already, or an attack that this one comes after fooled
it, so nothing was tried.
"""


class Cell(NamedTuple):
    """One example under one attack.

    prediction: the model's, in float32, of what the attack returned (-1 for NaN logits; None where nothing was
    predicted). distance: of that from the clean image. x_adv: (C, H, W), of a fooled one, and of what a minimal-norm
    attack found outside the ball.
    """

    example: int
    status: Status
    prediction: int | None = None
    distance: float | None = None
    x_adv: Tensor | None = None


@dataclass(frozen=True)
class Cost:
    """What an attack took. forwards: images that went through the model while searching."""

    seconds: float
    forwards: int


def packed(x: Tensor | None) -> bytes | None:
    """The float32 values of a tensor, compressed without loss."""
    return None if x is None else zlib.compress(x.detach().cpu().float().contiguous().numpy().tobytes(), 1)


def unpacked(blob: bytes, shape: Sequence[int]) -> Tensor:
    """The tensor that was packed. Raises ValueError for bytes that are none of this shape."""
    try:
        return torch.from_numpy(np.frombuffer(zlib.decompress(blob), dtype=np.float32).copy().reshape(shape))
    except (zlib.error, TypeError) as error:
        raise ValueError(str(error)) from error


def fingerprint(blob: bytes) -> str:
    """SHA-256 of the values in a packed tensor, which does not depend on the build of zlib that packed them."""
    with contextlib.suppress(zlib.error):  # damaged bytes are taken as they are, so that the damage shows
        blob = zlib.decompress(blob)
    return hashlib.sha256(blob).hexdigest()


# FOLDED database: A SQLite file whose errors say what to do: what the ledger is written in.


class Database:
    """An open SQLite file, or one in memory (None); a context manager.

    Raises UserError where the file is none, is damaged, or the disk is full; what was committed stays intact.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        self.path = path
        where = ":memory:" if path is None else uri(path, "ro" if read_only else "rwc")
        with self._errors():
            self._db = sqlite3.connect(where, uri=True, isolation_level=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def _rows(self, sql: str, *values: object) -> Iterator[Any]:
        with self._errors():
            yield from self._db.execute(sql, values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk makes SQLite roll back by itself
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            cures = {
                "full": "free some space and run the same again: every finished batch is safe in it",
                "locked": "another process is writing it; wait for that one, or give another file",
                "readonly": "it was interrupted while it wrote; run the same evaluation again to complete it",
                "unable to open": "check that the folder exists and can be written",
            }
            cure = next((c for sign, c in cures.items() if sign in str(error)), "it is no ledger, or it is damaged")
            raise UserError(f"ledger {self.path}: {error}; {cure}") from error


def uri(path: Path, mode: str) -> str:
    return f"{path.absolute().as_uri()}?mode={mode}"


CLEAN = "clean"

_FORMAT = "advsphere ledger 2"
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE environments (value TEXT PRIMARY KEY);
CREATE TABLE probes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE examples (example INTEGER PRIMARY KEY, label INTEGER NOT NULL);
CREATE TABLE attacks (position INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, settings TEXT NOT NULL);
CREATE TABLE batches (attack TEXT, batch INTEGER, seconds REAL NOT NULL, forwards INTEGER NOT NULL,
                      PRIMARY KEY (attack, batch));
CREATE TABLE cells (attack TEXT, example INTEGER, status TEXT NOT NULL, prediction INTEGER, distance REAL, x_adv BLOB,
                    PRIMARY KEY (attack, example));
"""
_CONTENT = (
    "SELECT key, value FROM meta ORDER BY key",
    "SELECT name, value FROM probes ORDER BY name",
    "SELECT example, label FROM examples ORDER BY example",
    "SELECT position, name, settings FROM attacks ORDER BY position",
    "SELECT attack, batch, forwards FROM batches ORDER BY attack, batch",
    "SELECT attack, example, status, prediction, distance, x_adv FROM cells ORDER BY attack, example",
)


class Ledger(Database):
    """An open ledger; a context manager. `create_or_resume` opens one to write, `read` one to look into.

    Raises UserError where the file is no ledger, is damaged, or the disk is full; what was committed stays intact.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        super().__init__(path, read_only=read_only)
        self._environment = canonical({})

    @classmethod
    def read(cls, path: Path) -> Self:
        """An existing ledger, for reading alone."""
        if not path.is_file():
            raise UserError(f"there is no ledger at {path}; `advsphere evaluate` writes one")
        ledger = cls(path, read_only=True)
        with ledger._closed_on_error():
            ledger._check()
        return ledger

    @classmethod
    def create_or_resume(
        cls,
        path: Path | None,
        *,
        identity: Mapping[str, Any],
        labels: Sequence[int],
        environment: Mapping[str, Any],
        beside: Path | None = None,
    ) -> Self:
        """A new ledger, or the one at `path` if it is of the same evaluation; None keeps it in memory.

        identity: JSON-able, all that the outcome depends on; its entry "attacks" maps names to settings, in order.
        environment: where it is run; one in which something is recorded is added to those before. beside: another
        ledger of this evaluation, whose cells are read with this one's as if they were in it, and never written. Raises
        UserError that names what differs.
        """
        ledger = cls(path)
        with ledger._closed_on_error():
            known = any(ledger._rows("SELECT 1 FROM sqlite_master"))
            if known:
                ledger._check()
                ledger._refuse_another(identity)
            if not known:
                with ledger._transaction():
                    ledger._create(identity, labels)
            if beside is not None:
                ledger._read_with(beside)
        ledger._environment = canonical(environment)
        return ledger

    def record(self, attack: str, batch: int, cells: Sequence[Cell], cost: Cost) -> None:
        """Write all cells of one attack and batch, or none of them."""
        rows = [(attack, c.example, c.status, c.prediction, c.distance, packed(c.x_adv)) for c in cells]
        with self._transaction():
            self._db.executemany("INSERT INTO main.cells VALUES (?, ?, ?, ?, ?, ?)", rows)
            row = (attack, batch, cost.seconds, cost.forwards)
            self._db.execute("INSERT INTO main.batches VALUES (?, ?, ?, ?)", row)
            self._db.execute("INSERT OR IGNORE INTO environments VALUES (?)", (self._environment,))

    def take_over(self, parts: Sequence[Ledger]) -> None:
        """Write down all that other ledgers of the same evaluation hold and this one does not, or nothing of it."""
        with self._transaction():
            for part in parts:
                for table, columns in {"cells": 6, "batches": 4, "environments": 1}.items():
                    rows = part._rows(f"SELECT * FROM {table} ORDER BY rowid")
                    marks = ", ".join("?" * columns)
                    self._db.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", rows)

    def record_probe(self, name: str, value: Any) -> None:
        """Write down a measurement beside the attacks, JSON-able, in place of an earlier one of its name."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO probes VALUES (?, ?)", (name, canonical(value)))

    @property
    def probes(self) -> dict[str, Any]:
        """The measurements beside the attacks."""
        return {name: json.loads(value) for name, value in self._rows("SELECT name, value FROM probes ORDER BY name")}

    def done(self, attack: str) -> set[int]:
        """The batches that are finished."""
        return {int(b) for (b,) in self._rows("SELECT batch FROM batches WHERE attack = ?", attack)}

    @property
    def identity(self) -> dict[str, Any]:
        """What `create_or_resume` was given."""
        meta = {k: json.loads(v) for k, v in self._rows("SELECT key, value FROM meta WHERE key != 'format'")}
        return meta | {"attacks": self.attacks}

    @property
    def attacks(self) -> dict[str, dict[str, Any]]:
        """The settings of each attack, in order, without the clean images."""
        rows = self._rows("SELECT name, settings FROM attacks WHERE name != ? ORDER BY position", CLEAN)
        return {name: json.loads(settings) for name, settings in rows}

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Where it was run, in this order; several if it was continued elsewhere or by another commit."""
        return [json.loads(v) for (v,) in self._rows("SELECT value FROM environments ORDER BY rowid")]

    @property
    def labels(self) -> list[int]:
        """The label of each example."""
        return [int(y) for (y,) in self._rows("SELECT label FROM examples ORDER BY example")]

    def cost(self, attack: str) -> Cost:
        """What an attack took in all its batches."""
        (row,) = self._rows("SELECT TOTAL(seconds), TOTAL(forwards) FROM batches WHERE attack = ?", attack)
        return Cost(float(row[0]), int(row[1]))

    def counts(self, attack: str) -> dict[Status, int]:
        """How many cells of an attack have each status."""
        return dict(self._rows("SELECT status, COUNT(*) FROM cells WHERE attack = ? GROUP BY status", attack))

    def accuracy(self, attack: str) -> tuple[int, int]:
        """(k, n): examples that neither the clean image, nor this attack, nor what it comes after shows to be
        misclassified.
        """
        outcomes = self.outcomes(attack)
        return outcomes.count("1"), len(outcomes)

    def worst_case(self) -> tuple[int, int]:
        """(k, n): examples that nothing in the ledger shows to be misclassified."""
        outcomes = self.outcomes()
        return outcomes.count("1"), len(outcomes)

    def outcomes(self, attack: str | None = None) -> str:
        """A character for each example, "1" robust and "0" not, under one attack and those that it comes after, or
        (None) in the worst case.
        """
        names = [CLEAN, *self.attacks]
        if attack is not None:
            names = [CLEAN, *self.attacks.get(attack, {}).get("after", []), attack]
        marks = ", ".join("?" * len(names))
        sql = f"SELECT example FROM cells WHERE status = 'fooled' AND attack IN ({marks})"
        broken = {i for (i,) in self._rows(sql, *names)}
        return "".join("0" if i in broken else "1" for i in range(len(self.labels)))

    def cells(self, attack: str) -> list[Cell]:
        """The cells of an attack in order of examples, without their adversarial examples."""
        sql = "SELECT example, status, prediction, distance FROM cells WHERE attack = ? ORDER BY example"
        return [Cell(*row) for row in self._rows(sql, attack)]

    def adversarial(self, attack: str, example: int) -> Tensor | None:
        """(C, H, W) float32, what fooled the model; None where nothing did. Raises UserError for unreadable data."""
        rows = self._rows("SELECT x_adv FROM cells WHERE attack = ? AND example = ?", attack, example)
        blob = next(iter([*rows]), (None,))[0]
        try:
            return None if blob is None else unpacked(blob, self.identity["data"]["shape"])
        except ValueError as error:
            raise UserError(
                f"the adversarial image {example} of {attack} in {self.path} is damaged ({error})"
            ) from error

    def checksum(self) -> str:
        """SHA-256 over what was asked and what came out: the same outcomes have the same checksum, interrupted or not,
        whenever, wherever and by whichever commit they were found.
        """
        digest = hashlib.sha256()
        for sql in _CONTENT:
            for row in self._rows(sql):
                values = [fingerprint(v) if isinstance(v, bytes) else v for v in row]
                digest.update(canonical(values).encode())
        return digest.hexdigest()

    def _create(self, identity: Mapping[str, Any], labels: Sequence[int]) -> None:
        for statement in _SCHEMA.split(";"):
            self._db.execute(statement)
        meta = {"format": _FORMAT} | {k: v for k, v in identity.items() if k != "attacks"}
        self._db.executemany("INSERT INTO meta VALUES (?, ?)", [(k, canonical(v)) for k, v in meta.items()])
        self._db.executemany("INSERT INTO examples VALUES (?, ?)", enumerate(labels))
        attacks = [(name, canonical(settings)) for name, settings in [(CLEAN, {}), *identity["attacks"].items()]]
        self._db.executemany("INSERT INTO attacks (name, settings) VALUES (?, ?)", attacks)

    def _read_with(self, beside: Path) -> None:
        with self._errors():
            self._db.execute("ATTACH ? AS beside", (uri(beside, "ro"),))
            for table in ("cells", "batches"):  # a temporary view hides the tables of its name
                both = f"SELECT * FROM main.{table} UNION ALL SELECT * FROM beside.{table}"
                self._db.execute(f"CREATE TEMP VIEW {table} AS {both}")

    def _check(self) -> None:
        with self._errors():
            (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise UserError(f"{self.path} is damaged ({found}); use another copy, or evaluate into a new file")
            row = self._db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
        if row is None or json.loads(row[0]) != _FORMAT:
            raise UserError(f"{self.path} is no ledger of this version ({_FORMAT}); evaluate into a new file")

    def _refuse_another(self, identity: Mapping[str, Any]) -> None:
        held, given = self.identity, json.loads(canonical(identity))
        # Settings of attacks are long, and follow from what is named before them.
        changed = [str(change) for change in differences(held, given)]
        changed.sort(key=lambda line: line.startswith("attacks"))
        if list(held["attacks"]) != list(identity["attacks"]):
            changed = changed or ["the attacks are in another order"]
        if changed:
            raise UserError(
                f"{self.path} holds another evaluation: {'; '.join(changed[:4])}. "
                "Give another file, or delete this one to begin again"
            )
