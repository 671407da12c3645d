"""Sets of labelled images: pixels in [0, 1] and class numbers, in memory or decoded whenever a batch needs them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from rich.markup import escape
from torch import Tensor

from advsphere.bars import Bars
from advsphere.data.crops import ResizedCrops
from advsphere.errors import UserError
from advsphere.files import some
from advsphere.losses import is_soft
from advsphere.rng import permutation

MEMORY_LIMIT = 4 * 2**30
"""Sets of up to this many bytes of pixels are kept in memory."""

T = TypeVar("T")


class UnreadableImagesError(UserError):
    """Images that can't be decoded.

    Attributes:
        problems: The name of each image, and the reason.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        """One line with the first few."""
        if len(self.problems) == 1:
            return f"cannot read the image {self.problems[0]}: replace or remove it"
        return f"cannot read {len(self.problems)} images, {some(self.problems)}: replace or remove them"


class Images(ABC):
    """A set of labelled images.

    Attributes:
        labels: (N,) int64 in 0..K-1, or soft labels (N, K) for training: probabilities, in floating point. They are on
            the device on which batches are returned.
        classes: The K names of the classes.
        name: Name of the set in reports.
        decodes: Whether reading a batch decodes images, so that worker processes should do it in advance.
    """

    labels: Tensor
    classes: tuple[str, ...]
    name: str
    decodes: ClassVar[bool] = True

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the stored pixels."""
        return torch.uint8

    @property
    def files(self) -> tuple[str, ...] | None:
        """The file name of each image, below the folder of the set; None if the images have none."""
        return None

    @abstractmethod
    def stored(self, index: Tensor, crops: ResizedCrops | None = None) -> tuple[Tensor, Tensor]:
        """Read a batch in its stored type, before the conversion to floating point.

        Args:
            index: Positions (B,) int64 of the images.
            crops: Read these parts of the images, at their own resolution, and resize them to the shape of the set.

        Returns:
            Pixels (B, C, H, W), uint8 or floating point, and labels (B,).
        """

    @abstractmethod
    def take(self, index: Tensor) -> Self:
        """Select images.

        Args:
            index: Positions (n,) int64 of the images.

        Returns:
            The set of these images.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move the set.

        Args:
            device: The device on which to return batches.

        Returns:
            The same images, with batches on that device.
        """

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return f"<{type(self).__name__} {self.name}: {len(self):,} images {shape}, {len(self.classes):,} classes>"

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Read a batch.

        Args:
            index: Positions (B,) int64 of the images.

        Returns:
            Pixels (B, C, H, W) float32 in [0, 1] and labels (B,).
        """
        pixels, y = self.stored(index)
        return as_float(pixels), y

    def hard(self) -> Self:
        """The same images, each with its most likely class as label if the labels are soft."""
        anything: Any = self  # every set is a dataclass with labels
        found: Self = replace(anything, labels=self.labels.argmax(1)) if is_soft(self.labels) else self
        return found

    def in_memory(self) -> ImageSet:
        """Decode all images, with a progress bar on a terminal."""
        pixels = torch.empty((len(self), *self.shape), dtype=self.dtype)
        problems = list[str]()
        for index in with_progress(torch.arange(len(self)).split(512), f"reading {self.name}"):
            try:
                pixels[index] = self.stored(index)[0].cpu()
            except UnreadableImagesError as error:
                problems += error.problems
        if problems:
            raise UnreadableImagesError(problems)
        return ImageSet(pixels.to(self.labels.device), self.labels, self.classes, self.name, self.files)

    def first(self, n: int) -> Self:
        """Select the first images.

        Args:
            n: Number of images.

        Returns:
            The first n images, or all if there are fewer.
        """
        return self.take(torch.arange(min(n, len(self))))

    def few(self, n: int) -> Self:
        """Select images that represent the set.

        Args:
            n: Number of images.

        Returns:
            The first n images or, if they are sorted by class as in folders, n images at equal distances, so that no
            class is left out. All images if there are fewer than n.

        Raises:
            UserError: If n < 1.
        """
        if n < 1:
            raise UserError(f"{n} images of {self.name} were asked for; give 1 or more")
        n, sorted_by_class = min(n, len(self)), bool((self.hard().labels.diff() >= 0).all())
        return self.take(torch.arange(n) * len(self) // n) if sorted_by_class else self.first(n)

    def split(self, validation: int, *, seed: int) -> tuple[Self, Self]:
        """Hold out images for validation.

        Args:
            validation: Number of images to hold out, from 1 to N - 1.
            seed: Determines the held-out images, together with N.

        Returns:
            The training and the validation images, both in the original order.

        Raises:
            UserError: If one of the two parts would be empty.
        """
        if not 0 < validation < len(self):
            raise UserError(
                f"cannot hold out {validation} of the {len(self)} images of {self.name} for validation; "
                f"hold out 1 to {len(self) - 1} of them (--data.validation)"
            )
        order = permutation(len(self), seed=seed, epoch=0, purpose="validation")
        return self.take(order[validation:].sort().values), self.take(order[:validation].sort().values)


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet(Images):
    """Images in memory, on any device.

    Attributes:
        pixels: (N, C, H, W), uint8 or floating point in [0, 1].
        labels: (N,) int64 in 0..K-1, or soft labels (N, K) for training.
        classes: The K names of the classes.
        name: Name of the set in reports.
        files: The N names of the images' files; None if they have none.

    Raises:
        UserError: If a shape, a type or a value is wrong. The message says how to correct it.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str = "images"
    files: tuple[str, ...] | None = None

    decodes = False

    def __post_init__(self) -> None:
        check_pixels(self.pixels, self.name)
        check_labels(self.labels, len(self.classes), self.name)
        if len(self.pixels) != len(self.labels):
            raise UserError(
                f"{self.name}: {len(self.pixels)} images but {len(self.labels)} labels: each image needs one label"
            )
        if self.files is not None and len(self.files) != len(self.labels):
            raise UserError(f"{self.name}: {len(self.labels)} images but {len(self.files)} file names; give one each")

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        return self.pixels.dtype

    def stored(self, index: Tensor, crops: ResizedCrops | None = None) -> tuple[Tensor, Tensor]:
        index = index.to(self.pixels.device)
        # index_select copies whole images; advanced indexing takes twenty times as long on a CPU.
        pixels, labels = self.pixels.index_select(0, index), self.labels.index_select(0, index)
        return pixels if crops is None else crops(pixels), labels

    def take(self, index: Tensor) -> Self:
        pixels, labels = self.stored(index)
        files = None if self.files is None else tuple(self.files[i] for i in index.tolist())
        return replace(self, pixels=pixels, labels=labels, files=files)

    def to(self, device: torch.device | str) -> Self:
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A training set and a test set.

    Attributes:
        train: The training images.
        test: The test images.
        note: One line for the user, or an empty string.
    """

    train: Images
    test: Images
    note: str = ""


def as_float(pixels: Tensor) -> Tensor:
    """Convert pixels to float32 in [0, 1]: uint8 is divided by 255, floating point keeps its values.

    The result has the same bits on every device. So the divisor is a tensor on the device of the pixels: CUDA would
    multiply by the rounded reciprocal of a number, which changes the last bit of 126 of the 256 levels.
    """
    if pixels.dtype != torch.uint8:
        return pixels.float()
    return pixels.float().div_(torch.full((), 255.0, device=pixels.device))


def tensor_of(values: Any) -> Tensor:
    """A tensor of these values; an array that may not be written is copied, because tensors may be. Raises UserError if
    they are text.
    """
    if isinstance(values, Tensor):
        return values
    values = np.asarray(values)
    if values.dtype.kind not in "biufc":
        raise UserError(f"found {values.dtype}, no numbers: classes, labels = numpy.unique(names, return_inverse=True)")
    return torch.as_tensor(np.require(values, requirements=["C", "W"]))


def in_memory_if_small(images: Images) -> Images:
    """Decode the images into memory if they take at most `MEMORY_LIMIT` bytes; otherwise return them unchanged."""
    small = len(images) * math.prod(images.shape) * images.dtype.itemsize <= MEMORY_LIMIT
    return images.in_memory() if small else images


def with_progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar in a terminal or a notebook."""
    with Bars() as bars:
        total = len(items) if total is None and isinstance(items, Sized) else total
        task = bars.add_task(escape(description), total=total)
        for item in items:
            yield item
            bars.update(task, advance=1)


def check_labels(labels: Tensor, num_classes: int, name: str) -> None:
    """Raise UserError unless labels are (N,) int64 in 0..num_classes-1, or probabilities (N, num_classes)."""
    if is_soft(labels) and len(labels):
        if labels.shape[1] != num_classes:
            raise UserError(f"{name}: soft labels must be (N, {num_classes}); found {tuple(labels.shape)}")
        off = (labels.sum(1) - 1).abs().amax()
        if not (bool(off <= 0.01) and bool((labels >= 0).all())):
            raise UserError(f"{name}: the soft labels of an image must be probabilities: at least 0, with a sum of 1")
        return
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
    """Raise UserError unless pixels are (N, C, H, W) with N > 0, uint8 or floating point in [0, 1]."""
    if not isinstance(pixels, Tensor):
        raise UserError(f"{name}: images must be a tensor; found {type(pixels).__name__}: use data.from_dataset")
    if pixels.ndim == 4 and not len(pixels):
        raise UserError(f"{name}: there are no images")
    if pixels.ndim != 4 or pixels.numel() == 0:
        cure = ": give grey images one channel, images[:, None]" if pixels.ndim == 3 else ""
        raise UserError(f"{name}: images must be (N, channels, height, width); found {tuple(pixels.shape)}{cure}")
    if pixels.shape[1] > 4 >= pixels.shape[3]:
        raise UserError(
            f"{name}: images must be (N, channels, height, width), but {tuple(pixels.shape)} has the channels last: "
            "use permute(0, 3, 1, 2), or transpose(0, 3, 1, 2) for arrays"
        )
    if pixels.dtype == torch.uint8:
        return
    if not pixels.is_floating_point():
        raise UserError(f"{name}: pixels must be uint8 or floating point; found {pixels.dtype}: use .to(torch.uint8)")
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low >= 0 and high <= 1:
        return
    if math.isnan(low) or math.isnan(high):
        cure = "remove the images with NaN"
    elif low >= 0 and high <= 255:
        cure = "divide by 255, or give them as uint8"
    else:
        cure = "give the images before normalisation, and put the normalisation inside the model"
    raise UserError(f"{name}: images must be pixels in [0,1]; found min {low:.4g} and max {high:.4g}: {cure}")
