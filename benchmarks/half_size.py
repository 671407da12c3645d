"""CIFAR-10 at 16 x 16 pixels, on which the whole of AutoAttack takes minutes on a CPU core.

PYTHONPATH=benchmarks advsphere train cifar10-small-fastat --data.name half_size:cifar10 --model.statistics cifar10
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch.nn import functional as F

from advsphere.data import Dataset, Images, ImageSet, load


def smaller(images: ImageSet, size: int) -> ImageSet:
    """The images, averaged over squares of pixels to size x size."""
    pixels = F.avg_pool2d(images.pixels.float(), images.shape[-1] // size).round().to(images.pixels.dtype)
    return replace(images, pixels=pixels)


def cifar10(root: Path | None = None, train: int | None = None) -> Dataset:
    """Each pixel is the mean of four. train: the number of training images, the first ones; all by default."""
    whole = load("cifar10", root)
    images = whole.train if train is None else whole.train.first(train)
    return replace(whole, train=_halved(images), test=_halved(whole.test))


def _halved(images: Images) -> ImageSet:
    half = smaller(images.in_memory(), 16)
    return replace(half, name=f"{images.name} at half size")
