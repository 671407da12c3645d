"""Sets of labelled images, as every other part sees them: pixels in [0, 1] and the numbers of their classes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from advsphere.data.crops import ResizedCrops
from advsphere.errors import UserError
from advsphere.rng import permutation

MEMORY_LIMIT = 4 * 2**30
"""Bytes of decoded pixels up to which a set is kept in memory."""

T = TypeVar("T")


class Images(ABC):
    """A set of labelled images, in memory (`ImageSet`) or decoded when asked for (`EncodedImages`).

    labels: (N,) int64 in 0..K-1, on the device that batches are to be on. classes: the K names.
    name: what reports call the set.
    """

    labels: Tensor
    classes: tuple[str, ...]
    name: str

    decodes: ClassVar[bool] = False
    """Whether `stored` decodes images, so that other processes should do it ahead of training."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the stored pixels."""
        return torch.uint8

    @abstractmethod
    def stored(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B,C,H,W) as they are kept, uint8 or floating point, and labels (B,): where augmentation starts."""

    def cropped(self, index: Tensor, crops: ResizedCrops) -> tuple[Tensor, Tensor]:
        """As `stored`, but of each image the part that `crops` names, brought to the same shape."""
        pixels, y = self.stored(index)
        return crops(pixels), y

    @abstractmethod
    def take(self, index: Tensor) -> Self:
        """The set of these examples alone; index: (n,) int64."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The same set, with its batches on another device."""

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B,C,H,W) float32 in [0,1] and labels (B,); index: (B,) int64."""
        pixels, y = self.stored(index)
        return as_float(pixels), y

    def in_memory(self) -> ImageSet:
        """All the images decoded, with a progress bar on a terminal."""
        pixels = torch.empty((len(self), *self.shape), dtype=self.dtype)
        for index in with_progress(torch.arange(len(self)).split(512), f"reading {self.name}"):
            pixels[index] = self.stored(index)[0].cpu()
        return ImageSet(pixels.to(self.labels.device), self.labels, self.classes, self.name)

    def first(self, n: int) -> Self:
        """The first n examples, or all where there are fewer."""
        return self.take(torch.arange(min(n, len(self))))

    def few(self, n: int) -> Self:
        """n examples to stand for all, or all where there are fewer: the first ones or, where they lie class by class
        as in folders, n at equal distances, so that no class is left out.
        """
        n, sorted_by_class = min(n, len(self)), bool((self.labels.diff() >= 0).all())
        return self.take(torch.arange(n) * len(self) // n) if sorted_by_class else self.first(n)

    def split(self, validation: int, *, seed: int) -> tuple[Self, Self]:
        """(train, validation): disjoint, `validation` examples in the second, both in the original order.

        Which are held out is a function of (N, seed) alone. Raises UserError where one of the two would be empty.
        """
        if not 0 < validation < len(self):
            raise UserError(
                f"cannot hold out {validation} of the {len(self)} images of {self.name}: ask for 1 to {len(self) - 1}"
            )
        order = permutation(len(self), seed=seed, epoch=0, purpose="validation")
        return self.take(order[validation:].sort().values), self.take(order[:validation].sort().values)


@dataclass(frozen=True, eq=False)
class ImageSet(Images):
    """Images in memory, on any device.

    pixels: (N,C,H,W), uint8 or floating point in [0,1]. labels: (N,) int64 in 0..K-1. classes: the K names.
    Raises UserError, with the cure, for anything else: a shape, a type, a label without a class, pixels outside [0,1].
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str = "images"

    def __post_init__(self) -> None:
        check_pixels(self.pixels, self.name)
        check_labels(self.labels, len(self.classes), self.name)
        if len(self.pixels) != len(self.labels):
            raise UserError(
                f"{self.name}: {len(self.pixels)} images but {len(self.labels)} labels: each image needs one label"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        return self.pixels.dtype

    def stored(self, index: Tensor) -> tuple[Tensor, Tensor]:
        index = index.to(self.pixels.device)
        # index_select copies whole images; advanced indexing takes twenty times as long on a CPU.
        return self.pixels.index_select(0, index), self.labels.index_select(0, index)

    def take(self, index: Tensor) -> Self:
        pixels, labels = self.stored(index)
        return replace(self, pixels=pixels, labels=labels)

    def to(self, device: torch.device | str) -> Self:
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Images to train on, images to report on, and what the user should be told about them (a line, or nothing)."""

    train: Images
    test: Images
    note: str = ""


def as_float(pixels: Tensor) -> Tensor:
    """Pixels as float32 in [0,1]: uint8 is divided by 255, floating point keeps its values."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float()


def in_memory_if_small(images: Images) -> Images:
    """The images decoded into memory if that takes at most `MEMORY_LIMIT` bytes, otherwise as they are."""
    small = len(images) * math.prod(images.shape) * images.dtype.itemsize <= MEMORY_LIMIT
    return images.in_memory() if small else images


def with_progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """The items, with a progress bar if stderr is a terminal."""
    console = Console(stderr=True)
    return track(items, description, total=total, console=console, transient=True, disable=not console.is_terminal)


def check_labels(labels: Tensor, num_classes: int, name: str) -> None:
    """Raises UserError unless labels are (N,) int64 in 0..num_classes-1 with N > 0."""
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise UserError(
            f"{name}: labels must be one int64 class number for each image, (N,); "
            f"found {tuple(labels.shape)} of {labels.dtype}: use labels.long(), and argmax(1) for one-hot rows"
        )
    if not len(labels):
        raise UserError(f"{name}: there are no images")
    outside = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(outside):
        at = int(outside[0])
        raise UserError(
            f"{name}: label {int(labels[at])} of image {at} is outside 0..{num_classes - 1} "
            f"({len(outside)} such labels): number the {num_classes} classes from 0, or name all the classes"
        )


def check_pixels(pixels: Tensor, name: str) -> None:
    if pixels.ndim != 4 or pixels.numel() == 0:
        raise UserError(f"{name}: images must be (N, channels, height, width); found {tuple(pixels.shape)}")
    if pixels.dtype == torch.uint8:
        return
    if not pixels.is_floating_point():
        raise UserError(f"{name}: pixels must be uint8 or floating point; found {pixels.dtype}: use .to(torch.uint8)")
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low >= 0 and high <= 1:
        return
    if not (low == low and high == high):
        cure = "remove the images with NaN"
    elif low >= 0 and high <= 255:
        cure = "divide by 255, or give them as uint8"
    else:
        cure = "give them as they are before normalisation, and put the normalisation inside the model"
    raise UserError(f"{name}: images must be pixels in [0,1]; found min {low:.4g} and max {high:.4g}: {cure}")
