"""Corrupt images: 19 corruptions at 5 severities, whole batches at once, each image with draws of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from advsphere.corruption import blur, digital, noise, weather
from advsphere.corruption.filters import ALMOST
from advsphere.corruption.frost import frost
from advsphere.corruption.severity import strength
from advsphere.corruption.spatter import spatter
from advsphere.errors import UserError
from advsphere.rng import Rng

_HOW: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "spatter": spatter,
    "saturate": digital.saturate,
}

_SMALLEST = 24
_AT_ONCE = {"cpu": 2**18, "cuda": 2**26}
"""Pixel values that are corrupted together: on a CPU, what a core's cache can hold, for each thread."""
_LIGHT = {"impulse_noise", "motion_blur", "snow", "frost", "fog", "elastic_transform", "spatter"}
"""These do most of their work in one plane for an image or less, so that four times as many fit."""


@torch.no_grad()
def corrupt(
    images: Tensor, name: str, severity: int, *, rng: Rng | None = None, frost_folder: Path | None = None
) -> Tensor:
    """The images under one corruption, as uint8 of the same shape.

    images: (B, 3, S, S) uint8 with S of at least 24; the published table of the nearest of the sides 32, 64 and 224 is
    used. name: one of CORRUPTIONS or EXTRA. severity: 1 to 5. rng: what the images' randomness is addressed by, by
    default seed 0 and their places in the batch; each severity has draws of its own. frost_folder: with the published
    frost textures; without it, procedural ones take their place.

    Follows Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261) and their code; what differs is in docs/fidelity.md.
    Raises UserError for an unknown name or severity, and for images of another shape or type.
    """
    check_images(images)
    parameters = strength(name, severity, images.shape[-1])
    rng = (rng or Rng.of(images)).at(step=severity)
    how = partial(_HOW[name], folder=frost_folder) if name == "frost" else _HOW[name]
    each = _AT_ONCE.get(images.device.type, 2**26) * (torch.get_num_threads() if images.device.type == "cpu" else 1)
    each *= 4 if name in _LIGHT else 1
    size = 16 * max(1, each // math.prod(images.shape[1:]) // 16)  # whole vectors of planes side by side
    done = torch.empty_like(images)
    if not len(images):
        return done
    for part, into, ids in zip(images.split(size), done.split(size), rng.ids.split(size), strict=True):
        result = how(part, replace(rng, ids=ids), *parameters)
        # Cut off, not rounded, as published; by way of int32, which is quicker than from floats to bytes.
        into.copy_(result if result.dtype == torch.uint8 else result.clamp_(0, 255).add_(ALMOST).int())
    return done


def check_images(images: Tensor) -> None:
    """Raises UserError unless they can be corrupted: (B, 3, S, S) uint8, S at least 24."""
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise UserError(f"corruptions are for square colour images, (B, 3, S, S); found {tuple(images.shape)}")
    if images.dtype != torch.uint8:
        raise UserError(
            f"corruptions are for uint8 images, 0 to 255; found {images.dtype}: use (255 * x).round().to(torch.uint8)"
        )
    if images.shape[-1] < _SMALLEST:
        raise UserError(
            f"corruptions are for images of at least {_SMALLEST} pixels; these have {images.shape[-1]}: "
            "nothing would be left to see"
        )
