"""Images in one folder for each class: decoded into memory where they fit, else when a batch asks for them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch import Tensor

from advsphere.data.images import Dataset, Images, ImageSet, check_labels
from advsphere.draws import permutation
from advsphere.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"}
TEST_FOLDERS = ("val", "test")
MEMORY_LIMIT = 4 * 2**30
"""Bytes of decoded pixels up to which a set is kept in memory."""
HELD_OUT = 0.1
"""The part that is held out as a test set where the folder has none."""


@dataclass(frozen=True, eq=False)
class FolderImages(Images):
    """Image files that are decoded, in threads, each time a batch asks for them: 3 x image_size x image_size, uint8.

    Every file is converted to RGB, resized to image_size at its shorter side and cropped at its centre (bilinear, as
    torchvision's Resize and CenterCrop do). Raises UserError naming the file that cannot be read.
    """

    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    image_size: int

    def __post_init__(self) -> None:
        check_labels(self.labels, len(self.classes), self.name)

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.image_size, self.image_size

    def stored(self, index: Tensor) -> tuple[Tensor, Tensor]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = list(pool.map(lambda i: _pixels(self.paths[i], self.image_size), index.tolist()))
        device = self.labels.device
        pixels = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()
        return pixels.to(device), self.labels[index.to(device)]

    def take(self, index: Tensor) -> Self:
        paths = tuple(self.paths[i] for i in index.tolist())
        return replace(self, paths=paths, labels=self.labels[index.to(self.labels.device)])

    def to(self, device: torch.device | str) -> Self:
        return replace(self, labels=self.labels.to(device))

    def in_memory(self) -> ImageSet:
        """All the images decoded, with a progress bar."""
        pixels = torch.empty((len(self), *self.shape), dtype=torch.uint8)
        console = Console(stderr=True)
        chunks = torch.split(torch.arange(len(self)), 512)
        for chunk in track(
            chunks, f"reading {self.name}", console=console, transient=True, disable=not console.is_terminal
        ):
            pixels[chunk] = self.stored(chunk)[0].cpu()
        return ImageSet(pixels.to(self.labels.device), self.labels, self.classes, self.name)


def image_folder(folder: Path, image_size: int | None) -> Images:
    """All the images below `folder`/<class>/, at any depth, in memory where they take at most MEMORY_LIMIT bytes.

    Classes are numbered in the order of their names. Raises UserError for a folder without classes, a class without
    images, a file that cannot be read, or an image_size that is not given (it then names that of the first image).
    """
    return _decoded(_scan(folder, image_size))


def read_folder(root: Path, image_size: int | None) -> Dataset:
    """`root`/train/<class>/ with `root`/val/ or `root`/test/ of the same classes.

    Where there is no test folder, or `root` itself holds the classes, a tenth of the images is held out by address (the
    same on every machine, for the same number of images), and the note says so. Raises UserError as `image_folder`
    does, and where the classes of the two folders differ.
    """
    test_folder = _test_folder(root)
    if not (root / "train").is_dir():
        if test_folder is not None:
            raise UserError(
                f"{test_folder} has no train folder beside it: put the training images into {root / 'train'}"
            )
        return _held_out(_scan(root, image_size))
    if test_folder is None:
        return _held_out(_scan(root / "train", image_size))
    _check_same_classes(root / "train", test_folder)
    return Dataset(image_folder(root / "train", image_size), image_folder(test_folder, image_size))


def read_test_folder(root: Path, image_size: int | None) -> Images:
    """The test images of `read_folder`; those for training are not decoded and, beside val or test, may be absent."""
    test_folder, train_folder = _test_folder(root), root / "train"
    if test_folder is None:
        return _decoded(_parts(_scan(train_folder if train_folder.is_dir() else root, image_size))[1])
    if train_folder.is_dir():
        _check_same_classes(train_folder, test_folder)
    return image_folder(test_folder, image_size)


def _test_folder(root: Path) -> Path | None:
    return next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)


def _decoded(images: FolderImages) -> Images:
    return images.in_memory() if len(images) * 3 * images.image_size**2 <= MEMORY_LIMIT else images


def _held_out(images: FolderImages) -> Dataset:
    train, test = _parts(images)
    note = (
        f"{images.name} has no val or test folder: {len(test)} of its {len(images)} images are held out as the test set"
    )
    return Dataset(_decoded(train), _decoded(test), note)


def _parts(images: FolderImages) -> tuple[FolderImages, FolderImages]:
    order = permutation(len(images), seed=0, epoch=0, purpose="held-out test images")
    held_out = max(1, round(HELD_OUT * len(images)))
    train, test = images.take(order[held_out:].sort().values), images.take(order[:held_out].sort().values)
    return replace(train, name=f"{images.name} (train part)"), replace(test, name=f"{images.name} (held out)")


def _scan(folder: Path, image_size: int | None) -> FolderImages:
    """The files of each class folder, in the order of their names; nothing is decoded."""
    classes = _classes(folder)
    files = [_files(folder / name) for name in classes]
    empty = [str(folder / name) for name, found in zip(classes, files, strict=True) if not found]
    if empty:
        raise UserError(
            f"no images in {_some(empty)}, looked for {' '.join(sorted(SUFFIXES))}: add some, or remove the folder"
        )
    if image_size is None or image_size < 1:
        width, height = _opened(files[0][0]).size
        raise UserError(
            f"{folder} needs an image size, to which its images are resized: its first image is {width}x{height}, "
            f"so perhaps image_size={min(width, height)}"
        )
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(found) for found in files]))
    name = (
        f"{folder.resolve().parent.name} {folder.name}"
        if folder.name in ("train", *TEST_FOLDERS)
        else folder.resolve().name
    )
    return FolderImages(tuple(path for found in files for path in found), labels, classes, name, image_size)


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


def _opened(path: str) -> Image.Image:
    try:
        return Image.open(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def _pixels(path: str, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(size, size, 3) uint8."""
    with _opened(path) as image:
        if image.mode[0] in "IF":  # PIL would clip these to 255
            raise UserError(f"{path} has more than 8 bits per pixel ({image.mode}): convert it to 8 bits")
        try:
            return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR))
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
            raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> UserError:
    return UserError(f"cannot read the image {path} ({error}): replace or remove it")
