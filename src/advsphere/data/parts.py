"""The training and test parts of images that lie in one place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import NamedTuple

from advsphere.data.encoded import EncodedImages
from advsphere.draws import permutation

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
