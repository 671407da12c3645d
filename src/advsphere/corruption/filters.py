"""What several corruptions are made of: separable filters as matrices, zooming, lines of motion."""

from __future__ import annotations

import math
from functools import cache
from itertools import groupby
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Border = Literal["nearest", "reflect"]


ALMOST = 2.0**-12
"""Added to grey levels before they are cut to whole numbers: what rounding put just below a whole number is that
number.
"""


def whole_levels(x: Tensor) -> Tensor:
    """Grey levels in 0..255 cut to whole numbers, in place."""
    return x.add_(ALMOST).floor_()


def along_both(x: Tensor, matrix: Tensor) -> Tensor:
    """matrix @ x @ matrix.T for each (S, S) plane: the same linear filter along columns and along rows.

    A filter of one axis, with whatever it does at the border, is a matrix; for planes of this size multiplying by it is
    faster than a convolution. x: (B, C, S, S) float32. matrix: (T, S). Returns (B, C, T, T).
    """
    matrix = matrix.to(x.device)
    return torch.matmul(matrix, x @ matrix.T)


def side_by_side(x: Tensor) -> Tensor:
    """All planes of x (B, C, H, W) as the channels of one image, (1, B * C, H, W) float32 that lie beside each other.

    What treats every plane alike then runs along them, several times as fast as plane by plane.
    """
    return x.flatten(0, 1)[None].to(torch.float32, memory_format=torch.channels_last)


def correlate(planes: Tensor, kernel: Tensor) -> Tensor:
    """Every plane of `side_by_side` under a (K, K) kernel with K odd, mirrored at the centre of its border pixels."""
    planes = F.pad(planes, [len(kernel) // 2] * 4, mode="reflect").contiguous(memory_format=torch.channels_last)
    count = planes.shape[1]
    return F.conv2d(planes, kernel.to(planes.device).expand(count, 1, -1, -1).contiguous(), groups=count)


def gaussian_blur(x: Tensor, sigma: float, *, border: Border = "nearest", truncate: float = 4.0) -> Tensor:
    """A Gaussian filter of x (B, C, S, S), cut off `truncate` sigmas from its centre and scaled to sum 1.

    border: "nearest" repeats the last pixel, "reflect" mirrors at its outer edge. sigma 0 changes nothing.
    """
    return along_both(x, _gaussian_matrix(x.shape[-1], sigma, border, truncate)) if sigma > 0 else x


@cache
def _gaussian_matrix(size: int, sigma: float, border: Border, truncate: float) -> Tensor:
    radius = int(truncate * sigma + 0.5)
    taps = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (taps / sigma).double() ** 2)
    at = torch.arange(size)[:, None] + taps
    if border == "nearest":
        at = at.clamp(0, size - 1)
    else:
        at = at % (2 * size)
        at = torch.minimum(at, 2 * size - 1 - at)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, at, (weights / weights.sum()).expand(size, -1)).float()


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of x (B, C, S, S), enlarged by `factor` >= 1 and cut to S x S.

    The middle ceil(S / factor) pixels are stretched linearly, corners on corners, to round(factor) times as many.
    """
    size = x.shape[-1]
    part = math.ceil(size / factor)
    top = (size - part) // 2
    stretched = round(part * factor)
    x = x[..., top : top + part, top : top + part]
    if stretched != part:
        x = F.interpolate(x, (stretched, stretched), mode="bilinear", align_corners=True)
    trim = (stretched - size) // 2
    return x[..., trim : trim + size, trim : trim + size]


def motion_blur(x: Tensor, angle: Tensor, radius: float, sigma: float) -> Tensor:
    """Each image smeared along a line from each pixel onwards, as by ImageMagick's -motion-blur.

    x: (B, C, S, S) uint8 or float32 in 0..255. angle: (B,) in degrees. radius: the line has 2 * ceil(radius) + 1
    pixels, weighed by half a Gaussian of width sigma; beyond the border its last pixel is repeated. Returns whole
    numbers in 0..255 as float32.

    In the order of their angles, neighbouring images have most points of their lines in common, so they are moved
    together.
    """
    angle, order = angle.sort()
    taps = torch.arange(2 * math.ceil(radius) + 1, device=x.device)
    weights = torch.exp(-0.5 * (taps / sigma).double() ** 2)
    radians = angle.double() * (math.pi / 180)
    # The pixel nearest to each point of the line; halves go towards the start.
    line = torch.stack((torch.sin(radians), torch.cos(radians)), 1) * taps[:, None, None]
    points = line.sub_(0.5).ceil_().long()  # (T, B, 2)
    reach, size = len(taps) - 1, x.shape[-1]
    padded = F.pad(x.index_select(0, order).float(), [reach] * 4, mode="replicate")
    total = torch.zeros(x.shape, device=x.device)
    for at, weight in zip((points + reach).tolist(), (weights / weights.sum()).tolist(), strict=True):
        first = 0
        for (down, right), same in groupby(at):
            length = len(list(same))
            moved = padded[first : first + length, :, down : down + size, right : right + size]
            total[first : first + length].add_(moved, alpha=weight)
            first += length
    return whole_levels(torch.empty_like(total).index_copy_(0, order, total))
