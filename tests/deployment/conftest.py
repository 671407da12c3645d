from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advsphere.cli import main

SIZE = 12
"""The side of the photos' images."""


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with HE on the digits, evaluated on 20 images."""
    folder = tmp_path_factory.mktemp("deployment") / "run"
    assert main(["train", "digits-fastat-he", "--epochs", "1", "--out", str(folder)]) == 0
    assert main(["evaluate", str(folder), "--n", "20"]) == 0
    return folder


@pytest.fixture(scope="session")
def photos_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on photos of two classes, which are larger than the network's images and not square."""
    folder = tmp_path_factory.mktemp("deployment")
    noise = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        for name, level in (("bright", 170), ("dark", 0)):
            (folder / "photos" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = (level + noise.integers(0, 80, (20, 30, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / part / name / f"{i}.png")
    words = ["train", "folder-pgd-at", "--data.root", str(folder / "photos"), "--data.image-size", str(SIZE)]
    words += ["--data.validation", "4", "--model.name", "small-cnn", "--epochs", "1", "--batch-size", "4"]
    assert main([*words, "--out", str(folder / "run")]) == 0
    return folder / "run"
