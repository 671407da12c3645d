from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.layouts import Cifar, write_image


@pytest.fixture
def cifar(tmp_path: Path) -> Cifar:
    return Cifar(tmp_path / "cifar-10-batches-py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """root/{train,val}/{cat,dog}: 3 and 2 PNG images of each class, 6x6; red is 10 * class + number, blue is
    100 in train."""
    for part, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                pixels = np.zeros((6, 6, 3), np.uint8)
                pixels[..., 0], pixels[..., 2] = 10 * label + i, 100 * (part == "train")
                write_image(tmp_path / "pets" / part / name / f"{i}.png", pixels)
    return tmp_path / "pets"
