"""Data sets by name, and where they are looked for."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

import torch

from advsphere.data.cifar import LAYOUTS, read_cifar
from advsphere.data.encoded import View
from advsphere.data.folders import read_folder, read_test_folder
from advsphere.data.images import Dataset, Images, ImageSet, in_memory_if_small
from advsphere.data.shards import holds_shards, read_shards, read_test_shards
from advsphere.errors import UserError
from advsphere.rng import permutation

# FOLDED digits: Handwritten digits that come with scikit-learn: the data set that needs no download.
# FOLDED digits: Source: E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI repository
# FOLDED digits: (1998), its test part.

TEST_IMAGES = 500


def read_digits() -> Dataset:
    """1,297 images to train on and 500 to test on, 1x8x8; the 17 grey levels 0..16 are spread over 0..255.

    scikit-learn has no split of these; ours is fixed, by address, and is the same on every machine.
    """
    from sklearn.datasets import load_digits  # slow to import, and needed here alone

    bunch = load_digits()
    levels = torch.from_numpy(bunch.images).unsqueeze(1)
    digits = ImageSet(
        (levels * 255 / 16).round().to(torch.uint8),
        torch.from_numpy(bunch.target).long(),
        tuple(str(digit) for digit in bunch.target_names),
        "digits",
    )
    order = permutation(len(digits), seed=0, epoch=0, purpose="digits test split")
    return Dataset(digits.take(order[TEST_IMAGES:].sort().values), digits.take(order[:TEST_IMAGES].sort().values))


SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32}
NAMES = (*SIZES, "imagefolder")
VARIABLE = "ADVSPHERE_DATA"
_URL = re.compile(r"([a-z][a-z0-9+]+):/+(.*)")
"""What is left of a URL that went through a Path, which makes one slash of two."""


def load(
    name: str,
    root: Path | None = None,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    crops: bool = False,
) -> Dataset:
    """The data set of that name: "digits" (embedded), "cifar10", "cifar100" or "imagefolder".

    root: the folder itself or, for CIFAR, the one that holds it; without it $ADVSPHERE_DATA and ./data are looked at.
    An image folder holds image files or, as train/*.tar and val/*.tar, shards; these may also lie at a URL.
    image_size: the side of the square that an image folder's images become; the others have a size of their own.
    resize: what their shorter side becomes before that square is cut out of their centre; image_size by default.
    crops: the training images are to be cropped at random, so an image folder's stay encoded at their own resolution.
    Raises UserError where the folder is missing or broken, with what was looked for, where, and how to get it.
    """
    _check(name, image_size, resize)
    if name == "digits":
        return read_digits()
    if name in LAYOUTS:
        return read_cifar(name, _cifar_folder(name, root))
    place, view = _place(root), View.of(image_size, resize)
    parts = read_shards(place, view) if holds_shards(place) else read_folder(_folder(place), view)
    return Dataset(
        parts.train if crops else in_memory_if_small(parts.train), in_memory_if_small(parts.test), parts.note
    )


def load_test(
    name: str, root: Path | None = None, *, image_size: int | None = None, resize: int | None = None
) -> Images:
    """The test part of `load` alone; an image folder's training images are then not decoded, and may be absent."""
    if name == "imagefolder":
        _check(name, image_size, resize)
        place, view = _place(root), View.of(image_size, resize)
        return in_memory_if_small(
            read_test_shards(place, view) if holds_shards(place) else read_test_folder(_folder(place), view)
        )
    return load(name, root, image_size=image_size, resize=resize).test


def _check(name: str, image_size: int | None, resize: int | None) -> None:
    if name not in NAMES:
        nearest = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise UserError(f"there is no data set {name!r}: {hint}known are {', '.join(NAMES)}")
    if image_size is not None and image_size != SIZES.get(name, image_size):
        raise UserError(
            f"{name} is {SIZES[name]}x{SIZES[name]}: leave out image_size={image_size}, which is for imagefolder"
        )
    if resize is not None and name in SIZES:
        raise UserError(f"{name} is {SIZES[name]}x{SIZES[name]}: leave out resize={resize}, which is for imagefolder")


def _places(root: Path | None) -> list[Path]:
    """Where a data set is looked for, in order."""
    if root is not None:
        return [root]
    variable = os.environ.get(VARIABLE)
    return [*([Path(variable)] if variable else []), Path("data")]


def _looked_in(places: list[Path]) -> str:
    return " and ".join(str(place.absolute()) for place in places)


def _cifar_folder(name: str, root: Path | None) -> Path:
    layout, places = LAYOUTS[name], _places(root)
    for place in places:
        if folder := layout.find(place):
            return folder
    raise UserError(
        f"{name}: no folder {layout.folder} in {_looked_in(places)}: "
        f"name its place as root, or in ${VARIABLE}; {layout.cure}"
    )


def _place(root: Path | None) -> str:
    """Where an image folder lies: a folder that is there, or the URL of one that may be."""
    places = _places(root)
    for place in places:
        if url := _URL.fullmatch(str(place)):
            return f"{url[1]}://{url[2]}"
        if place.is_dir():
            return str(place)
    raise UserError(
        f"imagefolder: there is no folder {_looked_in(places)}; name as root, or in ${VARIABLE}, "
        "a folder with train/<class>/ and val/<class>/ full of images, or with train/ and val/ full of .tar shards"
    )


def _folder(place: str) -> Path:
    if "://" in place:
        raise UserError(f"imagefolder: there are no .tar shards in {place}/train, {place}/val or {place} itself")
    return Path(place)
