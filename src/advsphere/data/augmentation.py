"""Random crops, flips and cutout of a whole batch in one pass, on its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from advsphere.data.images import as_float
from advsphere.errors import UserError
from advsphere.rng import Rng
from advsphere.typed import require_types


@dataclass(frozen=True, kw_only=True)
class Augment:
    """The augmentation of training images: usually padding=4, flip=True on CIFAR, min_area=0.08, flip=True on ImageNet.

    Attributes:
        padding: Pad with zeros by this many pixels, then crop at a random position.
        flip: Flip half of the images horizontally.
        min_area: Crop a random part of at least this share of each image, at its own resolution, and resize it.
        alternate: Flip in turn: half of the images, chosen at random once, are flipped in even epochs and the others in
            odd ones. Source: Jordan 2024 (arXiv 2404.00498).
        cutout: Set a square of this side in pixels to grey (0.5), with its centre at a random pixel, so that a part of
            it may lie outside. Source: DeVries & Taylor 2017 (arXiv 1708.04552), who set it to the mean colour.

    Raises:
        UserError: If a value is out of range, or flips are to alternate and there are none.
    """

    padding: int = 0
    flip: bool = False
    min_area: float | None = None
    alternate: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        require_types(self)
        if self.min_area is not None and not 0 < self.min_area <= 1:
            raise UserError(f"a crop of at least {self.min_area:g} of an image: give a share in (0, 1], 0.08 is usual")
        if self.padding < 0:
            raise UserError(f"a crop is padded by {self.padding} pixels; give 0 for none, 4 is usual at 32 pixels")
        if self.cutout < 0:
            raise UserError(f"a square of {self.cutout} pixels is cut out; give 0 for none, 8 is usual at 32 pixels")
        if self.alternate and not self.flip:
            raise UserError("alternate is about flips, and there are none: set flip too")

    def draw(self, rng: Rng) -> Tensor | None:
        """The uniform numbers behind the choices for each example, which may be drawn for a whole epoch at once.

        Args:
            rng: The generator of the examples, whose step is the epoch.

        Returns:
            (B, 3), or (B, 5) with cutout: the place of the crop, the flip and the place of the square. None if there is
            nothing to choose.
        """
        if not (self.padding or self.flip or self.cutout):
            return None
        uniform = rng.uniform((3,), "augment")
        if self.alternate:
            first = rng.at(step=0).uniform((3,), "augment")[:, 2:]
            uniform = torch.cat([uniform[:, :2], 1 - first if rng.step % 2 else first], 1)
        return torch.cat([uniform, rng.uniform((2,), "cutout")], 1) if self.cutout else uniform

    def __call__(self, pixels: Tensor, rng: Rng) -> Tensor:
        """Pad, crop, flip and cut out of a batch: (B, C, H, W), uint8 or in [0, 1] -> float32 in [0, 1], channels last.

        The random crops by `min_area` are made before, by `Images.stored`. All (2 padding + 1)^2 positions are equally
        likely. The augmentation of an example depends on its seed, id, restart and step, not on its batch. Its crop is
        the same with and without flips and cutout.
        """
        return self.apply(pixels, self.draw(rng))

    def apply(self, pixels: Tensor, uniform: Tensor | None) -> Tensor:
        """As `__call__`, with numbers that were drawn before.

        Args:
            pixels: (B, C, H, W), uint8 or in [0, 1].
            uniform: What `draw` returned for these examples, on any device.

        Returns:
            (B, C, H, W) float32 in [0, 1], channels last.
        """
        if uniform is not None:
            uniform = uniform.to(pixels.device)
        if uniform is not None and (self.padding or self.flip):
            mirrored = (uniform[:, 2:3] < 0.5) & self.flip
            if self.padding:
                # The largest uniform times (2 padding + 1) may be rounded up to 2 padding + 1.
                offset = (uniform[:, :2] * (2 * self.padding + 1)).long().clamp_(max=2 * self.padding)
                padded = F.pad(pixels, (self.padding,) * 4)
                pixels = _windows(padded, offset, mirrored, height=pixels.shape[2], width=pixels.shape[3])
            else:
                # Change the layout before the conversion to float32, while a value is one byte.
                pixels = pixels.contiguous(memory_format=torch.channels_last)
                pixels = torch.where(mirrored[:, :, None, None], pixels.flip(-1), pixels)
        x = as_float(pixels).contiguous(memory_format=torch.channels_last)
        return _without_square(x, uniform[:, 3:], self.cutout) if uniform is not None and self.cutout else x


def _windows(pixels: Tensor, offset: Tensor, mirrored: Tensor, *, height: int, width: int) -> Tensor:
    """Cut the (height, width) window at offset (B, 2) from each image, mirrored where `mirrored` (B, 1) is true."""
    batch, channels, _, padded_width = pixels.shape
    rows = offset[:, :1] + torch.arange(height, device=pixels.device)
    columns = torch.arange(width, device=pixels.device).expand(batch, width)
    columns = offset[:, 1:] + torch.where(mirrored, width - 1 - columns, columns)
    places = rows[:, :, None] * padded_width + columns[:, None, :]
    places = places.view(batch, 1, height * width).expand(-1, channels, -1)
    return pixels.flatten(2).gather(2, places).view(batch, channels, height, width)


def _without_square(x: Tensor, centre: Tensor, side: int) -> Tensor:
    """Set a square to grey in each image; `centre` (B, 2) in (0, 1) chooses the row and column of its centre."""
    inside = []
    for axis, length in ((0, x.shape[2]), (1, x.shape[3])):
        first = (centre[:, axis : axis + 1] * length).long().clamp_(max=length - 1) - side // 2
        places = torch.arange(length, device=x.device)
        inside.append((places >= first) & (places < first + side))
    rows, columns = inside
    return x.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0.5)
