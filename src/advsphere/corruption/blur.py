"""Blur (defocus, glass, motion, zoom, Gaussian), and filters that other corruptions also use."""

from __future__ import annotations

import math
from functools import cache
from itertools import groupby
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advsphere.rng import Rng

Border = Literal["nearest", "reflect"]

ALMOST = 2.0**-12
"""Added to grey levels before truncation, so that rounding errors do not reduce a whole number by one."""


def gaussian_blur(images: Tensor, rng: Rng, sigma: float) -> Tensor:
    """Apply a Gaussian filter that repeats the last pixel beyond the border."""
    return gaussian_filter(images.float(), sigma)


def defocus_blur(images: Tensor, rng: Rng, radius: float, softness: float) -> Tensor:
    """Filter with a disk whose edge is softened by a Gaussian. The image is mirrored at the border."""
    return correlate(side_by_side(images), _disk(radius, softness)).reshape(images.shape)


def motion_blur(images: Tensor, rng: Rng, radius: float, sigma: float) -> Tensor:
    """Smear the image along a line at a random angle from -45 to 45 degrees."""
    return motion_filter(images, rng.uniform((), "motion_blur").mul(90).sub(45), radius, sigma)


def zoom_blur(images: Tensor, rng: Rng, stop: float, step: float) -> Tensor:
    """The mean of the image and of its enlargements by 1, 1 + step, ... below stop."""
    x = side_by_side(images)
    factors = np.arange(1, stop, step).tolist()  # as published; rounding decides whether `stop` is included
    total = x.clone()
    for factor in factors:
        total += zoomed(x, factor)
    return total.div_(len(factors) + 1).reshape(images.shape)


def glass_blur(images: Tensor, rng: Rng, sigma: float, reach: float, passes: float) -> Tensor:
    """Blur; replace each pixel in turn by one at most `reach` away, `passes` times; blur again.

    From the last row and column to the first, pixel (h, w) takes the current value at (h + dy, w + dx) with dy and dx
    in -reach..reach-1. The published code is meant to swap the two but copies, because of an alias. The published
    images were made with it, so it is reproduced here. Copying allows a parallel form: a pixel takes another pixel's
    new value if that one was replaced before, else its old value. Doubling follows these arrows to their ends in a few
    rounds.
    """
    d, side = int(reach), images.shape[-1]
    x = whole_levels(gaussian_filter(images.float(), sigma)).flatten(2)
    for number in range(int(passes)):
        x = x.gather(2, _sources(rng.at(restart=number), side, d)[:, None].expand_as(x))
    return gaussian_filter(x.view(images.shape), sigma)


def _sources(rng: Rng, side: int, d: int) -> Tensor:
    """(B, side^2) int64: the pixel whose old value each pixel has after one pass."""
    pixels, batch = side * side, len(rng.ids)
    dy, dx = rng.integers((2, pixels), "glass_blur").mul_(2 * d).bitwise_right_shift_(16).sub_(d).long().unbind(1)
    here = torch.arange(pixels, device=dx.device)
    row, column = here // side, here % side
    moved = (row > d) & (row <= side - d) & (column > d) & (column <= side - d)
    there = torch.where(moved, here + dy * side + dx, here)
    # Indices 0..pixels-1 are new values. Indices from `pixels` on are old values, at which the arrows end.
    arrow = torch.where((there > here) & moved[there], there, there + pixels)
    ends = (here + pixels).expand(batch, -1)
    while bool((arrow < pixels).any()):
        arrow = torch.cat((arrow, ends), 1).gather(1, arrow)
    return arrow - pixels


@cache
def _disk(radius: float, softness: float) -> Tensor:
    """(K, K) float32: a disk of sum 1, filtered by a 3x3 (radius above 8: 5x5) Gaussian, without outer rows of zeros.

    The published kernel is 17x17 up to radius 8 and mirrored at its own border, so a disk that reaches the border does
    not sum to 1 afterwards.
    """
    reach, soft = (8, 1) if radius <= 8 else (int(radius), 2)
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).double()
    taps = torch.arange(-soft, soft + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (taps / softness) ** 2)
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    padded = F.pad((disk / disk.sum())[None, None], [soft] * 4, mode="reflect")
    disk = F.conv2d(padded, kernel[None, None])[0, 0]
    used = int(at[(disk > 1e-9).any(1)].max())
    middle = slice(reach - used, reach + used + 1)
    return disk[middle, middle].float()


def whole_levels(x: Tensor) -> Tensor:
    """Truncate grey levels in 0..255 to whole numbers, in place."""
    return x.add_(ALMOST).floor_()


def side_by_side(x: Tensor) -> Tensor:
    """Arrange planes (B, C, H, W) as one (1, B * C, H, W) float32 image, which is much faster to filter."""
    return x.flatten(0, 1)[None].to(torch.float32, memory_format=torch.channels_last)


def correlate(planes: Tensor, kernel: Tensor) -> Tensor:
    """Filter every plane of `side_by_side` with a (K, K) kernel, K odd, mirrored at the centre of its border pixels."""
    planes = F.pad(planes, [len(kernel) // 2] * 4, mode="reflect").contiguous(memory_format=torch.channels_last)
    count = planes.shape[1]
    return F.conv2d(planes, kernel.to(planes.device).expand(count, 1, -1, -1).contiguous(), groups=count)


def gaussian_filter(x: Tensor, sigma: float, *, border: Border = "nearest", truncate: float = 4.0) -> Tensor:
    """Apply a Gaussian filter to x (B, C, S, S), cut off `truncate` sigmas from its centre and scaled to sum 1.

    The border "nearest" repeats the last pixel, "reflect" mirrors at its outer edge. A sigma of 0 changes nothing.
    Along one axis the filter is a matrix. For planes of this size a matrix product is faster than a convolution.
    """
    if sigma <= 0:
        return x
    matrix = _gaussian_matrix(x.shape[-1], sigma, border, truncate).to(x.device)
    return torch.matmul(matrix, x @ matrix.T)


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
    """Enlarge the middle of x (B, C, S, S) by `factor` >= 1 and crop it to S x S.

    The middle ceil(S / factor) pixels are resized linearly, with aligned corners, to round(factor) times as many.
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


def motion_filter(x: Tensor, angle: Tensor, radius: float, sigma: float) -> Tensor:
    """Smear each image along a line that starts at each pixel, as ImageMagick's -motion-blur does.

    x is (B, C, S, S) uint8 or float32 in 0..255, angle is (B,) in degrees. The line has 2 * ceil(radius) + 1 pixels,
    weighted by half a Gaussian of width sigma; beyond the border its last pixel is repeated. Returns whole numbers in
    0..255 as float32. Images are sorted by angle, so that neighbours share most points of their lines and are shifted
    together.
    """
    angle, order = angle.sort()
    taps = torch.arange(2 * math.ceil(radius) + 1, device=x.device)
    weights = torch.exp(-0.5 * (taps / sigma).double() ** 2)
    radians = angle.double() * (math.pi / 180)
    # The pixel nearest to each point of the line; halves are rounded towards the start.
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
