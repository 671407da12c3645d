"""Noise: Gaussian, shot, impulse, speckle. Every pixel of every image has draws of its own."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from advsphere.draws import Draws


def gaussian_noise(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    """x + sigma * N(0, 1)."""
    return normal(draws, images.shape[1:], "gaussian_noise").mul_(255 * sigma).add_(images)


def speckle_noise(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    """x + x * sigma * N(0, 1)."""
    return normal(draws, images.shape[1:], "speckle_noise").mul_(sigma).add_(1).mul_(images)


def impulse_noise(images: Tensor, draws: Draws, amount: float) -> Tensor:
    """A share `amount` of the values becomes black or white, half each."""
    u = draws.uniform(images.shape[1:], "impulse_noise")
    return images.masked_fill(u < amount, 255).masked_fill_(u < amount / 2, 0)


def shot_noise(images: Tensor, draws: Draws, photons: float) -> Tensor:
    """Poisson(x * photons) / photons."""
    return poisson(images, draws, photons).mul_(255 / photons)


def normal(draws: Draws, shape: tuple[int, ...] | torch.Size, purpose: str) -> Tensor:
    """(B, *shape) float32, standard normal, by Box and Muller (1958): several times as fast as `Draws.normal`."""
    size = math.prod(shape)
    u = draws.uniform((2, (size + 1) // 2), purpose)
    radius, angle = u[:, 0].log_().mul_(-2).sqrt_(), u[:, 1].mul_(2 * math.pi)
    other = angle.sin().mul_(radius)
    radius.mul_(angle.cos_())
    angle.copy_(other)
    return u.flatten(1)[:, :size].reshape(len(u), *shape)


def poisson(images: Tensor, draws: Draws, photons: float) -> Tensor:
    """Poisson counts of mean p * photons / 255 for values p in 0..255, (B, C, H, W) float32.

    By inversion, exact up to the 23 bits of a uniform draw. There are only 256 means, so their distribution functions
    are tables; two more tell, for each of 1024 equal parts of [0, 1], the least count of such draws, and up to where.
    """
    cdf, least, until = (table.to(images.device) for table in _poisson_tables(photons))
    u = draws.uniform(images.shape[1:], "shot_noise").flatten()
    part = images.flatten().int().mul_(least.shape[1]).add_((u * least.shape[1]).int()).long()
    count = least.take(part)
    left = (u > until.take(part)).nonzero().squeeze(1)
    row = images.flatten()[left].int() * cdf.shape[1]
    u = u[left]
    while len(left):  # few, most of them in the tails
        count[left] += 1
        more = (u > cdf.take((row + count[left]).long())).nonzero().squeeze(1)
        left, row, u = left[more], row[more], u[more]
    return count.view(images.shape).float()


@cache
def _poisson_tables(photons: float) -> tuple[Tensor, Tensor, Tensor]:
    """cdf: (256, K) float32. least: (256, 1024) int32. until: (256, 1024) float32, cdf at `least`."""
    mean = torch.arange(256, dtype=torch.float64)[:, None] * photons / 255
    k = torch.arange(int(photons + 7 * math.sqrt(photons) + 12), dtype=torch.float64)
    p = (torch.xlogy(k, mean) - mean - torch.lgamma(k + 1)).exp()
    beyond = p.flip(1).cumsum(1).flip(1) - p
    # What has a chance below the draws' 2^-24 is never drawn.
    cdf = torch.where(beyond < 2.0**-25, 1.0, 1 - beyond).float()
    lowest = (torch.arange(1024) / 1024).clamp_(min=2.0**-25)  # of the draws of each part
    least = torch.searchsorted(cdf, lowest.expand(256, -1).contiguous())
    return cdf, least.int(), cdf.gather(1, least)
