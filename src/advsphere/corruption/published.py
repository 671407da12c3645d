"""Read and write corrupted images in the published formats: arrays of CIFAR-10-C and folders of ImageNet-C.

CIFAR-10-C and CIFAR-100-C have NAME.npy for each corruption, (5 N, 32, 32, 3) uint8 with one severity after the other,
and labels.npy, (5 N,). ImageNet-C and Tiny-ImageNet-C have NAME/SEVERITY/CLASS/IMAGE.JPEG, where NAME may lie in a
folder of its group (noise/, blur/, ...).
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advsphere.corruption.generate import Corrupted, LazyImages
from advsphere.corruption.severity import CORRUPTIONS, EXTRA, SEVERITIES
from advsphere.data.folders import image_folder
from advsphere.data.images import Images, check_labels
from advsphere.errors import UserError
from advsphere.files import disk_errors, write_atomically

Array = np.ndarray[Any, np.dtype[Any]]

JPEG_QUALITY = 85
"""The quality of ImageNet-C's images."""


def read_published(root: Path | str, clean: Images, *, extra: bool = False) -> Corrupted:
    """The corrupted sets in a folder, in either layout. The files of a set are opened on demand.

    Args:
        root: The folder with NAME.npy and labels.npy, or with NAME/SEVERITY/CLASS/.
        clean: The clean test images. The corrupted images must have the same classes and shape; images in folders are
            resized to it.
        extra: Include the four corruptions of EXTRA.

    Returns:
        The corrupted sets in the folder.

    Raises:
        UserError: If the folder has no corrupted images, if arrays or labels have another shape or type, if a file is
            truncated, or if `clean` lacks a class.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; give one with NAME.npy and labels.npy, or NAME/SEVERITY/CLASS/")
    wanted = (*CORRUPTIONS, *EXTRA) if extra else CORRUPTIONS
    arrays = tuple(name for name in wanted if (root / f"{name}.npy").is_file())
    if arrays:
        return Corrupted(arrays, {"kind": "arrays", "folder": root.name}, _array_loader(root, arrays, clean))
    folders = {name: found for name in wanted if (found := _folder(root, name)) is not None}
    if not folders:
        raise UserError(
            f"{root} has no corrupted images: neither files like {wanted[0]}.npy nor folders like {wanted[0]}/1/CLASS/"
        )
    for folder in folders.values():
        missing = [s for s in SEVERITIES if not (folder / str(s)).is_dir()]
        if missing:
            raise UserError(f"{folder} lacks severity {missing[0]}: each corruption has folders 1 to 5; get it again")

    def load(name: str, severity: int) -> Images:
        return _in_order_of(clean, image_folder(folders[name] / str(severity), clean.shape[-1]), f"{name} {severity}")

    return Corrupted(tuple(folders), {"kind": "folders", "folder": root.name}, load)


def save_arrays(corrupted: Corrupted, folder: Path | str, *, batch_size: int = 1000) -> None:
    """Write NAME.npy for each corruption, and labels.npy.

    Args:
        corrupted: The sets to write.
        folder: The destination folder.
        batch_size: Number of images to generate at once.

    Raises:
        UserError: If a file can't be written.
    """
    folder = Path(folder)
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


def save_folders(corrupted: Corrupted, folder: Path | str, *, batch_size: int = 250) -> None:
    """Write NAME/SEVERITY/CLASS/NUMBER.JPEG of quality 85.

    The folder of a severity appears when it is complete. An existing one is kept.

    Args:
        corrupted: The sets to write.
        folder: The destination folder.
        batch_size: Number of images to generate at once.

    Raises:
        UserError: If a file can't be written, or if the name of a class is not valid as a folder name.
    """
    folder = Path(folder)
    for name in corrupted.names:
        for severity in SEVERITIES:
            place = folder / name / str(severity)
            if not place.exists():
                _save_folder(corrupted.load(name, severity), place, batch_size)


def _save_folder(images: Images, place: Path, batch_size: int) -> None:
    if odd := [label for label in images.classes if label != Path(label).name]:
        raise UserError(f"{images.name}: the class {odd[0]!r} can't name a folder; rename it, or save arrays")
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
        raise UserError(f"{root / 'labels.npy'} differs from the labels of {clean.name}; give the same images")

    def load(name: str, severity: int) -> Images:
        def read(rows: Tensor) -> Tensor:
            pixels = arrays[name][rows.numpy() + (severity - 1) * each]
            return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

        title, rows = f"{root.name}, {name} {severity}", torch.arange(each)
        images = LazyImages(read, labels[:each], clean.classes, title, clean.shape, rows)
        return images.to(clean.labels.device).first(len(clean))

    return load


def _labels(root: Path) -> Array:
    path = root / "labels.npy"
    if not path.is_file():
        raise UserError(f"{path} is missing: the labels are published beside the images; get them too")
    labels = _opened(path)
    if labels.ndim != 1 or labels.dtype.kind not in "ui" or not len(labels) or len(labels) % len(SEVERITIES):
        raise UserError(f"{path} must hold 5 N whole numbers, severity 1 first; found {labels.shape} of {labels.dtype}")
    parts = np.asarray(labels, np.int64).reshape(len(SEVERITIES), -1)
    if (parts != parts[0]).any():
        raise UserError(f"{path}: the labels of the five severities differ; each must have the images in one order")
    return parts.flatten()


def _array(path: Path, count: int, clean: Images) -> Array:
    array = _opened(path)
    channels, height, width = clean.shape
    wanted = (count, height, width, channels)
    if array.dtype != np.uint8:
        raise UserError(f"{path} must be uint8, 0 to 255; found {array.dtype}: save (255 * x).round().astype(uint8)")
    if array.shape != wanted:
        raise UserError(
            f"{path} must be {wanted}, one image of {clean.name}'s size for each label; found {array.shape}"
        )
    return array


def _opened(path: Path) -> Array:
    try:
        opened: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy evaluates the header as an expression of Python
        raise UserError(
            f"{path} is broken or truncated ({' '.join(str(error).split())[:200]}): get it again"
        ) from error
    if not isinstance(opened, np.ndarray):
        raise UserError(f"{path} is no .npy array: get it again")
    return opened


def _folder(root: Path, name: str) -> Path | None:
    places = [root / name, *sorted(root.glob(f"*/{name}"))]
    return next((place for place in places if place.is_dir()), None)


def _in_order_of(clean: Images, images: Images, title: str) -> Images:
    """Renumber the classes of the images as in the clean set."""
    unknown = sorted(set(images.classes) - set(clean.classes))
    if unknown:
        raise UserError(
            f"{title}: {clean.name} has no class {unknown[0]!r}; it has {', '.join(clean.classes[:3])}, ..."
        )
    number = torch.tensor([clean.classes.index(name) for name in images.classes], device=images.labels.device)
    labels = number[images.labels]
    return replace(images, labels=labels, classes=clean.classes, name=title)  # type: ignore[type-var]
