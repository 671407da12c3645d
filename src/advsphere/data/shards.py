"""Images in tar archives, in the layout of WebDataset, in a folder or at any URL that `fsspec` opens.

Each archive is indexed once. Its images are then read by their offsets, so they can be taken in any order, and training
can resume in the middle of an epoch, as with single files.

Source: https://github.com/webdataset/webdataset. Members whose names agree up to the first dot are one example:
0001.jpg (or another image format) with 0001.cls, the number of its class, or 0001.json with {"label": number}.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from advsphere.data.encoded import SUFFIXES, Encoded, EncodedImages, View, required
from advsphere.data.folders import display_name
from advsphere.data.images import with_progress
from advsphere.errors import UserError
from advsphere.files import cache_folder, read_cache, write_cache

CLASSES = "classes.txt"
"""A file beside the archives or their folders with the names of the classes, one on each line. Without it the classes
are called 0, 1, ..."""


@dataclass(frozen=True, eq=False, repr=False)
class ShardImages(EncodedImages):
    """Images in the archives at these paths or URLs.

    `names` has the archive member of each image. `places` is (N, 3) int64: the number of the archive, the offset in it
    and the size of each image in bytes.
    """

    archives: tuple[str, ...]
    names: tuple[str, ...]
    places: Tensor

    @property
    def files(self) -> tuple[str, ...]:
        archives = [PurePosixPath(archive).name for archive in self.archives]
        return tuple(f"{archives[i]}/{n}" for i, n in zip(self.places[:, 0].tolist(), self.names, strict=True))

    def encoded(self, index: list[int]) -> list[Encoded]:
        archives = [self.archives[i] for i in self.places[index, 0].tolist()]
        starts, sizes = self.places[index, 1].tolist(), self.places[index, 2].tolist()
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        # The file system is opened here because connections do not survive a fork. One call is fast on object stores.
        contents = _file_system(self.archives[0]).cat_ranges(archives, starts, ends) if index else []
        found = []
        for i, archive, content, size in zip(index, archives, contents, sizes, strict=True):
            name = f"{self.names[i]} of {archive}"
            if isinstance(content, Exception) or len(content) != size:
                cause = content if isinstance(content, Exception) else f"{len(content)} of {size} bytes"
                raise UserError(f"cannot read {name} ({cause}): has the archive changed, or the connection gone?")
            found.append(Encoded(name, io.BytesIO(content)))
        return found

    def take(self, index: Tensor) -> Self:
        names = tuple(self.names[i] for i in index.tolist())
        labels = self.labels[index.to(self.labels.device)]
        return replace(self, names=names, places=self.places[index.cpu()], labels=labels)


def archives_in(folder: str) -> list[str]:
    """The archives in a folder, sorted by name. Raises UserError if the folder can't be opened or listed."""
    files = _file_system(folder)
    try:
        return sorted(files.glob(f"{files._strip_protocol(folder)}/*.tar"))
    except OSError as error:
        raise UserError(f"{folder} can't be listed: {error}") from error


def scan_shards(folder: str, root: str, view: View | None) -> ShardImages:
    """All images of a folder's archives, in the order of archives and members; `root` may contain a classes.txt.

    Raises UserError for an archive that can't be read, an image without a label, a label without an image, and an
    archive without images.
    """
    files = _file_system(folder)
    archives = tuple(files.unstrip_protocol(path) if "://" in folder else path for path in archives_in(folder))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(partial(_index, files), archives)
        indices = list(with_progress(found, f"indexing {folder}", len(archives)))
    places = [(i, *row) for i, index in enumerate(indices) for row in zip(index.offsets, index.sizes, strict=True)]
    labels = torch.tensor([label for index in indices for label in index.labels])
    names = tuple(name for index in indices for name in index.names)
    classes, name = _classes(root, int(labels.max()) + 1), display_name(PurePosixPath(folder))
    images = ShardImages(labels, classes, name, view or View(1, 1), archives, names, torch.tensor(places))
    return replace(images, view=required(view, folder, images.encoded([0])[0]))


def _file_system(place: str) -> Any:
    import fsspec  # here and not at the top: it is slow to import

    try:
        return fsspec.core.url_to_fs(place)[0]
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{place} can't be opened ({error}); for object stores: pip install 'advsphere[cloud]'"
        ) from error


def _classes(root: str, at_least: int) -> tuple[str, ...]:
    files, path = _file_system(root), f"{root}/{CLASSES}"
    if not files.exists(path):
        return tuple(str(i) for i in range(at_least))
    names = tuple(line.strip() for line in files.cat_file(path).decode().splitlines() if line.strip())
    if len(names) < at_least:
        raise UserError(f"{path} names {len(names)} classes, but a label is {at_least - 1}: name one class per line")
    return names


class Index(NamedTuple):
    """For each image its member, its offset in the archive, its size in bytes and its class number."""

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[int]


def _index(files: Any, archive: str) -> Index:
    """The index of an archive, from the cache in $XDG_CACHE_HOME or ~/.cache if the archive has not changed."""
    # `ukey` is a checksum of a file's metadata: its size, its date, or the object store's own tag.
    key = hashlib.sha256(f"{archive} {files.ukey(archive)}".encode()).hexdigest()[:40]
    cached = cache_folder() / "shards" / f"{key}.json"
    with suppress(UserError):  # the cache has no such file, or it is damaged
        return Index(**read_cache(cached, "advsphere shard index"))
    try:
        with files.open(archive, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            index = _scan_archive(archive, tar)
            _check_end(archive, file, tar.offset)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"cannot read the archive {archive} ({error}): replace or remove it") from error
    with suppress(UserError):  # the cache can't be written
        write_cache(cached, "advsphere shard index", index._asdict())
    return index


def _check_end(archive: str, file: Any, offset: int) -> None:
    """Raise UserError unless the archive ends after the last member that was read.

    `tarfile` takes a damaged header for the end, so all later images would be missing without a word.
    """
    file.seek(offset)
    rest = [any(chunk) for chunk in iter(partial(file.read, 2**20), b"")]
    if not rest or any(rest):
        raise UserError(
            f"{archive} is damaged or cut off at byte {offset}: no further image can be found after it; copy the "
            "archive again"
        )


def _scan_archive(archive: str, tar: tarfile.TarFile) -> Index:
    """Join the images with their labels, in the order of the images."""
    images = dict[str, tarfile.TarInfo]()
    labels = dict[str, int]()
    for member in tar:
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        key, suffix = f"{folder}/{stem}", suffix.lower()
        if not member.isfile() or not stem:  # names that begin with a dot belong to the system
            continue
        if f".{suffix}" in SUFFIXES:
            images[key] = member
        elif suffix == "cls" or (suffix == "json" and key not in labels):
            labels[key] = _label(archive, tar, member, suffix)
    if missing := [member.name for key, member in images.items() if key not in labels]:
        raise UserError(
            f"{archive}: {missing[0]} has no label ({len(missing)} such images): add a .cls file with the number of "
            'its class, or a .json file with {"label": number}, of the same name'
        )
    if missing := [key.strip("/") for key in labels if key not in images]:
        raise UserError(
            f"{archive}: {missing[0]} has a label but no image ({len(missing)} such labels): add an image, as "
            f"{' '.join(sorted(SUFFIXES))}, or remove the label"
        )
    if not images:
        raise UserError(f"{archive} has no images, looked for {' '.join(sorted(SUFFIXES))}: remove it")
    rows = [(member.name, member.offset_data, member.size, labels[key]) for key, member in images.items()]
    return Index(*(list(column) for column in zip(*rows, strict=True)))


def _label(archive: str, tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> int:
    file = tar.extractfile(member)
    content = b"" if file is None else file.read()
    try:
        label = int(content) if suffix == "cls" else json.loads(content)["label"]
    except (ValueError, KeyError, TypeError, RecursionError):
        label = None
    if type(label) is not int or not 0 <= label < 100_000:
        raise UserError(f"{archive}: {member.name} holds no class number: write one from 0 on, below 100000")
    return label
