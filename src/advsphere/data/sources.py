"""Load data sets by name, and find them on disk."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from advsphere.data.cifar import LAYOUTS, read_cifar, read_cifar_test
from advsphere.data.encoded import EncodedImages, View
from advsphere.data.folders import TEST_FOLDERS, check_same_classes, scan_folder, skipped
from advsphere.data.images import Dataset, Images, ImageSet, in_memory_if_small
from advsphere.data.shards import archives_in, scan_shards
from advsphere.errors import UserError, needs
from advsphere.rng import permutation

SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32}
NAMES = (*SIZES, "imagefolder")
VARIABLE = "ADVSPHERE_DATA"
_FLAGS = "(--data; in train --data.root)"
"""How the command line names the root."""

HELD_OUT = 0.1
"""The share of the images that is held out as a test set if the folder has none."""

_URL = re.compile(r"([a-z][a-z0-9+]+):/+(.*)")
"""A URL that was converted to a Path, which reduces two slashes to one."""


def load(
    name: str,
    root: Path | str | None = None,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    crops: bool = False,
) -> Dataset:
    """Load a data set by its name.

    Args:
        name: "digits" (included, needs scikit-learn), "cifar10", "cifar100" or "imagefolder".
        root: The folder of the data set or, for CIFAR, its parent folder. By default $ADVSPHERE_DATA, then ./data. An
            image folder has images in train/<class>/ and val/<class>/, or train/*.tar and val/*.tar in the layout of
            WebDataset, which may also lie at a URL. Without val or test a tenth is held out.
        image_size: The side of the square images that an image folder yields. The other sets have a fixed size.
        resize: The length of the shorter side before the central crop of `image_size`; `image_size` by default.
        crops: Whether the training images will be cropped at random. Those of an image folder then stay encoded, at
            their own resolution.

    Returns:
        The training and test images.

    Raises:
        UserError: If the data set is missing or broken. The message names the searched folders and how to get it.
    """
    _check(name, image_size, resize)
    if name == "digits":
        return read_digits()
    if name in LAYOUTS:
        return read_cifar(name, _cifar_folder(name, root))
    data = _read_place(root, View.of(image_size, resize))
    return Dataset(data.train if crops else in_memory_if_small(data.train), in_memory_if_small(data.test), data.note)


def load_test(
    name: str, root: Path | str | None = None, *, image_size: int | None = None, resize: int | None = None
) -> Images:
    """Load only the test part of a data set. The training images of CIFAR or of an image folder may be absent.

    Args:
        name: As in `load`.
        root: As in `load`.
        image_size: As in `load`.
        resize: As in `load`.

    Returns:
        The test images.

    Raises:
        UserError: As `load`.
    """
    _check(name, image_size, resize)
    if name == "digits":
        return read_digits().test
    if name in LAYOUTS:
        return read_cifar_test(name, _cifar_folder(name, root))
    return in_memory_if_small(_read_place(root, View.of(image_size, resize), test_only=True).test)


def read_digits() -> Dataset:
    """Handwritten digits of scikit-learn: 1,297 training and 500 test images, 1x8x8, grey levels 0..16 as 0..255.

    scikit-learn defines no split. Ours is fixed and the same on every machine.
    Source: E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI repository (1998), test part.
    """
    needs("data", "sklearn")
    from sklearn.datasets import load_digits  # here and not at the top: it is slow to import

    bunch = load_digits()
    levels = torch.from_numpy(bunch.images).unsqueeze(1)
    digits = ImageSet(
        (levels * 255 / 16).round().to(torch.uint8),
        torch.from_numpy(bunch.target).long(),
        tuple(str(digit) for digit in bunch.target_names),
        "digits",
    )
    order = permutation(len(digits), seed=0, epoch=0, purpose="digits test split")
    return Dataset(digits.take(order[500:].sort().values), digits.take(order[:500].sort().values))


def _check(name: str, image_size: int | None, resize: int | None) -> None:
    if name not in NAMES:
        nearest = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise UserError(f"there is no data set {name!r}: {hint}known are {', '.join(NAMES)}")
    for option, value in {"image_size": image_size, "resize": resize}.items():
        size = SIZES.get(name)
        if size is not None and value is not None and not (option == "image_size" and value == size):
            raise UserError(f"{name} is {size}x{size}: leave out {option}={value}, which is for imagefolder")


def _read_place(root: Path | str | None, view: View | None, *, test_only: bool = False) -> Dataset:
    """Both parts of an image folder, not yet decoded. With `test_only`, both parts are the test images, and the
    training images may be absent.
    """
    place = _place(root)
    parts = [f"{place}/{part}" for part in ("train", *TEST_FOLDERS)]
    sharded = any(map(archives_in, (place, *parts)))
    if not sharded and "://" in place:
        raise UserError(f"imagefolder: there are no .tar shards in {place}/train, {place}/val or {place} itself")

    def scan(folder: str) -> EncodedImages:
        return scan_shards(folder, place, view) if sharded else scan_folder(Path(folder), view)

    train, *tests = (part if (archives_in(part) if sharded else Path(part).is_dir()) else None for part in parts)
    test = next(filter(None, tests), None)
    if test is None:
        return hold_out(scan(train or place), "val or test folder")
    if train is not None and not sharded:
        check_same_classes(Path(train), Path(test))
    if test_only:
        images = scan(test)
        return Dataset(images, images)
    if train is None:
        kind = "archives" if sharded else "images"
        raise UserError(f"{test} has no train folder beside it: put the training {kind} into {place}/train")
    train_images, test_images = scan(train), scan(test)
    classes = max(train_images.classes, test_images.classes, key=len)
    note = "" if sharded else skipped(Path(train), Path(test))
    return Dataset(replace(train_images, classes=classes), replace(test_images, classes=classes), note)


def hold_out(images: Images, missing: str = "test part") -> Dataset:
    """Hold out a tenth of the images for testing. The choice depends only on the number of images."""
    if len(images) < 2:
        raise UserError(f"{images.name} has one image and no {missing}: give at least two images")
    order = permutation(len(images), seed=0, epoch=0, purpose="held-out test images")
    count = max(1, round(HELD_OUT * len(images)))
    train: Any = images.take(order[count:].sort().values)  # every set is a dataclass with a name
    test: Any = images.take(order[:count].sort().values)
    return Dataset(
        replace(train, name=f"{images.name} (train part)"),
        replace(test.hard(), name=f"{images.name} (held out)"),
        f"{images.name} has no {missing}: {count} of its {len(images)} images are held out as the test set",
    )


def _places(root: Path | str | None) -> list[Path]:
    """The folders to search for a data set, in order."""
    if root is not None:
        return [Path(root)]
    variable = os.environ.get(VARIABLE)
    return [*([Path(variable)] if variable else []), Path("data")]


def _looked_in(places: list[Path]) -> str:
    return " and ".join(str(place.absolute()) for place in places)


def _cifar_folder(name: str, root: Path | str | None) -> Path:
    layout, places = LAYOUTS[name], _places(root)
    for place in places:
        if folder := layout.find(place):
            return folder
    raise UserError(
        f"{name}: no folder {layout.folder} in {_looked_in(places)}: "
        f"name its place as root {_FLAGS}, or in ${VARIABLE}; {layout.cure}"
    )


def _place(root: Path | str | None) -> str:
    """The first of the searched folders that exists, or the URL."""
    places = _places(root)
    for place in places:
        if url := _URL.fullmatch(str(place)):
            return f"{url[1]}://{url[2]}"
        if place.is_dir():
            return str(place)
    raise UserError(
        f"imagefolder: there is no folder {_looked_in(places)}; name as root {_FLAGS}, or in ${VARIABLE}, "
        "a folder with images in train/<class>/ and val/<class>/, or with .tar shards in train/ and val/"
    )
