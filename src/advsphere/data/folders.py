"""Image files in one folder for each class."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Self

import torch
from torch import Tensor

from advsphere.data.encoded import SUFFIXES, Encoded, EncodedImages, View, required
from advsphere.data.images import Images, in_memory_if_small
from advsphere.errors import UserError
from advsphere.files import some

TEST_FOLDERS = ("val", "test")


@dataclass(frozen=True, eq=False, repr=False)
class FolderImages(EncodedImages):
    paths: tuple[str, ...]
    folder: str

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(path.removeprefix(f"{self.folder}{os.sep}") for path in self.paths)

    def encoded(self, index: list[int]) -> list[Encoded]:
        return [Encoded(self.paths[i], self.paths[i]) for i in index]

    def take(self, index: Tensor) -> Self:
        paths = tuple(self.paths[i] for i in index.tolist())
        return replace(self, paths=paths, labels=self.labels[index.to(self.labels.device)])


def image_folder(folder: Path | str, image_size: int | None, resize: int | None = None) -> Images:
    """Read all images below `folder`/<class>/, at any depth. Classes are numbered in the order of their names.

    Args:
        folder: Contains one folder of images for each class.
        image_size: The side of the resulting square images, in pixels.
        resize: The length of the shorter side before the central crop of `image_size`; `image_size` by default.

    Returns:
        The images, in memory if they take at most 4 GiB, otherwise decoded for each batch.

    Raises:
        UserError: If there are no classes, a class has no images, a file cannot be read, or `image_size` is missing.
            The message then proposes the size of the first image.
    """
    return in_memory_if_small(scan_folder(Path(folder), View.of(image_size, resize)))


def scan_folder(folder: Path, view: View | None) -> FolderImages:
    """List the files of each class folder, sorted by name, without decoding them."""
    classes = class_folders(folder)
    files = [[str(path) for path in images_below(folder / name)] for name in classes]
    empty = [str(folder / name) for name, found in zip(classes, files, strict=True) if not found]
    if empty:
        raise UserError(
            f"no images in {some(empty, 3)}, looked for {' '.join(sorted(SUFFIXES))}: add some, or remove the folder"
        )
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(found) for found in files]))
    view = required(view, str(folder), Encoded(files[0][0], files[0][0]))
    paths = tuple(path for found in files for path in found)
    return FolderImages(labels, classes, display_name(folder), view, paths, str(folder))


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the classes, sorted. Raises UserError if there are fewer than two."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name a folder with one folder of images for each class")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        raise UserError(
            f"{folder} has {len(names)} class folders: it needs at least two, each with the images of one class"
        )
    return tuple(names)


def check_same_classes(train: Path, test: Path) -> None:
    """Raise UserError if two folders have different class folders."""
    ours, theirs = set(class_folders(train)), set(class_folders(test))
    only = ((train, sorted(ours - theirs)), (test, sorted(theirs - ours)))
    if ours != theirs:
        found = "; ".join(f"only {folder} has {some(names, 3)}" for folder, names in only if names)
        raise UserError(f"the class folders differ: {found}: give both folders the same classes")


def display_name(folder: PurePath) -> str:
    """A folder's name, after its parent's name if it is "train", "val" or "test"."""
    return f"{folder.parent.name} {folder.name}" if folder.name in ("train", *TEST_FOLDERS) else folder.name


def skipped(*folders: Path) -> str:
    """A line that names the files below these folders that are not read as images; empty if there are none."""
    others = [str(path) for folder in folders for path in _below(folder) if path.suffix.lower() not in SUFFIXES]
    return f"not read, because they are no images by their names: {some(others, 3)}" if others else ""


def images_below(folder: Path) -> list[Path]:
    """All image files below a folder, at any depth, sorted."""
    return [path for path in _below(folder) if path.suffix.lower() in SUFFIXES]


def _below(folder: Path) -> list[Path]:
    """All files below a folder, sorted; names that begin with a dot belong to the system."""
    walked = os.walk(folder, followlinks=True)
    names = sorted(os.path.join(parent, name) for parent, _, names in walked for name in names if name[0] != ".")
    return [Path(name) for name in names]
