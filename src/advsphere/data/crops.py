"""Random resized crops: a part of each image, of random size and shape, resized to one size.

Source: C. Szegedy et al., *Going deeper with convolutions* (2015), section 6, with the numbers and the order of
torchvision's `RandomResizedCrop`. The crop of an image depends on its id, not on its batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from advsphere.rng import Rng

RATIO = (3 / 4, 4 / 3)
"""The range of a crop's width divided by its height."""
TRIES = 10


@dataclass(frozen=True, eq=False)
class ResizedCrops:
    """The crops of one batch, with areas in [min_area, 1].

    `uniform` is (B, 2 * TRIES + 2) in (0, 1): an area and a shape for each try, then the position.
    """

    uniform: Tensor
    min_area: float

    @classmethod
    def of(cls, rng: Rng, min_area: float) -> ResizedCrops:
        return cls(rng.uniform((2 * TRIES + 2,), "resized crop"), min_area)

    @cached_property
    def _numbers(self) -> list[list[float]]:
        """The uniform numbers on the host, read from a GPU once for the whole batch."""
        numbers: list[list[float]] = self.uniform.tolist()
        return numbers

    def box(self, i: int, width: int, height: int) -> tuple[int, int, int, int]:
        """The crop of the i-th image of the batch, as (left, top, width, height) in pixels.

        Areas are uniform in [min_area, 1], shapes log-uniform in RATIO. The first of ten tries that fits into the image
        gets a random position. If none fits, the crop is the largest centred one with a shape in RATIO.
        """
        *tried, across, down = self._numbers[i]
        for area, shape in zip(tried[::2], tried[1::2], strict=True):
            area = width * height * (self.min_area + (1 - self.min_area) * area)
            shape = RATIO[0] * (RATIO[1] / RATIO[0]) ** shape
            w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < w <= width and 0 < h <= height:
                return int(across * (width - w + 1)), int(down * (height - h + 1)), w, h
        w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
        return (width - w) // 2, (height - h) // 2, w, h

    def __call__(self, pixels: Tensor) -> Tensor:
        """Crop a batch (B, C, H, W) in memory and resize the crops to the size of the images."""
        height, width = pixels.shape[2:]
        parts = []
        for i, image in enumerate(pixels):
            left, top, w, h = self.box(i, width, height)
            parts.append(resized(image[:, top : top + h, left : left + w], height, width))
        return torch.stack(parts) if parts else pixels


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """An image (C, h, w) resized to (C, height, width), bilinear and antialiased, as torchvision resizes tensors.

    GPUs have no kernel for uint8, so there it is resized in float32 and rounded. A few pixels then differ by one level.
    """
    if image.dtype == torch.uint8 and image.device.type != "cpu":
        return resized(image.float(), height, width).round_().to(torch.uint8)
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
