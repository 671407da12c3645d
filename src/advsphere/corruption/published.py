"""Corrupted images as they are published: CIFAR-10-C's arrays and ImageNet-C's folders, read and written.

CIFAR-10-C and CIFAR-100-C: NAME.npy for each corruption, (5 N, 32, 32, 3) uint8 with the severities one after the
other, and labels.npy, (5 N,). ImageNet-C and Tiny-ImageNet-C: NAME/SEVERITY/CLASS/IMAGE.JPEG, the names possibly within
folders of their own (noise/, blur/, ...).
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advsphere.corruption.sets import Corrupted
from advsphere.corruption.severity import CORRUPTIONS, EXTRA, SEVERITIES
from advsphere.data.folders import image_folder
from advsphere.data.images import Images, check_labels
from advsphere.errors import UserError
from advsphere.files import disk_errors, write_atomically

Array = np.ndarray[Any, np.dtype[Any]]

JPEG_QUALITY = 85
"""Of the images of ImageNet-C."""


@dataclass(frozen=True, eq=False)
class ArrayImages(Images):
    """Images of a memory-mapped array, (N, S, S, 3) uint8, from its row `first` on."""

    array: Array
    first_row: int
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    rows: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self.array.shape[1:]
        return channels, height, width

    def stored(self, index: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.rows[index.cpu()] + self.first_row
        pixels = torch.from_numpy(self.array[rows.numpy()]).permute(0, 3, 1, 2).contiguous()
        return pixels.to(self.labels.device), self.labels[index.to(self.labels.device)]

    def take(self, index: Tensor) -> Self:
        return replace(self, rows=self.rows[index.cpu()], labels=self.labels[index.to(self.labels.device)])

    def to(self, device: torch.device | str) -> Self:
        return replace(self, labels=self.labels.to(device))


def read_published(root: Path, clean: Images, *, extra: bool = False) -> Corrupted:
    """The corrupted sets in a folder, in either layout; only files that a set needs are opened, when it is asked for.

    clean: the images that a model is tested on; the corrupted ones must have their shape (those of folders are brought
    to it) and their classes. extra: also the four that mCA leaves out. Raises UserError for a folder that holds
    neither, for arrays or labels of another shape or type, for a file that is cut short, and for classes that `clean`
    does not have.
    """
    if not root.is_dir():
        raise UserError(
            f"there is no folder {root}: name one with NAME.npy and labels.npy, or with NAME/SEVERITY/CLASS/"
        )
    wanted = (*CORRUPTIONS, *EXTRA) if extra else CORRUPTIONS
    arrays = tuple(name for name in wanted if (root / f"{name}.npy").is_file())
    if arrays:
        return Corrupted(arrays, {"kind": "arrays", "folder": root.name}, _array_loader(root, arrays, clean))
    folders = {name: found for name in wanted if (found := _folder(root, name)) is not None}
    if not folders:
        raise UserError(
            f"{root} holds no corrupted images: neither {wanted[0]}.npy and the like, nor folders {wanted[0]}/1/CLASS/"
        )
    for folder in folders.values():
        missing = [s for s in SEVERITIES if not (folder / str(s)).is_dir()]
        if missing:
            raise UserError(f"{folder} lacks severity {missing[0]}: each corruption has folders 1 to 5; get it again")

    def load(name: str, severity: int) -> Images:
        return _in_order_of(clean, image_folder(folders[name] / str(severity), clean.shape[-1]), f"{name} {severity}")

    return Corrupted(tuple(folders), {"kind": "folders", "folder": root.name}, load)


def save_arrays(corrupted: Corrupted, folder: Path, *, batch_size: int = 1000) -> None:
    """Write NAME.npy for each corruption, and labels.npy. Raises UserError where the disk does not take them."""
    labels: list[Array] = []
    for name in corrupted.names:
        parts, labels = [], []
        for severity in SEVERITIES:
            images = corrupted.load(name, severity)
            for index in torch.arange(len(images)).split(batch_size):
                pixels, y = images.stored(index)
                parts.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
                labels.append(y.cpu().numpy().astype(np.uint8 if len(images.classes) <= 256 else np.int64))
        _save(folder / f"{name}.npy", np.concatenate(parts))
    _save(folder / "labels.npy", np.concatenate(labels))


def save_folders(corrupted: Corrupted, folder: Path, *, batch_size: int = 250) -> None:
    """Write NAME/SEVERITY/CLASS/NUMBER.JPEG of quality 85; a severity's folder appears when it is complete, and one
    that is there already is kept. Raises UserError where the disk does not take them.
    """
    for name in corrupted.names:
        for severity in SEVERITIES:
            place = folder / name / str(severity)
            if not place.exists():
                _save_folder(corrupted.load(name, severity), place, batch_size)


def _save_folder(images: Images, place: Path, batch_size: int) -> None:
    if odd := [label for label in images.classes if label != Path(label).name]:
        raise UserError(
            f"{images.name}: the class {odd[0]!r} cannot be the name of a folder; rename it, or save arrays"
        )
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with disk_errors(place):
            for label in images.classes:
                (partial / label).mkdir(parents=True)
            for index in torch.arange(len(images)).split(batch_size):
                pixels, y = images.stored(index)
                for number, image, label in zip(index.tolist(), pixels.cpu(), y.tolist(), strict=True):
                    path = partial / images.classes[label] / f"{number:08d}.JPEG"
                    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
                    picture.save(path, quality=JPEG_QUALITY, optimize=True)
            for label in images.classes:
                if not any((partial / label).iterdir()):
                    (partial / label).rmdir()
            os.replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save(path: Path, array: Array) -> None:
    content = io.BytesIO()
    np.save(content, array)
    write_atomically(path, content.getvalue())


def _array_loader(root: Path, names: tuple[str, ...], clean: Images) -> Callable[[str, int], Images]:
    labels = torch.from_numpy(_labels(root))
    arrays = {name: _array(root / f"{name}.npy", len(labels), clean) for name in names}
    each = len(labels) // len(SEVERITIES)
    check_labels(labels[:each], len(clean.classes), str(root / "labels.npy"))
    if each == len(clean) and not torch.equal(labels[:each], clean.labels.cpu()):
        raise UserError(f"{root / 'labels.npy'} does not hold the labels of {clean.name}: are these the same images?")

    def load(name: str, severity: int) -> Images:
        rows, first = torch.arange(each), (severity - 1) * each
        title = f"{root.name}, {name} {severity}"
        images = ArrayImages(arrays[name], first, labels[:each], clean.classes, title, rows)
        return images.to(clean.labels.device).first(len(clean))

    return load


def _labels(root: Path) -> Array:
    path = root / "labels.npy"
    if not path.is_file():
        raise UserError(f"{path} is missing: the labels are published beside the images; get them too")
    labels = _opened(path)
    if labels.ndim != 1 or labels.dtype.kind not in "ui" or not len(labels) or len(labels) % len(SEVERITIES):
        raise UserError(
            f"{path} must hold 5 N whole numbers, those of severity 1 first; found {labels.shape} of {labels.dtype}"
        )
    parts = np.asarray(labels, np.int64).reshape(len(SEVERITIES), -1)
    if (parts != parts[0]).any():
        raise UserError(
            f"{path}: the labels of the five severities differ: the images must be in the same order in each"
        )
    return parts.flatten()


def _array(path: Path, count: int, clean: Images) -> Array:
    array = _opened(path)
    channels, height, width = clean.shape
    wanted = (count, height, width, channels)
    if array.dtype != np.uint8:
        raise UserError(f"{path} must be uint8, 0 to 255; found {array.dtype}: save (255 * x).round().astype(uint8)")
    if array.shape != wanted:
        raise UserError(
            f"{path} must be {wanted}: an image of {clean.name}'s size for each of the labels; found {array.shape}"
        )
    return array


def _opened(path: Path) -> Array:
    try:
        opened: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is broken or cut short ({str(error).splitlines()[0]}): get it again") from error
    if not isinstance(opened, np.ndarray):
        raise UserError(f"{path} is no .npy array: get it again")
    return opened


def _folder(root: Path, name: str) -> Path | None:
    places = [root / name, *sorted(root.glob(f"*/{name}"))]
    return next((place for place in places if place.is_dir()), None)


def _in_order_of(clean: Images, images: Images, title: str) -> Images:
    """The images with the class numbers of the clean set, whose classes they must be among."""
    unknown = sorted(set(images.classes) - set(clean.classes))
    if unknown:
        raise UserError(
            f"{title}: the class {unknown[0]!r} is none of those of {clean.name}: {', '.join(clean.classes[:3])}, ..."
        )
    number = torch.tensor([clean.classes.index(name) for name in images.classes], device=images.labels.device)
    labels = number[images.labels]
    return replace(images, labels=labels, classes=clean.classes, name=title)  # type: ignore[type-var]
