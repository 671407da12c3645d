"""The ledger: one row for each example and attack in a SQLite file. Every printed number is a query on it.

The clean images are the first "attack", called "clean". An example counts as robust unless a row says `fooled`. Each
batch of an attack, or part of a batch, is one transaction, so an interrupted one is repeated and a finished one stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from torch import Tensor

from advsphere.errors import UserError
from advsphere.evaluation.database import Database, uri
from advsphere.files import canonical, fingerprint, packed, unpacked
from advsphere.identity import refuse_another

Status = Literal["fooled", "resisted", "invalid", "not_run", "not_sampled"]
"""`fooled`: inside the ball and misclassified in float32. `invalid`: outside the ball, which counts as resisted.
`not_run`: skipped, because the clean image is misclassified or an earlier attack in the cascade fooled it.
`not_sampled`: outside the random sample on which this attack runs, which counts as resisted.
"""


class Cell(NamedTuple):
    """The outcome of one attack on one example.

    Attributes:
        example: The number of the example, from 0.
        status: The outcome.
        prediction: The class of the adversarial image in float32; -1 for NaN logits, None if it was not predicted.
        distance: Distance of the adversarial image from the clean one, in the threat's norm.
        x_adv: The adversarial image (C, H, W); stored only if it is misclassified, inside the ball or outside it.
    """

    example: int
    status: Status
    prediction: int | None = None
    distance: float | None = None
    x_adv: Tensor | None = None


@dataclass(frozen=True)
class Cost:
    """The cost of an attack.

    Attributes:
        seconds: Its duration.
        forwards: Images that went through the model during the search.
    """

    seconds: float
    forwards: int


CLEAN = "clean"
"""The name of the clean images among the attacks."""


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
_PLACES = 2**32
"""A part of a batch has the number ~(batch * _PLACES + first example), which is negative, until the batch is whole."""
_PARTS = f"FROM batches WHERE attack = ? AND batch < 0 AND ~batch / {_PLACES} = ?"
_FORGET_PARTS = (
    "DELETE FROM batches WHERE batch < 0 AND EXISTS (SELECT 1 FROM batches AS whole "
    f"WHERE whole.attack = batches.attack AND whole.batch = ~batches.batch / {_PLACES})"
)
_CONTENT = (
    "SELECT key, value FROM meta WHERE key NOT IN ('answers', 'files') ORDER BY key",
    "SELECT name, value FROM probes ORDER BY name",
    "SELECT example, label FROM examples ORDER BY example",
    "SELECT position, name, settings FROM attacks ORDER BY position",
    "SELECT attack, batch, forwards FROM batches ORDER BY attack, batch",
    "SELECT attack, example, status, prediction, distance, x_adv FROM cells ORDER BY attack, example",
)


class Ledger(Database):
    """An open ledger; a context manager. `create_or_resume` opens one for writing, `read` for reading.

    Every method raises UserError if the file is damaged or no ledger, or if the disk is full. Committed rows stay
    intact.

    Args:
        path: The file; None keeps the ledger in memory.
        read_only: Open the file for reading only.
    """

    def __init__(self, path: Path | str | None, *, read_only: bool = False) -> None:
        super().__init__(path, read_only=read_only)
        self._environment = canonical({})

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Open an existing ledger for reading.

        Args:
            path: The file.

        Returns:
            The ledger.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"there is no ledger at {path}; `advsphere evaluate` writes one")
        ledger = cls(path, read_only=True)
        with ExitStack() as on_error:
            on_error.callback(ledger.close)
            ledger._check()
            on_error.pop_all()
        return ledger

    @classmethod
    def create_or_resume(
        cls,
        path: Path | str | None,
        *,
        identity: Mapping[str, Any],
        labels: Sequence[int],
        environment: Mapping[str, Any],
        answers: Mapping[str, Any] | None = None,
        files: Sequence[str] | None = None,
        beside: Path | str | None = None,
    ) -> Self:
        """Create a ledger, or open an existing one of the same evaluation.

        Args:
            path: The file; None keeps the ledger in memory.
            identity: Everything that the outcome depends on, JSON-able. Its entry "attacks" maps names to settings, in
                order.
            labels: The label of each example.
            environment: Versions and hardware. They are added to the earlier ones once something is recorded.
            answers: The model's answers from `identity.model_answers`.
            files: The file name of each image. Names are no part of the checksum.
            beside: Another ledger of this evaluation, whose rows are read as if they were in this one.

        Returns:
            The ledger.

        Raises:
            UserError: If the file holds another evaluation. The message names the differences.
        """
        ledger = cls(path)
        with ExitStack() as on_error:
            on_error.callback(ledger.close)
            if ledger.begun:
                ledger._check()
                refuse_another(ledger.path, ledger.identity, identity, ledger.answers, answers)
            else:
                with ledger._transaction():
                    ledger._create(identity, labels, {"answers": answers} | ({} if files is None else {"files": files}))
            if beside is not None:
                ledger._read_with(Path(beside))
            on_error.pop_all()
        ledger._environment = canonical(environment)
        return ledger

    def record(self, attack: str, batch: int, cells: Sequence[Cell], cost: Cost, *, more: bool = False) -> None:
        """Write all cells of one attack and batch, or of a part of the batch, or none of them.

        Args:
            attack: Name of the attack.
            batch: Number of the batch.
            cells: One for each example.
            cost: The cost of these cells.
            more: The other cells of the batch are still missing.
        """
        rows = [(attack, *c[:4], packed(c.x_adv)) for c in cells]
        with self._transaction():
            self._db.executemany("INSERT INTO main.cells VALUES (?, ?, ?, ?, ?, ?)", rows)
            if more:
                batch = ~(batch * _PLACES + min(cell.example for cell in cells))
            else:
                (before,) = self._rows(f"SELECT TOTAL(seconds), TOTAL(forwards) {_PARTS}", attack, batch)
                cost = Cost(cost.seconds + before[0], cost.forwards + int(before[1]))
                self._db.execute(f"DELETE {_PARTS.replace('batches', 'main.batches')}", (attack, batch))
            self._db.execute("INSERT INTO main.batches VALUES (?, ?, ?, ?)", (attack, batch, *astuple(cost)))
            self._db.execute("INSERT OR IGNORE INTO environments VALUES (?)", (self._environment,))

    def take_over(self, parts: Sequence[Ledger]) -> None:
        """Copy the contents of other ledgers into this one.

        Args:
            parts: Open ledgers of the same evaluation.
        """
        with self._transaction():
            for part in parts:
                for table, columns in {"cells": 6, "batches": 4, "environments": 1}.items():
                    sql = f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * columns)})"
                    self._db.executemany(sql, part._rows(f"SELECT * FROM {table} ORDER BY rowid"))
            self._db.execute(_FORGET_PARTS)

    def record_probe(self, name: str, value: Any) -> None:
        """Store the result of a probe, a measurement besides the attacks. An earlier result is replaced.

        Args:
            name: Name of the probe.
            value: The result, JSON-able.
        """
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO probes VALUES (?, ?)", (name, canonical(value)))

    @property
    def probes(self) -> dict[str, Any]:
        """The results of all probes, by name."""
        return {name: self._json(value) for name, value in self._rows("SELECT name, value FROM probes ORDER BY name")}

    def done(self, attack: str) -> set[int]:
        """The finished batches of an attack.

        Args:
            attack: Its name.

        Returns:
            Their numbers.
        """
        return {int(b) for (b,) in self._rows("SELECT batch FROM batches WHERE attack = ? AND batch >= 0", attack)}

    @property
    def begun(self) -> bool:
        """Whether anything was recorded. If the file is open for writing, a write that was cut off is undone first."""
        return bool([*self._rows("SELECT 1 FROM sqlite_master LIMIT 1")])

    @property
    def identity(self) -> dict[str, Any]:
        """The identity that was given to `create_or_resume`."""
        sql = "SELECT key, value FROM meta WHERE key NOT IN ('format', 'answers', 'files')"
        return {k: self._json(v) for k, v in self._rows(sql)} | {"attacks": self.attacks}

    @property
    def answers(self) -> dict[str, Any] | None:
        """The model's answers to a few images; None in a ledger of an earlier version."""
        return next((self._json(v) for (v,) in self._rows("SELECT value FROM meta WHERE key = 'answers'")), None)

    @property
    def files(self) -> list[str] | None:
        """The file name of each image; None if the images have none, and in a ledger of an earlier version."""
        return next((self._json(v) for (v,) in self._rows("SELECT value FROM meta WHERE key = 'files'")), None)

    @property
    def attacks(self) -> dict[str, dict[str, Any]]:
        """The settings of each attack, in order, without the clean images."""
        rows = self._rows("SELECT name, settings FROM attacks WHERE name != ? ORDER BY position", CLEAN)
        return {name: self._json(settings) for name, settings in rows}

    @property
    def environments(self) -> list[dict[str, Any]]:
        """The environments of the run; several if it was continued elsewhere or with another commit."""
        return [self._json(v) for (v,) in self._rows("SELECT value FROM environments ORDER BY rowid")]

    @property
    def labels(self) -> list[int]:
        """The label of each example."""
        return [int(y) for (y,) in self._rows("SELECT label FROM examples ORDER BY example")]

    def cost(self, attack: str) -> Cost:
        """The cost of an attack over all its batches.

        Args:
            attack: Its name.

        Returns:
            The sum.
        """
        (row,) = self._rows("SELECT TOTAL(seconds), TOTAL(forwards) FROM batches WHERE attack = ?", attack)
        return Cost(float(row[0]), int(row[1]))

    def counts(self, attack: str) -> dict[Status, int]:
        """The number of cells of an attack with each status.

        Args:
            attack: Its name.

        Returns:
            Counts by status, without those that are 0.
        """
        return dict(self._rows("SELECT status, COUNT(*) FROM cells WHERE attack = ? GROUP BY status", attack))

    def worst_case(self) -> tuple[int, int]:
        """(k, n): k of the n examples resisted every attack."""
        outcomes = self.outcomes()
        return outcomes.count("1"), len(outcomes)

    def outcomes(self, attack: str | None = None) -> str:
        """Which examples are robust.

        Args:
            attack: Count this attack and the earlier ones in its cascade; None counts all attacks.

        Returns:
            A character for each example: "1" if it is robust, else "0".
        """
        names = [CLEAN, *self.attacks]
        if attack is not None:
            names = [CLEAN, *self.attacks.get(attack, {}).get("after", []), attack]
        marks = ", ".join("?" * len(names))
        sql = f"SELECT example FROM cells WHERE status = 'fooled' AND attack IN ({marks})"
        broken = {i for (i,) in self._rows(sql, *names)}
        return "".join("0" if i in broken else "1" for i in range(len(self.labels)))

    def cells(self, attack: str) -> list[Cell]:
        """The cells of an attack in order of examples, without adversarial images.

        Args:
            attack: Its name.

        Returns:
            The cells.
        """
        sql = "SELECT example, status, prediction, distance FROM cells WHERE attack = ? ORDER BY example"
        return [Cell(*row) for row in self._rows(sql, attack)]

    def pictured(self, attack: str) -> set[int]:
        """The examples whose adversarial image is stored.

        Args:
            attack: The attack's name.

        Returns:
            Their numbers.
        """
        return {i for (i,) in self._rows("SELECT example FROM cells WHERE attack = ? AND x_adv NOT NULL", attack)}

    @property
    def strays(self) -> int:
        """Number of rows of attacks or examples that the ledger does not list; 0 in any ledger that was not edited."""
        unlisted = "attack NOT IN (SELECT name FROM attacks)"
        lost = f"SELECT COUNT(*) FROM cells WHERE {unlisted} OR example NOT IN (SELECT example FROM examples)"
        (cells,), (batches,) = self._rows(lost), self._rows(f"SELECT COUNT(*) FROM batches WHERE {unlisted}")
        return int(cells[0] + batches[0])

    def adversarial(self, attack: str, example: int) -> Tensor | None:
        """Read an adversarial image.

        Args:
            attack: The attack's name.
            example: The number of the example.

        Returns:
            (C, H, W) float32; None where no image is stored.
        """
        rows = [*self._rows("SELECT x_adv FROM cells WHERE attack = ? AND example = ?", attack, example)]
        blob = rows[0][0] if rows else None
        try:
            return None if blob is None else unpacked(blob, self.identity["data"]["shape"])
        except ValueError as error:
            raise UserError(f"adversarial image {example} of {attack} in {self.path} is damaged ({error})") from error

    def checksum(self) -> str:
        """SHA-256 over identity and outcomes. It does not depend on interruptions, time, machine or commit."""
        digest = hashlib.sha256()
        for sql in _CONTENT:
            for row in self._rows(sql):
                values = [fingerprint(v) if isinstance(v, bytes) else v for v in row]
                digest.update(canonical(values).encode())
        return digest.hexdigest()

    def _create(self, identity: Mapping[str, Any], labels: Sequence[int], notes: Mapping[str, Any]) -> None:
        for statement in _SCHEMA.split(";"):
            self._db.execute(statement)
        meta = {"format": _FORMAT, **notes} | {k: v for k, v in identity.items() if k != "attacks"}
        self._db.executemany("INSERT INTO meta VALUES (?, ?)", [(k, canonical(v)) for k, v in meta.items()])
        self._db.executemany("INSERT INTO examples VALUES (?, ?)", enumerate(labels))
        attacks = [(name, canonical(settings)) for name, settings in [(CLEAN, {}), *identity["attacks"].items()]]
        self._db.executemany("INSERT INTO attacks (name, settings) VALUES (?, ?)", attacks)

    def _read_with(self, beside: Path) -> None:
        with self._errors():
            self._db.execute("ATTACH ? AS beside", (uri(beside, "ro"),))
            for table in ("cells", "batches"):  # a temporary view hides the tables of the same name
                both = f"SELECT * FROM main.{table} UNION ALL SELECT * FROM beside.{table}"
                self._db.execute(f"CREATE TEMP VIEW {table} AS {both}")

    def _check(self) -> None:
        self._refuse_computed()
        with self._errors():
            found = " ".join(str(self._db.execute("PRAGMA quick_check(1)").fetchone()[0]).split())
            if found != "ok":
                raise UserError(f"{self.path} is damaged ({found}); use another copy, or evaluate into a new file")
            row = self._db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
        if row is None or self._json(row[0]) != _FORMAT:
            raise UserError(f"{self.path} is no ledger of this version ({_FORMAT}); evaluate into a new file")
        self._refuse_other_types(_SCHEMA)
