"""Images in one folder for each class: decoded into memory where they fit, else when a batch asks for them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import NamedTuple, Self

import torch
from torch import Tensor

from advsphere.data.encoded import SUFFIXES, Encoded, EncodedImages, View, chosen
from advsphere.data.images import Images, in_memory_if_small
from advsphere.errors import UserError
from advsphere.rng import permutation

# FOLDED parts: The training and test parts of images that lie in one place.

TEST_FOLDERS = ("val", "test")
HELD_OUT = 0.1
"""The part that is held out as a test set where the place has none."""


class Parts(NamedTuple):
    """Images to train on and to test on, not decoded yet; note: what the user should be told about them."""

    train: EncodedImages
    test: EncodedImages
    note: str = ""


def held_out(images: EncodedImages) -> Parts:
    """A tenth of the images for testing, by address: the same on every machine, for the same number of images."""
    order = permutation(len(images), seed=0, epoch=0, purpose="held-out test images")
    count = max(1, round(HELD_OUT * len(images)))
    train, test = images.take(order[count:].sort().values), images.take(order[:count].sort().values)
    return Parts(
        replace(train, name=f"{images.name} (train part)"),
        replace(test, name=f"{images.name} (held out)"),
        f"{images.name} has no val or test folder: {count} of its {len(images)} images are held out as the test set",
    )


def called(folder: PurePath) -> str:
    """A folder's name; that of its parent before it where it is one of the parts."""
    return f"{folder.parent.name} {folder.name}" if folder.name in ("train", *TEST_FOLDERS) else folder.name


@dataclass(frozen=True, eq=False)
class FolderImages(EncodedImages):
    """Image files."""

    paths: tuple[str, ...]

    def encoded(self, index: list[int]) -> list[Encoded]:
        return [Encoded(self.paths[i], self.paths[i]) for i in index]

    def take(self, index: Tensor) -> Self:
        paths = tuple(self.paths[i] for i in index.tolist())
        return replace(self, paths=paths, labels=self.labels[index.to(self.labels.device)])


def image_folder(folder: Path, image_size: int | None, resize: int | None = None) -> Images:
    """All the images below `folder`/<class>/, at any depth, in memory where they take at most MEMORY_LIMIT bytes.

    Classes are numbered in the order of their names. resize: what the shorter side becomes before the centre of
    image_size is cut out; image_size itself by default. Raises UserError for a folder without classes, a class without
    images, a file that cannot be read, or an image_size that is not given (it then names that of the first image).
    """
    return in_memory_if_small(scan_folder(folder, View.of(image_size, resize)))


def read_folder(root: Path, view: View | None) -> Parts:
    """`root`/train/<class>/ with `root`/val/ or `root`/test/ of the same classes; nothing is decoded.

    Where there is no test folder, or `root` itself holds the classes, a tenth of the images is held out. Raises
    UserError as `image_folder` does, and where the classes of the two folders differ.
    """
    test_folder = _test_folder(root)
    if not (root / "train").is_dir():
        if test_folder is not None:
            raise UserError(
                f"{test_folder} has no train folder beside it: put the training images into {root / 'train'}"
            )
        return held_out(scan_folder(root, view))
    if test_folder is None:
        return held_out(scan_folder(root / "train", view))
    _check_same_classes(root / "train", test_folder)
    return Parts(scan_folder(root / "train", view), scan_folder(test_folder, view))


def read_test_folder(root: Path, view: View | None) -> EncodedImages:
    """The test images of `read_folder`; those for training may be absent, beside val or test."""
    test_folder, train_folder = _test_folder(root), root / "train"
    if test_folder is None:
        return held_out(scan_folder(train_folder if train_folder.is_dir() else root, view)).test
    if train_folder.is_dir():
        _check_same_classes(train_folder, test_folder)
    return scan_folder(test_folder, view)


def _test_folder(root: Path) -> Path | None:
    return next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)


def scan_folder(folder: Path, view: View | None) -> FolderImages:
    """The files of each class folder, in the order of their names; nothing is decoded."""
    classes = _classes(folder)
    files = [_files(folder / name) for name in classes]
    empty = [str(folder / name) for name, found in zip(classes, files, strict=True) if not found]
    if empty:
        raise UserError(
            f"no images in {_some(empty)}, looked for {' '.join(sorted(SUFFIXES))}: add some, or remove the folder"
        )
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(found) for found in files]))
    first = files[0][0]
    view = chosen(view, str(folder), Encoded(first, first))
    return FolderImages(labels, classes, called(folder), view, tuple(path for found in files for path in found))


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name a folder that holds one folder of images for each class")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        raise UserError(
            f"{folder} holds {len(names)} class folders: it needs at least two, each with the images of one class"
        )
    return tuple(names)


def _files(folder: Path) -> list[str]:
    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
    )


def _check_same_classes(train: Path, test: Path) -> None:
    ours, theirs = set(_classes(train)), set(_classes(test))
    only = ((train, sorted(ours - theirs)), (test, sorted(theirs - ours)))
    if ours != theirs:
        found = "; ".join(f"only {folder} has {_some(names)}" for folder, names in only if names)
        raise UserError(f"the class folders differ: {found}: give both folders the same classes")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
