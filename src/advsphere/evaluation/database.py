"""A SQLite file with whole transactions, and errors that name the cause and the cure."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from advsphere.errors import UserError


class Database:
    """An open SQLite file, a context manager.

    Every method raises UserError if the file is damaged or no database, or if the disk is full.

    Args:
        path: The file; None keeps the database in memory.
        read_only: Open the file for reading only.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        self.path = path
        where = ":memory:" if path is None else uri(path, "ro" if read_only else "rwc")
        with self._errors():
            self._db = sqlite3.connect(where, uri=True, isolation_level=None)

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
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            cures = {
                "full": "free some space and run the same evaluation again; every finished batch is kept",
                "locked": "another process is writing it; wait for that process, or give another file",
                "readonly": "a write was interrupted; run the same evaluation again to complete it",
                "unable to open": "check that the folder exists and can be written",
            }
            cure = next((c for sign, c in cures.items() if sign in str(error)), "it is no ledger, or it is damaged")
            raise UserError(f"ledger {self.path}: {error}; {cure}") from error


def uri(path: Path, mode: str) -> str:
    return f"{path.absolute().as_uri()}?mode={mode}"
