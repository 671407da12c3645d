"""Images that stay encoded, for example as JPEG, and are decoded whenever a batch needs them."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple, Self

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import get_worker_info

from advsphere.data.crops import ResizedCrops, resized
from advsphere.data.images import Images, UnreadableImagesError, check_labels
from advsphere.errors import UserError

SUFFIXES = {".gif", ".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"}
GAP = 2
"""A JPEG is decoded at a half, a quarter or an eighth of its size if the result is at least GAP times the needed size.
Pillow's `thumbnail` has the same rule."""


class View(NamedTuple):
    """Makes an image square: resize its shorter side to `shorter`, then crop the central `size` x `size` pixels."""

    size: int
    shorter: int

    @classmethod
    def of(cls, image_size: int | None, resize: int | None) -> View | None:
        """The view for these options; None if there is no size. `resize` defaults to the size, so that the crop is as
        large as possible. Raises UserError for impossible sizes.
        """
        if image_size is None:
            return None
        shorter = image_size if resize is None else resize
        if not 1 <= image_size <= shorter:
            raise UserError(
                f"a centre of {image_size} pixels can't be cropped from images with a shorter side resized to {shorter}"
            )
        return cls(image_size, shorter)


class Encoded(NamedTuple):
    """An encoded image: its name in error messages, and its path or content."""

    name: str
    file: str | io.BytesIO

    def open(self) -> Image.Image:
        """Read the header. Raises UserError if that fails, and for a pipe or device, which might never end."""
        if isinstance(self.file, str) and os.path.exists(self.file) and not os.path.isfile(self.file):
            raise _unreadable(self.name, "it is no regular file")
        try:
            return Image.open(self.file)
        except UnidentifiedImageError as error:  # its text repeats the path
            raise _unreadable(self.name, "no image, or in a format that Pillow does not know") from error
        except Exception as error:
            raise _unreadable(self.name, error) from error


@dataclass(frozen=True, eq=False, repr=False)
class EncodedImages(Images):
    """Images, 3 x size x size uint8, that threads decode whenever a batch needs them.

    Every image is converted to RGB and resized bilinearly, as by torchvision's Resize and CenterCrop. Reading raises
    UserError naming an image that cannot be decoded.
    """

    labels: Tensor
    classes: tuple[str, ...]
    name: str
    view: View

    def __post_init__(self) -> None:
        check_labels(self.labels, len(self.classes), self.name)

    @abstractmethod
    def encoded(self, index: list[int]) -> list[Encoded]:
        """These images in encoded form."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.view.size, self.view.size

    def to(self, device: torch.device | str) -> Self:
        return replace(self, labels=self.labels.to(device))

    def stored(self, index: Tensor, crops: ResizedCrops | None = None) -> tuple[Tensor, Tensor]:
        pixels = torch.empty((len(index), *self.shape), dtype=torch.uint8, memory_format=torch.channels_last)
        encoded = self.encoded(index.tolist())

        def decode(b: int) -> Sequence[str]:
            """Returns what is wrong with the image, so that one error names all such images."""
            try:
                with encoded[b].open() as picture:
                    pixels[b] = decoded(picture, encoded[b].name, self.view, crops, b)
            except UnreadableImagesError as error:
                return error.problems
            return ()

        if get_worker_info() is not None:  # one of several workers, which has one core
            problems = [*chain.from_iterable(map(decode, range(len(index))))]
        else:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                problems = [*chain.from_iterable(pool.map(decode, range(len(index))))]
        if problems:
            raise UnreadableImagesError(problems)
        device = self.labels.device
        return pixels.to(device), self.labels[index.to(device)]


def required(view: View | None, place: str, first: Encoded) -> View:
    """The view. If there is none, raises UserError that proposes the size of the first image."""
    if view is None:
        width, height = first.open().size
        raise UserError(
            f"{place} needs an image size to resize its images to: its first image is {width}x{height}, "
            f"so try image_size={min(width, height)} (--image-size; in train --data.image-size)"
        )
    return view


def check_depth(picture: Image.Image, name: str) -> None:
    """Raise UserError for images with more than 8 bits per pixel, because Pillow would clip values to 255."""
    if picture.mode[0] in "IF":
        raise _unreadable(name, f"more than 8 bits per pixel, {picture.mode}; convert it to 8 bits")


def decoded(
    picture: Image.Image, name: str, view: View, crops: ResizedCrops | None = None, b: int = 0, channels: int = 3
) -> Tensor:
    """A picture seen through the view, or its b-th crop at the size of the view, (channels, size, size) uint8.

    It is turned as its EXIF data say. One channel is grey, three are RGB. Raises UserError with the picture's name if
    it is damaged, or as `check_depth`.
    """
    check_depth(picture, name)
    try:
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
        return _square(picture, view, crops, b, "L" if channels == 1 else "RGB")
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise _unreadable(name, error) from error


def _square(picture: Image.Image, view: View, crops: ResizedCrops | None, b: int, mode: str) -> Tensor:
    if crops is None:
        _decode_smaller(picture, min(picture.size), view.shorter)
        # Pillow's `bleed` is the share that is cut off at each side.
        bleed = (1 - view.size / view.shorter) / 2
        return _pixels(ImageOps.fit(picture.convert(mode), (view.size, view.size), Image.Resampling.BILINEAR, bleed))
    width, height = picture.size
    left, top, w, h = crops.box(b, width, height)
    _decode_smaller(picture, min(w, h), view.size)
    across, down = picture.width / width, picture.height / height
    box = (round(left * across), round(top * down), round((left + w) * across), round((top + h) * down))
    return resized(_pixels(picture.convert(mode).crop(box)), view.size, view.size)


def _decode_smaller(picture: Image.Image, side: int, wanted: int) -> None:
    """Let a JPEG be decoded at a fraction of its size if `side` of its pixels will be resized to `wanted`."""
    if (factor := side // (GAP * wanted)) > 1:
        picture.draft(None, (-(-picture.width // factor), -(-picture.height // factor)))


def _pixels(picture: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _unreadable(name: str, reason: object) -> UnreadableImagesError:
    return UnreadableImagesError([f"{name} ({reason})"])
