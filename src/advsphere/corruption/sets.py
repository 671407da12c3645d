"""Sets of corrupted images, one for each corruption and severity: generated when asked for, or read as published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from advsphere.corruption import frost
from advsphere.corruption.generate import check_images, corrupt
from advsphere.corruption.severity import CORRUPTIONS, EXTRA, TABLES, table_for
from advsphere.data.images import Images
from advsphere.rng import Rng


@dataclass(frozen=True)
class Corrupted:
    """What a model's accuracy under corruption is measured on.

    names: the corruptions that are there, all at severities 1 to 5. source: where their images come from, JSON-able,
    for records. load: (name, severity) -> the images; nothing is generated or read before.
    """

    names: tuple[str, ...]
    source: Mapping[str, Any]
    load: Callable[[str, int], Images]


@dataclass(frozen=True, eq=False)
class GeneratedImages(Images):
    """A set whose images are corrupted each time that they are asked for; always in the same way.

    images: the clean ones, uint8. ids: (N,) int64, what the draws are addressed by.
    """

    images: Images
    corruption: str
    severity: int
    ids: Tensor
    seed: int = 0
    frost_folder: Path | None = None

    @property
    def labels(self) -> Tensor:  # type: ignore[override]
        return self.images.labels

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.images.classes

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.images.name}, {self.corruption} {self.severity}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.images.shape

    def stored(self, index: Tensor) -> tuple[Tensor, Tensor]:
        pixels, y = self.images.stored(index)
        rng = Rng(self.seed, self.ids[index.to(self.ids.device)].to(pixels.device))
        return corrupt(pixels, self.corruption, self.severity, rng=rng, frost_folder=self.frost_folder), y

    def take(self, index: Tensor) -> Self:
        return replace(self, images=self.images.take(index), ids=self.ids[index.to(self.ids.device)])

    def to(self, device: torch.device | str) -> Self:
        return replace(self, images=self.images.to(device))


def generated(images: Images, *, extra: bool = False, seed: int = 0, frost_folder: Path | None = None) -> Corrupted:
    """All corruptions of these images, generated batch by batch when they are asked for.

    images: square, of three channels, uint8, at least 24 pixels wide. extra: also the four that mCA leaves out. seed:
    of the draws, which are addressed by the images' places in the set. frost_folder: with the published frost textures.
    Raises UserError for other images, and for textures that are missing.
    """
    check_images(images.stored(torch.arange(min(1, len(images))))[0])
    side = images.shape[-1]
    source = {
        "kind": "generated",
        "table": TABLES[table_for(side)],
        "side": side,
        "seed": seed,
        "frost": frost.provenance(frost_folder),
    }
    ids = torch.arange(len(images))

    def load(name: str, severity: int) -> Images:
        return GeneratedImages(images, name, severity, ids, seed, frost_folder)

    return Corrupted((*CORRUPTIONS, *EXTRA) if extra else CORRUPTIONS, source, load)
