"""What lies where in a tar archive of labelled images, found once and kept."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from advsphere.data.encoded import SUFFIXES
from advsphere.errors import UserError
from advsphere.files import write_atomically


class Index(NamedTuple):
    """An entry for each image: its member, the place of that in the archive in bytes, and the number of its class."""

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[int]


def index_of(files: Any, archive: str) -> Index:
    """The index of an archive on a file system of fsspec, from the cache if the archive is as it was then.

    The cache is in $XDG_CACHE_HOME or ~/.cache. Raises UserError for an archive that can't be read, an image without a
    label, a label without an image, and an archive without images.
    """
    # `ukey` is a checksum of what the file system tells of a file: its size, its date, or the store's own tag.
    key = hashlib.sha256(f"{archive} {files.ukey(archive)}".encode()).hexdigest()[:40]
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "advsphere" / "shards" / f"{key}.json"
    try:
        return Index(**json.loads(cached.read_bytes()))
    except (OSError, ValueError, TypeError):  # there is none, or something else is in its place
        pass
    try:
        with files.open(archive, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            index = _indexed(archive, _members(tar))
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"cannot read the archive {archive} ({error}): replace or remove it") from error
    write_atomically(cached, json.dumps(index._asdict()).encode())
    return index


class _Member(NamedTuple):
    key: str
    suffix: str
    name: str
    offset: int
    size: int
    read: Callable[[], bytes]


def _members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for member in tar:
        folder, _, name = member.name.rpartition("/")
        key, _, suffix = name.partition(".")
        if member.isfile() and key:  # what begins with a dot is the system's

            def read(member: tarfile.TarInfo = member) -> bytes:
                file = tar.extractfile(member)
                return b"" if file is None else file.read()

            yield _Member(f"{folder}/{key}", suffix.lower(), member.name, member.offset_data, member.size, read)


def _indexed(archive: str, members: Iterator[_Member]) -> Index:
    """Images joined with their labels, in the order of the images."""
    images = dict[str, _Member]()
    labels = dict[str, int]()
    for member in members:
        if f".{member.suffix}" in SUFFIXES:
            images[member.key] = member
        elif member.suffix == "cls" or (member.suffix == "json" and member.key not in labels):
            labels[member.key] = _label(archive, member)
    if missing := [image.name for key, image in images.items() if key not in labels]:
        raise UserError(
            f"{archive}: {missing[0]} has no label ({len(missing)} such images): add a .cls file with the number of "
            'its class, or a .json file with {"label": number}, of the same name'
        )
    if missing := [key.strip("/") for key in labels if key not in images]:
        raise UserError(
            f"{archive}: {missing[0]} has a label but no image ({len(missing)} such labels): add it, in a format among "
            f"{' '.join(sorted(SUFFIXES))}, or remove the label"
        )
    if not images:
        raise UserError(f"{archive} holds no images, looked for {' '.join(sorted(SUFFIXES))}: remove it")
    found = images.values()
    return Index(
        [image.name for image in found],
        [image.offset for image in found],
        [image.size for image in found],
        [labels[key] for key in images],
    )


def _label(archive: str, member: _Member) -> int:
    content = member.read()
    try:
        label = int(content) if member.suffix == "cls" else json.loads(content)["label"]
    except (ValueError, KeyError, TypeError):
        label = None
    if type(label) is not int or label < 0:
        raise UserError(f"{archive}: {member.name} holds no class number: write one from 0 on")
    return label
