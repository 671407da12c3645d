"""Writing files so that nothing is ever half written."""

from __future__ import annotations

import os
from pathlib import Path

from advsphere.errors import UserError


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path` whole or not at all: a temporary file beside it, fsync, rename, fsync of the folder.

    Raises UserError where the disk is full or not writable; what stood at `path` before is then untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        kept = f"; {path.name} as it was before is intact" if path.exists() else ""
        raise UserError(f"could not write {path}: {error.strerror or error}{kept}. Mend that and try again") from error
