"""Images in tar archives, in the layout of WebDataset: each archive is indexed once, and read by offset from then on.

So they can be taken in any order, and training can be resumed in the middle of an epoch, as with single files. What
`fsspec` can open will do: a folder, s3://bucket/folder, gs://..., https://...

Source: https://github.com/webdataset/webdataset. Members whose names agree up to the first dot are one example:
0001.jpg (or another image format) with 0001.cls, the number of its class, or 0001.json with {"label": number}.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from advsphere.data.encoded import SUFFIXES, Encoded, EncodedImages, View, chosen
from advsphere.data.folders import TEST_FOLDERS, Parts, called, held_out
from advsphere.data.images import with_progress
from advsphere.errors import UserError
from advsphere.files import write_atomically

# FOLDED tar_index: What lies where in a tar archive of labelled images, found once and kept.


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


CLASSES = "classes.txt"
"""Beside the archives or their folders: the names of the classes, one a line; without it they are called 0, 1, ..."""


@dataclass(frozen=True, eq=False)
class ShardImages(EncodedImages):
    """Images in archives. places: (N, 3) int64, the archive's number, the offset in it and the size of each image."""

    archives: tuple[str, ...]
    names: tuple[str, ...]
    places: Tensor

    def encoded(self, index: list[int]) -> list[Encoded]:
        archives = [self.archives[i] for i in self.places[index, 0].tolist()]
        starts, sizes = self.places[index, 1].tolist(), self.places[index, 2].tolist()
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        names = [f"{self.names[i]} of {archive}" for i, archive in zip(index, archives, strict=True)]
        # Here and not once for all: connections do not survive a fork. All at once, as object stores like it.
        contents = _files(self.archives[0]).cat_ranges(archives, starts, ends) if index else []
        return [_read(name, content, size) for name, content, size in zip(names, contents, sizes, strict=True)]

    def take(self, index: Tensor) -> Self:
        names = tuple(self.names[i] for i in index.tolist())
        labels = self.labels[index.to(self.labels.device)]
        return replace(self, names=names, places=self.places[index.cpu()], labels=labels)


def holds_shards(place: str) -> bool:
    """Whether there are .tar files in a folder, or in its train, val or test folder."""
    return any(map(_archives, (place, *(f"{place}/{part}" for part in ("train", *TEST_FOLDERS)))))


def read_shards(place: str, view: View | None) -> Parts:
    """`place`/train/*.tar with `place`/val/*.tar or test/*.tar; nothing is decoded. place: a folder, or a URL.

    Where there is no test folder, or `place` itself holds the archives, a tenth of the images is held out. Raises
    UserError for an archive that can't be read, an image without a label, a label without an image, and archives
    without images.
    """
    test = _test_place(place)
    train = f"{place}/train" if _archives(f"{place}/train") else None
    if test is None:
        return held_out(scan_shards(train or place, place, view))
    if train is None:
        raise UserError(f"{test} has no train folder beside it: put the training archives into {place}/train")
    parts = Parts(scan_shards(train, place, view), scan_shards(test, place, view))
    classes = max(parts.train.classes, parts.test.classes, key=len)
    return Parts(replace(parts.train, classes=classes), replace(parts.test, classes=classes))


def read_test_shards(place: str, view: View | None) -> EncodedImages:
    """The test images of `read_shards`; those for training may be absent, beside val or test, if a classes.txt says
    how many classes there are.
    """
    test = _test_place(place)
    return read_shards(place, view).test if test is None else scan_shards(test, place, view)


def _test_place(place: str) -> str | None:
    return next((f"{place}/{part}" for part in TEST_FOLDERS if _archives(f"{place}/{part}")), None)


def _files(place: str) -> Any:
    """The file system that a place is on. Raises UserError where its library is missing."""
    import fsspec  # here and not at the top: it is slow to import

    try:
        return fsspec.core.url_to_fs(place)[0]
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{place} can't be opened ({error}); for object stores: pip install 'advsphere[cloud]'"
        ) from error


def _archives(place: str) -> list[str]:
    """The archives in one folder, in the order of their names."""
    files = _files(place)
    try:
        return sorted(files.glob(f"{files._strip_protocol(place)}/*.tar"))
    except OSError as error:
        raise UserError(f"{place} can't be listed: {error}") from error


def scan_shards(folder: str, root: str, view: View | None) -> ShardImages:
    """All images of a folder's archives, in the order of archives and members; `root` may hold a classes.txt."""
    files = _files(folder)
    archives = tuple(files.unstrip_protocol(path) if "://" in folder else path for path in _archives(folder))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(partial(index_of, files), archives)
        indices = list(with_progress(found, f"indexing {folder}", len(archives)))
    rows = [(i, *row) for i, index in enumerate(indices) for row in zip(index.offsets, index.sizes, strict=True)]
    labels = torch.tensor([label for index in indices for label in index.labels])
    names = tuple(name for index in indices for name in index.names)
    images = ShardImages(
        labels,
        _classes(root, int(labels.max()) + 1),
        called(PurePosixPath(folder)),
        view or View(1, 1),
        archives,
        names,
        torch.tensor(rows),
    )
    return replace(images, view=chosen(view, folder, images.encoded([0])[0]))


def _classes(root: str, at_least: int) -> tuple[str, ...]:
    files, path = _files(root), f"{root}/{CLASSES}"
    if not files.exists(path):
        return tuple(str(i) for i in range(at_least))
    names = tuple(line.strip() for line in files.cat_file(path).decode().splitlines() if line.strip())
    if len(names) < at_least:
        raise UserError(f"{path} names {len(names)} classes, but a label is {at_least - 1}: name one class a line")
    return names


def _read(name: str, content: bytes | Exception, size: int) -> Encoded:
    if isinstance(content, Exception) or len(content) != size:
        cause = content if isinstance(content, Exception) else f"{len(content)} of {size} bytes"
        raise UserError(f"cannot read {name} ({cause}): has the archive changed, or the connection gone?")
    return Encoded(name, io.BytesIO(content))
