"""Files that are never half written, and checksums of what is in them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
def folder_lock(folder: Path, *, patience: float = 6.0) -> Iterator[None]:
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


# FOLDED records: JSON data: one way to write a value down, where two of them differ, and files of it.


def canonical(value: Any) -> str:
    """The same text for the same JSON-able value: sorted keys, no needless space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, a line for each: "model.checksum: "1f" is not "2e"" names a's and b's."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(a.keys() | b.keys())
        return [d for k in keys for d in differences(a.get(k), b.get(k), f"{path}.{k}" if path else k)]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (u, v) in enumerate(zip(a, b, strict=True)) for d in differences(u, v, f"{path}[{i}]")]
    return [] if a == b else [f"{path}: {_short(a)} is not {_short(b)}"]


def content_checksum(data: Mapping[str, Any]) -> str:
    """SHA-256 over all entries but the one called "checksum"."""
    return hashlib.sha256(canonical({k: v for k, v in data.items() if k != "checksum"}).encode()).hexdigest()


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """A JSON object whose entry "format" is `kind`, otherwise unchecked. Raises UserError."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as {kind!r}: {error}") from error
    if not isinstance(data, dict) or data.get("format") != kind:
        raise UserError(f"{path} is no {kind!r}; give a file that `advsphere evaluate` of this version wrote")
    return data


def some(lines: Sequence[str], most: int = 5) -> str:
    """The first few of many, and how many more there are."""
    more = f" and {len(lines) - most} more" if len(lines) > most else ""
    return ", ".join(lines[:most]) + more


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]}...{text[-17:]}"


# FOLDED kept: What was computed once, in a JSON file that says so if it was changed since.


def write_kept(path: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write it, whole or not at all. Raises UserError where that can't be done."""
    content = {"format": kind, **values}
    write_atomically(path, json.dumps(content | {"checksum": content_checksum(content)}).encode())


def read_kept(path: Path, kind: str) -> dict[str, Any]:
    """The values. Raises UserError for a file that is missing, of another kind, or changed since."""
    data = read_json(path, kind)
    if data.get("checksum") != content_checksum(data):
        raise UserError(f"{path} was changed after it was written; delete it, and it is computed again")
    return {key: value for key, value in data.items() if key not in ("format", "checksum")}
