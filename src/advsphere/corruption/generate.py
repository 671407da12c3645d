"""Generate corrupted images: 19 corruptions at 5 severities, whole batches at once, each image with its own noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from advsphere.corruption import blur, digital, noise, weather
from advsphere.corruption.severity import CORRUPTIONS, EXTRA, TABLES, strength, table_for
from advsphere.data.crops import ResizedCrops
from advsphere.data.images import Images
from advsphere.errors import UserError
from advsphere.rng import Rng

_FUNCTIONS: tuple[Callable[..., Tensor], ...] = (
    *(noise.gaussian_noise, noise.shot_noise, noise.impulse_noise, noise.speckle_noise),
    *(blur.defocus_blur, blur.glass_blur, blur.motion_blur, blur.zoom_blur, blur.gaussian_blur),
    *(weather.snow, weather.frost, weather.fog, weather.brightness, weather.spatter),
    *(digital.contrast, digital.elastic_transform, digital.pixelate, digital.jpeg_compression, digital.saturate),
)
BY_NAME = {function.__name__: function for function in _FUNCTIONS}

_SMALLEST = 24
_AT_ONCE = {"cpu": 2**18, "cuda": 2**26}
"""Pixel values that are corrupted together: on a CPU, what fits a core's cache, for each thread."""
_LIGHT = {"impulse_noise", "motion_blur", "snow", "frost", "fog", "elastic_transform", "spatter"}
"""These do most of their work in at most one plane for an image, so four times as many fit."""


@torch.no_grad()
def corrupt(
    images: Tensor, name: str, severity: int, *, rng: Rng | None = None, frost_folder: Path | None = None
) -> Tensor:
    """Apply one common corruption to a batch of images.

    Follows Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261) and their code; docs/fidelity.md lists what differs.

    Args:
        images: (B, 3, S, S) uint8 with S >= 24. The published table of the nearest side (32, 64 or 224) is used.
        name: One of CORRUPTIONS or EXTRA.
        severity: 1 (mild) to 5 (strong).
        rng: The source of randomness, by default seed 0 with the positions in the batch as example ids. Each severity
            has its own draws.
        frost_folder: A folder with the published frost textures. Without it, procedural textures take their place.

    Returns:
        The corrupted images, uint8 of the same shape.

    Raises:
        UserError: For an unknown name or severity, and for images of another shape or type.
    """
    check_images(images)
    parameters = strength(name, severity, images.shape[-1])
    rng = (rng or Rng.of(images)).at(step=severity)
    function = partial(BY_NAME[name], folder=frost_folder) if name == "frost" else BY_NAME[name]
    each = _AT_ONCE.get(images.device.type, 2**26) * (torch.get_num_threads() if images.device.type == "cpu" else 1)
    each *= 4 if name in _LIGHT else 1
    size = 16 * max(1, each // math.prod(images.shape[1:]) // 16)  # whole vectors of planes side by side
    done = torch.empty_like(images)
    if not len(images):
        return done
    for part, into, ids in zip(images.split(size), done.split(size), rng.ids.split(size), strict=True):
        result = function(part, replace(rng, ids=ids), *parameters)
        # Cut off and not rounded, as published; through int32, which is faster than from floats to bytes.
        into.copy_(result if result.dtype == torch.uint8 else result.clamp_(0, 255).add_(blur.ALMOST).int())
    return done


def check_images(images: Tensor) -> None:
    """Raise UserError unless these can be corrupted: (B, 3, S, S) uint8, S at least 24."""
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise UserError(f"corruptions are for square colour images, (B, 3, S, S); found {tuple(images.shape)}")
    if images.dtype != torch.uint8:
        raise UserError(
            f"corruptions are for uint8 images, 0 to 255; found {images.dtype}: use (255 * x).round().to(torch.uint8)"
        )
    if images.shape[-1] < _SMALLEST:
        raise UserError(f"corruptions need images of at least {_SMALLEST} pixels a side; these have {images.shape[-1]}")


@dataclass(frozen=True)
class Corrupted:
    """The corrupted versions of a set of images, made or read when they are asked for.

    Attributes:
        names: The corruptions, each available at severities 1 to 5.
        source: Where the corrupted images come from, as JSON-able values for records.
        load: (name, severity) -> the images.
    """

    names: tuple[str, ...]
    source: Mapping[str, Any]
    load: Callable[[str, int], Images]


@dataclass(frozen=True, eq=False)
class LazyImages(Images):
    """Images that are made or read when they are asked for: `read` maps positions (B,) to (B, C, H, W) uint8 pixels.

    `rows` is (N,) int64, the positions of these examples in the whole set.
    """

    read: Callable[[Tensor], Tensor]
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    size: tuple[int, int, int]
    rows: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.size

    def stored(self, index: Tensor, crops: ResizedCrops | None = None) -> tuple[Tensor, Tensor]:
        device = self.labels.device
        pixels = self.read(self.rows[index.cpu()]).to(device)
        return pixels if crops is None else crops(pixels), self.labels[index.to(device)]

    def take(self, index: Tensor) -> Self:
        return replace(self, rows=self.rows[index.cpu()], labels=self.labels[index.to(self.labels.device)])

    def to(self, device: torch.device | str) -> Self:
        return replace(self, labels=self.labels.to(device))


def generated(images: Images, *, extra: bool = False, seed: int = 0, frost_folder: Path | None = None) -> Corrupted:
    """All corruptions of a set of images, generated batch by batch when they are asked for.

    Args:
        images: Square, three channels, uint8, at least 24 pixels a side.
        extra: Include the four corruptions of EXTRA.
        seed: The seed of the draws, which are addressed by the images' positions in the set.
        frost_folder: A folder with the published frost textures.

    Returns:
        The corrupted sets.

    Raises:
        UserError: For images of another shape or type, and for missing textures.
    """
    check_images(images.stored(torch.arange(min(1, len(images))))[0])
    side = images.shape[-1]
    source = {
        "kind": "generated",
        "table": TABLES[table_for(side)],
        "side": side,
        "seed": seed,
        "frost": weather.frost_source(frost_folder),
    }

    def load(name: str, severity: int) -> Images:
        def read(rows: Tensor) -> Tensor:
            pixels, _ = images.stored(rows)
            return corrupt(pixels, name, severity, rng=Rng(seed, rows.to(pixels.device)), frost_folder=frost_folder)

        title, rows = f"{images.name}, {name} {severity}", torch.arange(len(images))
        return LazyImages(read, images.labels, images.classes, title, images.shape, rows)

    return Corrupted((*CORRUPTIONS, *EXTRA) if extra else CORRUPTIONS, source, load)
