"""Random resized crops: a random part of each image, of random size and shape, brought to one size.

Source: C. Szegedy et al., *Going deeper with convolutions* (2015), section 6, with the numbers and the order of
torchvision's `RandomResizedCrop`; where an image is cropped is addressed by its id.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from advsphere.rng import Rng

RATIO = (3 / 4, 4 / 3)
"""Width to height of a crop."""
TRIES = 10


class Box(NamedTuple):
    """A part of an image, in whole pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class ResizedCrops:
    """The crops of one batch.

    uniform: (B, 2 * TRIES + 2) in (0, 1): an area and a shape for each try, and the place. min_area: the smallest share
    of an image's area that a crop may have, in (0, 1].
    """

    uniform: Tensor
    min_area: float

    @classmethod
    def of(cls, rng: Rng, min_area: float) -> Self:
        """The crops that belong to these examples."""
        return cls(rng.uniform((2 * TRIES + 2,), "resized crop"), min_area)

    def box(self, i: int, width: int, height: int) -> Box:
        """Where the i-th image of the batch, of that size, is cropped.

        Areas are uniform in [min_area, 1], shapes log-uniform in RATIO. The first of ten tries that fits into the image
        is placed anywhere in it; where none fits, it is the largest centre crop with a shape in RATIO.
        """
        *tried, across, down = self.uniform[i].tolist()
        for area, shape in zip(tried[::2], tried[1::2], strict=True):
            area = width * height * (self.min_area + (1 - self.min_area) * area)
            shape = RATIO[0] * (RATIO[1] / RATIO[0]) ** shape
            w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < w <= width and 0 < h <= height:
                return Box(int(across * (width - w + 1)), int(down * (height - h + 1)), w, h)
        w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
        return Box((width - w) // 2, (height - h) // 2, w, h)

    def __call__(self, pixels: Tensor) -> Tensor:
        """The crops of a batch that is in memory, at its own size; (B,C,H,W)."""
        height, width = pixels.shape[2:]
        boxes = [self.box(i, width, height) for i in range(len(pixels))]
        parts = [
            resized(image[:, box.top : box.top + box.height, box.left : box.left + box.width], height, width)
            for image, box in zip(pixels, boxes, strict=True)
        ]
        return torch.stack(parts) if parts else pixels


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """An image (C,h,w) brought to (C,height,width), bilinear and antialiased, as torchvision's tensors are."""
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
