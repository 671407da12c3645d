"""Files: atomic writes, locks, JSON values, and checksums of contents."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import socket
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from advsphere.errors import UserError


def write_atomically(path: Path, data: bytes | Callable[[Path], None]) -> None:
    """Write a file whole or not at all: write a temporary file beside it, fsync, rename, fsync the folder.

    Args:
        path: The file; its folder is created if it does not exist.
        data: The new content, or a function that writes it into the file that it is given.

    Raises:
        UserError: If the disk is full or not writable; an earlier file at `path` is then untouched. Also if `path` is
            in a folder that this process locked, and that was removed or replaced since then.
    """
    with disk_errors(path):
        _require_locked(path)
        if path.parent.absolute() not in _places:  # a locked folder that was removed just now must not come back
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _unfinished(path, os.getpid())
        try:
            temporary.write_bytes(data) if isinstance(data, bytes) else data(temporary)
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # exists only after an error or Ctrl-C
        _delete_unfinished(path)
        if os.name == "nt":  # Windows can't open a folder
            return
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while `path` is written into a UserError that names the file and the reason, or says that the
    folder that this process locked was removed.
    """
    try:
        yield
    except OSError as error:
        _require_locked(path, gone=isinstance(error, FileNotFoundError))  # it may be in the middle of its removal
        kept = f"; the earlier {path.name} is intact" if path.is_file() else ""
        raise UserError(f"could not write {path}: {error.strerror or error}{kept}. Fix that and try again") from error


def require_writable(folder: Path) -> None:
    """Find out before the work whether its results can be written.

    Args:
        folder: The folder of the results; it is created if it does not exist.

    Raises:
        UserError: If no file can be created there.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextmanager
def content_errors(source: object) -> Iterator[None]:
    """Turn an error over the values in a file into a UserError that names the file: anybody may have written them."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{source} does not hold what advsphere writes ({what}); use another copy") from error


def _unfinished(path: Path, process: int | str) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}.{process}")


def _delete_unfinished(path: Path) -> None:
    """Delete what killed processes of this machine left of a file."""
    for left in path.parent.glob(glob.escape(_unfinished(path, "").name) + "*"):
        with suppress(ValueError, OSError):
            if os.name != "nt" and not _lives(int(left.suffix[1:])):
                left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True


@contextmanager
def folder_lock(folder: Path, *, patience: float = 6.0) -> Iterator[None]:
    """Keep other processes from writing into a folder while the block runs.

    The lock is a file `.lock` in the folder. The operating system releases it when this process ends, even if it is
    killed; the file stays. While the block runs, `write_atomically` refuses to write into the folder once it was
    removed, or another folder took its place.

    Args:
        folder: The folder; it is created if it does not exist.
        patience: Seconds to wait for another process. The data loaders of a killed process live on for up to five
            seconds and hold its lock.

    Raises:
        UserError: If another process still holds the folder, the folder can't be written, or it is another one at the
            end of the block.
    """
    key = folder.absolute()
    with _locked(folder / ".lock", folder, patience):
        _places[key] = identity_of(folder / ".lock")
        try:
            yield
            _require_locked(folder / ".lock")
        finally:
            del _places[key]


@contextmanager
def file_lock(path: Path, *, patience: float = 6.0) -> Iterator[None]:
    """Keep other processes that also call this from writing a file while the block runs.

    Args:
        path: The file; its folder is created if it does not exist. The lock is a hidden file beside it, and stays.
        patience: Seconds to wait for another process.

    Raises:
        UserError: If another process still holds the file, or the folder can't be written.
    """
    with _locked(path.with_name(f".{path.name}.lock"), path, patience):
        yield


_places: dict[Path, tuple[int, int] | None] = {}
"""The identities of the lock files of folders that this process has locked."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system without locks answers."""


@contextmanager
def _locked(path: Path, what: Path, patience: float) -> Iterator[None]:
    with disk_errors(what):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=patience, poll_interval=0.1)
        except Timeout as error:
            raise UserError(
                f"another process is writing into {what}{_holder(path)}; wait until it has finished, or name another "
                "folder"
            ) from error
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"the file system of {what} has no locks, so nothing keeps two processes from writing into it; "
                "start only one at a time",
                stacklevel=4,
            )
    try:
        with suppress(OSError):
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {now}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            os.truncate(path, 0)
        lock.release()


def _holder(path: Path) -> str:
    """Who holds a lock, as far as its file says."""
    try:
        said = path.read_text(encoding="utf-8", errors="replace")[:200].strip()
    except OSError:
        said = ""
    return f" ({said})" if said.isprintable() and said else ""


def identity_of(path: Path) -> tuple[int, int] | None:
    """The device and number of a file, which another file at the same place does not have; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _require_locked(path: Path, *, gone: bool = False) -> None:
    """Raise UserError if a folder around `path` was locked by this process, and is no longer the same, or is `gone`."""
    for folder in path.absolute().parents if _places else ():
        if folder in _places and (gone or _places[folder] != identity_of(folder / ".lock")):
            raise UserError(
                f"{folder} was removed or replaced while this process was writing into it, so it stops; run the same "
                "command again, after putting the folder back if you moved it"
            )


def tensor_checksum(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 over a text and the names, types, shapes and values of tensors, on any device and in any memory layout.

    Args:
        tensors: The tensors by name; their order does not matter.
        text: A text that also enters the checksum.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)  # a copy would stop all other threads
    return digest.hexdigest()


def packed(x: Tensor | None) -> bytes | None:
    """The float32 values of a tensor, compressed without loss."""
    return None if x is None else zlib.compress(x.detach().cpu().float().contiguous().numpy().tobytes(), 1)


def unpacked(blob: bytes, shape: Sequence[int]) -> Tensor:
    """The tensor from its packed bytes. Raises ValueError if the shape does not fit, before it takes more memory."""
    try:
        count = math.prod(shape)
        if not 0 <= count <= MOST_IN_AN_IMAGE:
            raise ValueError(f"images of {shape} are too large")
        content = zlib.decompressobj().decompress(blob, 4 * count + 1)
        return torch.from_numpy(np.frombuffer(content, dtype=np.float32).copy().reshape(shape))
    except (zlib.error, TypeError) as error:
        raise ValueError(str(error)) from error


MOST_IN_AN_IMAGE = 2**27
"""Values in one image: 512 MiB, more than any image that was attacked in a batch."""


def fingerprint(blob: bytes) -> str:
    """SHA-256 of the values in a packed tensor, which does not depend on the build of zlib."""
    with suppress(zlib.error):  # damaged bytes are hashed as they are, so that the damage shows
        digest, unpacker = hashlib.sha256(), zlib.decompressobj()
        rest = blob
        while not unpacker.eof:
            part = unpacker.decompress(rest, 2**20)
            rest = unpacker.unconsumed_tail
            if not part and not rest:  # it was cut off
                raise zlib.error
            digest.update(part)
        return digest.hexdigest()
    return hashlib.sha256(blob).hexdigest()


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values give the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def content_checksum(data: Mapping[str, Any]) -> str:
    """SHA-256 over all entries but the one named "checksum"."""
    return hashlib.sha256(canonical({k: v for k, v in data.items() if k != "checksum"}).encode()).hexdigest()


class Change(NamedTuple):
    """A place where two JSON values differ.

    Attributes:
        path: The dotted path of the place.
        old: The first value there; None if it is missing.
        new: The second value there; None if it is missing.
    """

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        """The change in one line, such as "training.epochs: 10 -> 20"; long values are shortened."""
        return f"{self.path}: {_short(self.old)} -> {_short(self.new)}"


def differences(old: Any, new: Any, path: str = "") -> list[Change]:
    """List the differences of two JSON values, in the order of the first one's keys.

    Args:
        old: A value of dictionaries, lists, strings and numbers.
        new: Another such value.
        path: A prefix for all paths, for values within a larger one.

    Returns:
        A change for each entry that differs, and for each list whose length differs. None counts as an empty dictionary
        if the other value is a dictionary.
    """
    if isinstance(old, Mapping | None) and isinstance(new, Mapping | None) and old is not new:
        old, new = old or {}, new or {}
        keys = [*old, *(key for key in new if key not in old)]
        return [c for k in keys for c in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [c for i, (u, v) in enumerate(zip(old, new, strict=True)) for c in differences(u, v, f"{path}[{i}]")]
    return [] if old == new else [Change(path, old, new)]


def some(items: Sequence[object], most: int = 5) -> str:
    """The first few items, and the number of the rest."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """A JSON object whose entry "format" is `kind`. Raises UserError for any other file."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as {kind!r}: {error}") from error
    found = data.get("format") if isinstance(data, dict) else None
    if isinstance(found, str) and found != kind and found.rpartition(" ")[0] == kind.rpartition(" ")[0]:
        raise UserError(f"{path} was written by another version ({found!r}, not {kind!r}); make it again")
    if found != kind:
        raise UserError(f"{path} is not {kind!r}; give a file that `advsphere evaluate` of this version wrote")
    return data


def cache_folder() -> Path:
    """The folder for what can be computed again: advsphere's in $XDG_CACHE_HOME or ~/.cache."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "advsphere"
    except RuntimeError:  # the user has no home
        return Path(_until_the_end().name)


@cache
def _until_the_end() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="advsphere-")


def write_cache(path: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Store computed values in a JSON file with a checksum."""
    content = {"format": kind, **values}
    write_atomically(path, json.dumps(content | {"checksum": content_checksum(content)}).encode())


def read_cache(path: Path, kind: str) -> dict[str, Any]:
    """The values that `write_cache` stored. Raises UserError if the file is missing, of another kind, or changed."""
    data = read_json(path, kind)
    if data.get("checksum") != content_checksum(data):
        raise UserError(f"{path} was changed after it was written; delete it to compute it again")
    return {key: value for key, value in data.items() if key not in ("format", "checksum")}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:40]}...{text[-17:]}"
