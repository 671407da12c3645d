"""CIFAR-10 and CIFAR-100 from the folders that everyone has, without running what is in their pickles.

Source: A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009); layout of the "python version".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advsphere.data.images import Dataset, ImageSet
from advsphere.data.pickles import read_pickle
from advsphere.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Where a published CIFAR folder keeps what; train, test and meta: file name -> MD5 sum of the published file."""

    title: str
    folder: str
    archive: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    labels_key: str
    names_key: str

    @property
    def cure(self) -> str:
        """How to get the folder."""
        loader = self.title.replace("-", "")
        return f'torchvision.datasets.{loader}("data", download=True) fetches {self.archive} and unpacks it there'

    def find(self, place: Path) -> Path | None:
        """The folder, where `place` is it or holds it."""
        if (place / self.folder).is_dir():
            return place / self.folder
        is_it = place.name == self.folder or all((place / file).is_file() for file in self.meta | self.test)
        return place if is_it and place.is_dir() else None


LAYOUTS = {
    "cifar10": Layout(
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        labels_key="labels",
        names_key="label_names",
    ),
    "cifar100": Layout(
        title="CIFAR-100",
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        labels_key="fine_labels",
        names_key="fine_label_names",
    ),
}


def read_cifar(name: str, folder: Path) -> Dataset:
    """The set "cifar10" or "cifar100" from its folder, 3x32x32 uint8; the note names files other than those published.

    Raises UserError for a missing, truncated, misshapen or unsafe file.
    """
    layout = LAYOUTS[name]
    published = layout.meta | layout.train | layout.test
    contents = {file: _content(folder / file, layout) for file in published}
    values = {file: read_pickle(content, folder / file) for file, content in contents.items()}
    classes = _classes(values, folder, layout)

    def images(files: dict[str, str], part: str) -> ImageSet:
        pieces = [_images(values[file], folder / file, layout) for file in files]
        pixels, labels = (torch.cat(each) for each in zip(*pieces, strict=True))
        return ImageSet(pixels, labels, classes, f"{name} {part}")

    changed = [file for file, content in contents.items() if _md5(content) != published[file]]
    note = f"{folder} is not the published {layout.title}: other MD5 sums for {', '.join(changed)}" if changed else ""
    return Dataset(images(layout.train, "train"), images(layout.test, "test"), note)


def _content(path: Path, layout: Layout) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} of {layout.title} ({error.strerror}): {layout.cure}") from error


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _classes(values: dict[str, dict[str, Any]], folder: Path, layout: Layout) -> tuple[str, ...]:
    (file,) = layout.meta
    names = values[file].get(layout.names_key)
    if not isinstance(names, list) or not names:
        raise UserError(f"{folder / file} is broken: it has no list {layout.names_key}; {layout.cure}")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def _images(content: dict[str, Any], path: Path, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (N,3,32,32) uint8 and labels (N,) int64 of one file."""
    rows, labels = content.get("data"), content.get(layout.labels_key)
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 3072:
        found = "nothing" if rows is None else f"shape {getattr(rows, 'shape', type(rows).__name__)}"
        raise UserError(f"{path} is broken: data must be (N, 3072) uint8, found {found}; {layout.cure}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels) or len(labels) != len(rows):
        raise UserError(f"{path} is broken: {layout.labels_key} must be a list of {len(rows)} integers; {layout.cure}")
    return torch.tensor(rows).view(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)
