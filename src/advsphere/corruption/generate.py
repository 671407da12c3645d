"""Generate corrupted images: 19 corruptions at 5 severities, in batches, with separate noise for each image."""

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
"""Number of pixel values to corrupt together: on a CPU, as many per thread as fit into a core's cache."""
_LIGHT = {"impulse_noise", "motion_blur", "snow", "frost", "fog", "elastic_transform", "spatter"}
"""These mostly work on at most one plane per image, so four times as many images fit."""


@torch.no_grad()
def corrupt(
    images: Tensor, name: str, severity: int, *, rng: Rng | None = None, frost_folder: Path | str | None = None
) -> Tensor:
    """Apply one common corruption to a batch of images.

    Follows Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261) and their code; docs/fidelity.md lists what differs.

    Args:
        images: (B, 3, S, S) uint8 with S >= 24. The published table of the nearest side (32, 64 or 224) is used.
        name: One of CORRUPTIONS or EXTRA.
        severity: 1 (mild) to 5 (strong).
        rng: The random numbers, by default of seed 0 with the positions in the batch as example ids. Severities have
            independent numbers.
        frost_folder: A folder with the published frost textures. Without it, procedural textures are used.

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
    size = 16 * max(1, each // math.prod(images.shape[1:]) // 16)  # `side_by_side` then fills whole vectors
    done = torch.empty_like(images)
    if not len(images):
        return done
    for part, into, ids in zip(images.split(size), done.split(size), rng.ids.split(size), strict=True):
        result = function(part, replace(rng, ids=ids), *parameters)
        # Truncate instead of rounding, as published. Converting through int32 is faster than from floats to bytes.
        into.copy_(result if result.dtype == torch.uint8 else result.clamp_(0, 255).add_(blur.ALMOST).int())
    return done


def check_images(images: Tensor) -> None:
    """Raise UserError unless images are (B, 3, S, S) uint8 with S at least 24."""
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
    """The corrupted versions of a set of images, generated or read on demand.

    Attributes:
        names: The corruptions, each available at severities 1 to 5.
        source: The source of the corrupted images, as JSON-able values for records.
        load: (name, severity) -> the images.
    """

    names: tuple[str, ...]
    source: Mapping[str, Any]
    load: Callable[[str, int], Images]


@dataclass(frozen=True, eq=False)
class LazyImages(Images):
    """Images that `read` makes on demand: positions -> (B, C, H, W) uint8. `rows` (N,) are the positions of these."""

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


def generated(
    images: Images, *, extra: bool = False, seed: int = 0, frost_folder: Path | str | None = None
) -> Corrupted:
    """All corruptions of a set of images, generated batch by batch on demand.

    Args:
        images: Square, three channels, uint8, at least 24 pixels a side.
        extra: Include the four corruptions of EXTRA.
        seed: Seed of the random numbers, which are addressed by the images' positions in the set.
        frost_folder: A folder with the published frost textures.

    Returns:
        The corrupted sets.

    Raises:
        UserError: If images have another shape or type, or if textures are missing.
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
