"""A SQLite file with whole transactions, and errors that name the cause and the cure."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from advsphere.errors import UserError
from advsphere.files import identity_of

_PATIENCE = 60.0
"""Seconds to wait for another process, such as a reader, that keeps the file locked."""


class Database:
    """An open SQLite file, a context manager.

    Every method raises UserError if the file is damaged or no database, if the disk is full, or if the file was removed
    or replaced since it was first written.

    Args:
        path: The file; None keeps the database in memory.
        read_only: Open the file for reading only.
    """

    def __init__(self, path: Path | str | None, *, read_only: bool = False) -> None:
        path = None if path is None else Path(path)
        self.path, self._identity_of_file = path, None if path is None else identity_of(path)
        where = ":memory:" if path is None else uri(path, "ro" if read_only else "rwc")
        with self._errors():
            self._db = sqlite3.connect(where, uri=True, isolation_level=None, timeout=_PATIENCE)
            self._db.execute("PRAGMA trusted_schema = OFF")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path or 'in memory'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def content(self) -> bytes:
        """The whole database, to open it again with `of_content`."""
        with self._errors():
            return self._db.serialize()

    @classmethod
    def of_content(cls, content: bytes) -> Self:
        """Open in memory what `content` returned."""
        opened = cls(None)
        with opened._errors():
            opened._db.deserialize(content)
        return opened

    def _rows(self, sql: str, *values: object) -> Iterator[Any]:
        with self._errors():
            for row in self._db.execute(sql, values):  # noqa: UP028 (it closes a cursor that was left, with an error
                yield row  # if the database was closed before)

    def _json(self, text: Any) -> Any:
        try:
            return json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"ledger {self.path}: {str(error)[:200]}; it is damaged, so use another copy") from error

    @property
    def version(self) -> int:
        """A number that changes when another process changes the file."""
        ((version,),) = self._rows("PRAGMA data_version")
        return int(version)

    def require_place(self) -> None:
        """Raise UserError if the file was removed or replaced: SQLite writes on into a file that nobody sees."""
        if self.path is None:
            return
        found = identity_of(self.path)
        self._identity_of_file = self._identity_of_file or found
        if found is None or found != self._identity_of_file:
            raise UserError(
                f"ledger {self.path} was removed or replaced while it was being written; put it back if you moved it, "
                "and run the same evaluation again"
            )

    def _refuse_computed(self) -> None:
        """Raise UserError for tables that are not plain: they could compute for ever, or differ at each look."""
        odd = "type NOT IN ('table', 'index') OR sql LIKE '%virtual%' OR sql LIKE '%generated%' OR sql LIKE '%check%'"
        for (name,) in self._rows(f"SELECT name FROM sqlite_master WHERE {odd} LIMIT 1"):
            raise UserError(
                f"{self.path} has {name!r}, a view, trigger or computed table, so it was not written by advsphere; "
                "use another copy"
            )

    def _refuse_other_types(self, schema: str) -> None:
        """Raise UserError for values of other types than those of the columns of `schema`: SQLite takes any."""
        plain = sqlite3.connect(":memory:")
        plain.executescript(schema)
        for (table,) in plain.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
            columns = plain.execute(f"SELECT name, lower(type) FROM pragma_table_info('{table}')")
            odd = " OR ".join(f"typeof({name}) NOT IN ('{kind}', 'null')" for name, kind in columns)
            for _ in self._rows(f"SELECT 1 FROM {table} WHERE {odd} LIMIT 1"):
                raise UserError(f"{self.path} has a value of another type in its {table}; use another copy")
        plain.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._identity_of_file is not None:
            self.require_place()
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.require_place()
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk makes SQLite roll back by itself
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            cures = {
                "full": "free some space and run the same evaluation again; every finished batch is kept",
                "locked": "another process is using it, or the file system has no locks; wait, or give another file",
                "readonly": "a write was interrupted; run the same evaluation again to complete it, where the disk is "
                "not read-only",
                "disk I/O": "the disk failed, or the folder was removed; run the same evaluation again",
                "unable to open": "check that the folder exists and can be written",
            }
            cure = next(
                (c for sign, c in cures.items() if sign in str(error)), "it is no ledger, or damaged; use another file"
            )
            raise UserError(f"ledger {self.path}: {error}; {cure}") from error


def uri(path: Path, mode: str) -> str:
    return f"{path.absolute().as_uri()}?mode={mode}"
