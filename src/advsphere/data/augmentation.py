"""The order of a training epoch, and augmentation of a whole batch in one pass on its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from advsphere.data.crops import ResizedCrops
from advsphere.data.images import as_float
from advsphere.errors import UserError
from advsphere.rng import Rng, permutation


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How training images are varied. CIFAR's usual setting is padding=4, flip=True, ImageNet's min_area=0.08,
    flip=True.

    Calling it on (pixels, draws) is `augment` with these settings; what comes before it, the random resized crop, is
    `crops`.
    """

    padding: int = 0
    """Crop at a random place after zero padding by so many pixels."""
    flip: bool = False
    """Flip every other image horizontally."""
    min_area: float | None = None
    """Crop a random part of at least this share of each image, from the file's own pixels, and resize it."""

    def __post_init__(self) -> None:
        if self.min_area is not None and not 0 < self.min_area <= 1:
            raise UserError(f"a crop of at least {self.min_area:g} of an image: give a share in (0, 1], 0.08 is usual")
        if self.padding < 0:
            raise UserError(f"a crop is padded by {self.padding} pixels; give 0 for none, 4 is usual at 32 pixels")

    def __call__(self, pixels: Tensor, rng: Rng) -> Tensor:
        return augment(pixels, rng, padding=self.padding, flip=self.flip)

    def crops(self, rng: Rng) -> ResizedCrops | None:
        """The random resized crops of a batch; None where there are none."""
        return None if self.min_area is None else ResizedCrops.of(rng, self.min_area)


def augment(pixels: Tensor, rng: Rng, *, padding: int, flip: bool) -> Tensor:
    """Crop each image at a random place of its zero-padded self, flip half of them; (B,C,H,W) float32 in [0,1].

    pixels: (B,C,H,W) uint8 or floating point in [0,1]; the input is left as it is. All (2 padding + 1)^2 places are
    equally likely. An example's variation is a function of (seed, id, restart, step), never of its batch mates, and its
    crop is the same with flips on and off. The result is in channels_last layout, which convolutions want.
    """
    if padding or flip:
        uniform = rng.uniform((3,), "augment").to(pixels.device)
        mirrored = uniform[:, 2:] < 0.5 if flip else torch.zeros_like(uniform[:, 2:], dtype=torch.bool)
        if padding:
            # Rounding may carry the largest uniform times (2 padding + 1) up to 2 padding + 1 itself.
            offset = (uniform[:, :2] * (2 * padding + 1)).long().clamp_(max=2 * padding)
            padded = F.pad(pixels, (padding,) * 4)
            pixels = _windows(padded, offset, mirrored, height=pixels.shape[2], width=pixels.shape[3])
        else:
            # In this layout from the beginning, while a value is a byte.
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            pixels = torch.where(mirrored[:, :, None, None], pixels.flip(-1), pixels)
    return as_float(pixels).contiguous(memory_format=torch.channels_last)


def _windows(pixels: Tensor, offset: Tensor, mirrored: Tensor, *, height: int, width: int) -> Tensor:
    """The (height, width) window at offset (B,2) of each image, mirrored where (B,1) says so, in one gather."""
    batch, channels, _, padded_width = pixels.shape
    rows = offset[:, :1] + torch.arange(height, device=pixels.device)
    columns = torch.arange(width, device=pixels.device).expand(batch, width)
    columns = offset[:, 1:] + torch.where(mirrored, width - 1 - columns, columns)
    places = (
        (rows[:, :, None] * padded_width + columns[:, None, :]).view(batch, 1, height * width).expand(-1, channels, -1)
    )
    return pixels.flatten(2).gather(2, places).view(batch, channels, height, width)


def epoch_batches(n: int, batch_size: int, *, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The batches of an epoch, (B,) int64 each: n examples in the order of (seed, epoch); the last may be smaller.

    A single example that is left over joins the batch before: batch norm has no variance of one value.
    """
    *batches, last = torch.split(permutation(n, seed=seed, epoch=epoch), batch_size)
    if len(last) == 1 < batch_size and batches:
        return *batches[:-1], torch.cat([batches[-1], last])
    return *batches, last
