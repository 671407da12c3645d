"""Weather: snow, frost, fog, brightness."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advsphere.corruption import filters
from advsphere.corruption.noise import normal, symmetric
from advsphere.rng import Rng

_GREY = (0.299, 0.587, 0.114)


def snow(
    images: Tensor,
    rng: Rng,
    mean: float,
    sigma: float,
    zoom: float,
    threshold: float,
    radius: float,
    width: float,
    keep: float,
) -> Tensor:
    """A whitened image and, on it, flakes: enlarged noise above a threshold, smeared, together with its half turn.

    mean, sigma: of the noise. radius, width: of the motion blur, at -135 to -45 degrees. keep: share of the image that
    is not whitened.
    """
    flakes = filters.zoomed(normal(rng, (1, *images.shape[2:]), "snow").mul_(sigma).add_(mean), zoom)
    flakes = F.threshold(flakes, threshold, 0).clamp_(0, 1).mul_(255).floor_()
    angle = rng.uniform((), "snow angle").mul(90).sub(135)
    flakes = filters.motion_blur(flakes, angle, radius, width)
    x = images.float()
    grey = (x * torch.tensor(_GREY, device=x.device)[:, None, None]).sum(1, keepdim=True)
    return x.mul(keep).add_(torch.maximum(x, grey.mul_(1.5).add_(127.5)), alpha=1 - keep) + (flakes + flakes.flip(2, 3))


def fog(images: Tensor, rng: Rng, thickness: float, decay: float) -> Tensor:
    """A plasma fractal added to the image, which is darkened so that its brightest value stays what it was."""
    x = images.float()
    side, layer = images.shape[-1], 255 * thickness
    brightest = x.amax((1, 2, 3), keepdim=True)
    x += plasma(rng, side, decay)[:, None, :side, :side].mul_(layer)
    return x.mul_(brightest / (brightest + layer))


def brightness(images: Tensor, rng: Rng, more: float) -> Tensor:
    """V of HSV raised: hue and saturation stay, so every channel grows by the same factor, and black becomes grey."""
    x = images.float()
    v = x.amax(1, keepdim=True)
    x += (v < 1).float()  # black as grey of level 1, which is divided by below
    return x.mul_((v + 255 * more).clamp_(max=255).div_(v.clamp_(min=1)))


def plasma(rng: Rng, side: int, decay: float) -> Tensor:
    """(B, M, M) float32 with values from 0 to 1, M the power of two from `side` on: midpoint displacement on a torus.

    Each round halves the grid: centres of squares, then of diamonds, get the mean of their four neighbours plus a
    uniform draw of amplitude w^2, where w is 100 at first and divided by `decay` in each round.
    """
    m = 1 << (side - 1).bit_length()
    noise = symmetric(rng, (m, m), "fog")
    field = torch.zeros_like(noise)
    step, wobble = m, 100.0
    while step >= 2:
        half, amplitude = step // 2, wobble * wobble
        corners, between = slice(0, m, step), slice(half, m, step)
        at = field[:, corners, corners]
        pairs = at + at.roll(-1, 1)
        centres = (pairs + pairs.roll(-1, 2)).div_(4).add_(noise[:, between, between], alpha=amplitude)
        field[:, between, between] = centres
        above = at + at.roll(-1, 2) + centres + centres.roll(1, 1)
        field[:, corners, between] = above.div_(4).add_(noise[:, corners, between], alpha=amplitude)
        beside = at + at.roll(-1, 1) + centres + centres.roll(1, 2)
        field[:, between, corners] = beside.div_(4).add_(noise[:, between, corners], alpha=amplitude)
        step, wobble = half, wobble / decay
    field -= field.amin((1, 2), keepdim=True)
    return field.div_(field.amax((1, 2), keepdim=True))
