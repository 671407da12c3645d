"""Random crops and flips of a whole batch in one pass, on its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from advsphere.data.images import as_float
from advsphere.errors import UserError
from advsphere.rng import Rng


@dataclass(frozen=True, kw_only=True)
class Augment:
    """The augmentation of training images: usually padding=4, flip=True on CIFAR, min_area=0.08, flip=True on ImageNet.

    Attributes:
        padding: Pad with zeros by this many pixels, then crop at a random position.
        flip: Flip half of the images horizontally.
        min_area: Crop a random part of at least this share of each image, at its own resolution, and resize it.
    """

    padding: int = 0
    flip: bool = False
    min_area: float | None = None

    def __post_init__(self) -> None:
        if self.min_area is not None and not 0 < self.min_area <= 1:
            raise UserError(f"a crop of at least {self.min_area:g} of an image: give a share in (0, 1], 0.08 is usual")
        if self.padding < 0:
            raise UserError(f"a crop is padded by {self.padding} pixels; give 0 for none, 4 is usual at 32 pixels")

    def __call__(self, pixels: Tensor, rng: Rng) -> Tensor:
        """Pad, crop and flip a batch: (B, C, H, W), uint8 or in [0, 1] -> float32 in [0, 1], channels last.

        The random crops by `min_area` are made before, by `Images.stored`. All (2 padding + 1)^2 positions are equally
        likely. The augmentation of an example depends on its seed, id, restart and step, not on its batch. Its crop is
        the same with and without flips.
        """
        if self.padding or self.flip:
            uniform = rng.uniform((3,), "augment").to(pixels.device)
            mirrored = (uniform[:, 2:] < 0.5) & self.flip
            if self.padding:
                # The largest uniform times (2 padding + 1) may be rounded up to 2 padding + 1.
                offset = (uniform[:, :2] * (2 * self.padding + 1)).long().clamp_(max=2 * self.padding)
                padded = F.pad(pixels, (self.padding,) * 4)
                pixels = _windows(padded, offset, mirrored, height=pixels.shape[2], width=pixels.shape[3])
            else:
                # Change the layout before the conversion to float32, while a value is one byte.
                pixels = pixels.contiguous(memory_format=torch.channels_last)
                pixels = torch.where(mirrored[:, :, None, None], pixels.flip(-1), pixels)
        return as_float(pixels).contiguous(memory_format=torch.channels_last)


def _windows(pixels: Tensor, offset: Tensor, mirrored: Tensor, *, height: int, width: int) -> Tensor:
    """Cut the (height, width) window at offset (B, 2) from each image, mirrored where `mirrored` (B, 1) is true."""
    batch, channels, _, padded_width = pixels.shape
    rows = offset[:, :1] + torch.arange(height, device=pixels.device)
    columns = torch.arange(width, device=pixels.device).expand(batch, width)
    columns = offset[:, 1:] + torch.where(mirrored, width - 1 - columns, columns)
    places = rows[:, :, None] * padded_width + columns[:, None, :]
    places = places.view(batch, 1, height * width).expand(-1, channels, -1)
    return pixels.flatten(2).gather(2, places).view(batch, channels, height, width)
