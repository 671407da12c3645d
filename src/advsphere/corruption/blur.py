"""Blur: defocus, glass, motion, zoom, Gaussian."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advsphere.corruption import filters
from advsphere.rng import Rng


def gaussian_blur(images: Tensor, rng: Rng, sigma: float) -> Tensor:
    """A Gaussian filter, the last pixel repeated beyond the border."""
    return filters.gaussian_blur(images.float(), sigma)


def defocus_blur(images: Tensor, rng: Rng, radius: float, softness: float) -> Tensor:
    """A filter with a disk whose edge is softened by a Gaussian; the image is mirrored at the border."""
    return filters.correlate(filters.side_by_side(images), _disk(radius, softness)).reshape(images.shape)


def motion_blur(images: Tensor, rng: Rng, radius: float, sigma: float) -> Tensor:
    """Smeared along a line at an angle of -45 to 45 degrees."""
    angle = rng.uniform((), "motion_blur").mul(90).sub(45)
    return filters.motion_blur(images, angle, radius, sigma)


def zoom_blur(images: Tensor, rng: Rng, stop: float, step: float) -> Tensor:
    """The mean of the image and of its enlargements by 1, 1 + step, ... below stop."""
    x = filters.side_by_side(images)
    factors = np.arange(1, stop, step).tolist()  # as published: rounding decides whether `stop` itself is among them
    total = x.clone()
    for factor in factors:
        total += filters.zoomed(x, factor)
    return total.div_(len(factors) + 1).reshape(images.shape)


def glass_blur(images: Tensor, rng: Rng, sigma: float, reach: float, passes: float) -> Tensor:
    """Blurred; each pixel replaced by one at most `reach` away, one after the other, `passes` times; blurred again.

    From the last row and column to the first, pixel (h, w) takes what then is at (h + dy, w + dx) with dy and dx in
    -reach..reach-1. The published code means to swap the two but, by an alias, copies: so is it in the published
    images, and here. Copying is what makes this parallel: a pixel's new value is another's new value, if that came
    before it, else another's old value. Following these arrows to their ends by doubling takes a few rounds for all
    pixels at once.
    """
    d, side = int(reach), images.shape[-1]
    x = filters.whole_levels(filters.gaussian_blur(images.float(), sigma)).flatten(2)
    for number in range(int(passes)):
        x = x.gather(2, _sources(rng.at(restart=number), side, d)[:, None].expand_as(x))
    return filters.gaussian_blur(x.view(images.shape), sigma)


def _sources(rng: Rng, side: int, d: int) -> Tensor:
    """(B, side^2) int64: the pixel whose old value each pixel ends up with after one pass."""
    pixels, batch = side * side, len(rng.ids)
    dy, dx = rng.integers((2, pixels), "glass_blur").mul_(2 * d).bitwise_right_shift_(16).sub_(d).long().unbind(1)
    here = torch.arange(pixels, device=dx.device)
    row, column = here // side, here % side
    moved = (row > d) & (row <= side - d) & (column > d) & (column <= side - d)
    there = torch.where(moved, here + dy * side + dx, here)
    # 0..pixels-1 are new values, pixels.. are old ones, at which the arrows end.
    arrow = torch.where((there > here) & moved[there], there, there + pixels)
    ends = (here + pixels).expand(batch, -1)
    while bool((arrow < pixels).any()):
        arrow = torch.cat((arrow, ends), 1).gather(1, arrow)
    return arrow - pixels


@cache
def _disk(radius: float, softness: float) -> Tensor:
    """(K, K) float32: a disk of sum 1, filtered by a 3x3 (radius above 8: 5x5) Gaussian, without outer rows of zeros.

    The published kernel is 17x17 up to radius 8 and mirrored at its own border, so that a disk that reaches the border
    does not sum to 1 afterwards.
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
