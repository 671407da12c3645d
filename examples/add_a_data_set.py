"""Add your own data set, with the interface of Hugging Face's `datasets`: len(), [i] -> {"image", "label"}, features.

Name a function that returns the data, like any other part. It may return one set, a pair (train, test), or a mapping
with "train" and "test", as `datasets.load_dataset` does:

    advsphere train digits-pgd-at --data.name examples.add_a_data_set:shapes --threat.eps 0.1 --out runs/shapes
    advsphere evaluate runs/shapes
"""

import sys
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import advsphere as adv
from advsphere.objectives import PGDAT


class Shapes:
    """Grey images of circles and squares, in place of `datasets.load_dataset("you/shapes", split=...)`."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self.features = {"label": SimpleNamespace(names=["circle", "square"])}

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Any]:
        random = np.random.default_rng((self.seed, i))
        image = Image.new("L", (16, 16), int(random.integers(0, 60)))
        left, top, side = random.integers(0, 6), random.integers(0, 6), random.integers(6, 10)
        box = tuple(map(int, (left, top, left + side, top + side)))
        draw = ImageDraw.Draw(image)
        (draw.ellipse if i % 2 == 0 else draw.rectangle)(box, fill=int(random.integers(160, 255)))
        return {"image": image, "label": i % 2}


def shapes(n: int = 400) -> dict[str, Shapes]:
    """n images to train on and 100 to test on."""
    return {"train": Shapes(n, seed=0), "test": Shapes(100, seed=1)}


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else mkdtemp()) / "shapes"
    threat = adv.ThreatModel(norm="linf", eps=0.05)
    objective = PGDAT(threat=threat, steps=5, step_size=0.02)
    adv.train(folder=folder, data=shapes(), objective=objective, epochs=6, lr=0.02, validation=100, on_epoch=print)
    test = shapes()["test"]  # data passed as an object must be passed again; data passed by name is found again
    model, images = adv.load_run(folder, test=test)[1:]
    print(adv.evaluate(model, images, threat=threat).table())
