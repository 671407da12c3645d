"""Files that are never half written, and checksums of what is in them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from advsphere.errors import UserError


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path` whole or not at all: a temporary file beside it, fsync, rename, fsync of the folder.

    Raises UserError where the disk is full or not writable; what stood at `path` before is then untouched.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # only there if something went wrong, Ctrl-C included
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Around writing `path`: an OSError becomes a UserError that says what could not be written, and why."""
    try:
        yield
    except OSError as error:
        kept = f"; {path.name} as it was before is intact" if path.is_file() else ""
        raise UserError(f"could not write {path}: {error.strerror or error}{kept}. Mend that and try again") from error


@contextmanager
def alone(folder: Path, *, patience: float = 6.0) -> Iterator[None]:
    """Hold a folder, which is made if need be, against a second process that would write the same files. The system
    lets go when this one ends, however it ends.

    patience: seconds to wait; those who load data for a process that was killed live on for up to five, and hold what
    it held. Raises UserError where another process keeps the folder.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    try:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise UserError(
                        f"another process is writing into {folder}; wait until it is done, or name another folder"
                    ) from error
                time.sleep(0.1)
            except OSError:
                break  # a file system without locks
        yield
    finally:
        os.close(held)


def tensor_checksum(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 over a text and the names, types, shapes and values of tensors, wherever and however they lie."""
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
