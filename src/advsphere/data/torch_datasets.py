"""Convert data sets to image sets: map-style datasets of PyTorch or Hugging Face, data loaders, and pairs of arrays."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from advsphere.data.crops import ResizedCrops
from advsphere.data.encoded import View, check_depth, decoded
from advsphere.data.images import (
    Images,
    ImageSet,
    check_labels,
    check_pixels,
    in_memory_if_small,
    tensor_of,
    with_progress,
)
from advsphere.errors import UserError
from advsphere.losses import is_soft

IMAGES, LABELS = ("image", "img", "pixel_values"), ("label", "labels")
"""The entries of an item that is a dictionary."""


class MapStyle(Protocol):
    """The methods of a map-style `torch.utils.data.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Source = Images | MapStyle | DataLoader[Any] | tuple[Tensor | np.ndarray, Tensor | np.ndarray]
"""What `from_dataset` takes."""


def from_dataset(
    source: Source,
    *,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    image_size: int | None = None,
    resize: int | None = None,
    crops: bool = False,
) -> Images:
    """Turn a data set of another library, or a pair of tensors or arrays, into an image set.

    The images are kept in memory if they take at most 4 GiB. Otherwise each batch reads its items from the data set.

    Args:
        source: A pair of pixels (N, C, H, W) and labels (N,), each a tensor or an array; or an object with ``len()``
            whose items are ``(image, label)`` or dictionaries with "image" (or "img") and "label"; or a `DataLoader` of
            such an object. An image is a PIL image, a tensor (C, H, W) or an array (H, W, C), uint8 or floating point
            in [0, 1]. Grey tensors and arrays may be (H, W). A label is a class number, or for training the
            probabilities of the classes (K,). An item must be the same each time it is read; use
            `TrainSettings.augment` for random augmentation. A loader's items are read one by one through its
            `collate_fn`, in the order of its data set. An image set is returned unchanged.
        classes: The names of the classes. By default those in ``source.classes`` or ``source.features["label"].names``,
            otherwise "0", "1", ...
        name: Name of the data set in reports. By default the name of its class.
        image_size: Resize PIL images of any size to squares of this side, in RGB, as `load` does for image files. By
            default all images must have the same shape, which is kept.
        resize: The length of the shorter side before the central crop of `image_size`; `image_size` by default.
        crops: Whether the images will be cropped at random. With `image_size` each batch then reads its items from the
            data set, at their own resolution.

    Returns:
        The images, in memory (an `ImageSet`) or not.

    Raises:
        UserError: If an image or a label has the wrong type, shape or range, if an item changes between two reads, or
            if a data loader draws or mixes its items.
    """
    if isinstance(source, Images):
        return source
    if isinstance(source, str | Path):
        raise UserError(f"{source} is a name: load its images with advsphere.data.load or advsphere.data.image_folder")
    if isinstance(source, DataLoader):
        name = name or type(source.dataset).__name__
        source = items_of(source)
    name, view = name or type(source).__name__, View.of(image_size, resize)
    if isinstance(source, tuple | list) and len(source) and isinstance(source[0], Tensor | np.ndarray):
        if len(source) != 2:
            raise UserError(
                "images need labels: give (images, labels), or for training and test ((images, labels), (images, "
                f"labels)); found arrays: {len(source)}"
            )
        if view is not None:
            raise UserError("image_size resizes PIL images: resize the tensors yourself, and leave it out")
        pixels, labels = map(tensor_of, source)
        labels = labels if labels.is_floating_point() else labels.long()
        return ImageSet(
            pixels, labels, _class_names(source, classes, labels), "tensors" if name in ("tuple", "list") else name
        )
    map_style = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if not map_style or isinstance(source, IterableDataset):
        raise UserError(f"{name} is no map-style data set: give an object with len() whose items are (image, label)")
    if not len(source):
        raise UserError(f"{name}: there are no images")
    few = range(min(8, len(source)))  # a random flip leaves one of two images as it is
    some, again = ([_pixels(_item(source, i, name)[0], view, f"image {i} of {name}") for i in few] for _ in range(2))
    if not all(map(torch.equal, some, again)):
        raise UserError(
            f"{name}: its images change between two reads: leave out random transforms, "
            "and set the augmentation in TrainSettings.augment"
        )
    labels = _labels(source, name)
    names = _class_names(source, classes, labels)
    items = torch.arange(len(labels))
    images = DatasetImages(labels, names, name, source, items, some[0], view)
    return images if crops and view is not None else in_memory_if_small(images)


@dataclass(frozen=True, eq=False, repr=False)
class DatasetImages(Images):
    """Images that are read from a map-style data set whenever a batch needs them.

    `items` (N,) int64 has the position of each image in `dataset`. `example` is the first image, (C, H, W) uint8 or
    float32; all have its shape and type. Without a `view`, images are not resized.
    """

    labels: Tensor
    classes: tuple[str, ...]
    name: str
    dataset: MapStyle
    items: Tensor
    example: Tensor
    view: View | None

    def __post_init__(self) -> None:
        check_labels(self.labels, len(self.classes), self.name)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.example.shape
        return channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        return self.example.dtype

    @property
    def files(self) -> tuple[str, ...] | None:
        listed = _listed_files(self.dataset)
        return None if listed is None else tuple(listed[i] for i in self.items.tolist())

    def take(self, index: Tensor) -> Self:
        return replace(self, labels=self.labels[index.to(self.labels.device)], items=self.items[index.cpu()])

    def to(self, device: torch.device | str) -> Self:
        return replace(self, labels=self.labels.to(device))

    def stored(self, index: Tensor, crops: ResizedCrops | None = None) -> tuple[Tensor, Tensor]:
        y = self.labels[index.to(self.labels.device)]
        pixels = torch.empty((len(index), *self.shape), dtype=self.dtype)
        for b, i in enumerate(self.items[index.cpu()].tolist()):
            image, _ = _item(self.dataset, i, self.name)
            found = _pixels(image, self.view, f"image {i} of {self.name}", crops, b)
            if found.shape != self.shape or found.dtype != self.dtype:
                raise UserError(
                    f"{self.name}: image {i} is {tuple(found.shape)} of {found.dtype}, the first image "
                    f"{self.shape} of {self.dtype}: give images of one shape, or PIL images with image_size"
                )
            pixels[b] = found
        if len(pixels):
            check_pixels(pixels, self.name)
        if crops is not None and self.view is None:
            pixels = crops(pixels)
        return pixels.to(y.device), y


@dataclass(frozen=True, eq=False)
class CollatedItems:
    """The items of a data set, each as the only one of a batch that `collate` makes."""

    dataset: MapStyle
    collate: Callable[[list[Any]], Any]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int, /) -> Any:
        batch = self.collate([self.dataset[i]])
        if isinstance(batch, Mapping):
            return {key: value[0] for key, value in batch.items()}
        return tuple(part[0] for part in batch)


def items_of(loader: DataLoader[Any]) -> MapStyle:
    """The items of a data loader, in the order of its data set. Raises UserError if it draws or mixes them."""
    dataset, sampler = loader.dataset, loader.sampler
    name = type(dataset).__name__
    if isinstance(dataset, IterableDataset):
        raise UserError(f"{name} is no map-style data set: give an object with len() whose items are (image, label)")
    if isinstance(sampler, SubsetRandomSampler):
        dataset = Subset(dataset, sorted(sampler.indices))
    elif not isinstance(sampler, SequentialSampler | RandomSampler) or getattr(sampler, "replacement", False):
        raise UserError(f"the data loader draws its items by a {type(sampler).__name__}: give its data set, {name}")
    collate: Any = loader.collate_fn
    items: Any = dataset
    if collate is default_collate:
        return items
    first = CollatedItems(items, collate)
    if len(items) and is_soft(torch.as_tensor(_item(first, 0, name)[1])[None]):
        raise UserError(
            f"the collate_fn of the data loader makes soft labels, so it mixes images of a batch, but {name} is read "
            "item by item: leave it out, or train in your own loop with objective.craft and objective.loss"
        )
    return first


def _item(dataset: MapStyle, i: int, name: str) -> tuple[Any, int | Tensor]:
    try:
        item = dataset[i]
    except Exception as error:  # of the user's code
        error.add_note(f"while item {i} of {name} was read")
        raise
    if isinstance(item, Mapping):
        found = f"the entries {', '.join(map(str, item))}: rename them"
        image = next((item[key] for key in IMAGES if key in item), None)
        label = next((item[key] for key in LABELS if key in item), None)
    else:
        found = f"a {type(item).__name__}{f' of {len(item)}' if isinstance(item, tuple | list) else ''}"
        image, label = item if isinstance(item, tuple | list) and len(item) == 2 else (None, None)
    if image is None or label is None:
        raise UserError(
            f'{name}: item {i} must be (image, label) or a dictionary with "image" and "label"; found {found}'
        )
    if isinstance(label, Tensor | np.ndarray) and is_soft(torch.as_tensor(label)[None]):
        return image, torch.as_tensor(label, dtype=torch.float32)
    try:
        number = operator.index(label)
        if abs(number) >= 2**63:
            raise TypeError("it does not fit into 64 bits")
        return image, number
    except TypeError as error:
        raise UserError(
            f"{name}: the label of item {i} must be a class number or the probabilities (K,) of the classes, "
            f"found {label!r}: number the classes from 0 (with Hugging Face, class_encode_column)"
        ) from error


def _pixels(image: Any, view: View | None, where: str, crops: ResizedCrops | None = None, b: int = 0) -> Tensor:
    """An image as (C, H, W), uint8 or float32: resized to the view, or to its crop `b`, if there is a view."""
    if isinstance(image, Image.Image):
        if view is not None:
            return decoded(image, where, view, crops, b)
        check_depth(image, where)
        grey = image.mode in ("1", "L", "LA")
        image = np.array(image.convert("L" if grey else "RGB"))
    elif view is not None:
        raise UserError(f"{where} is a {type(image).__name__}: image_size resizes PIL images only, so leave it out")
    if isinstance(image, np.ndarray):
        pixels = tensor_of(image[..., None] if image.ndim == 2 else image)
        pixels = pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels
    elif isinstance(image, Tensor):
        pixels = image[None] if image.ndim == 2 else image
    else:
        raise UserError(f"{where} is a {type(image).__name__}: give a PIL image, a tensor or a numpy array")
    if pixels.ndim != 3 or pixels.shape[0] > 4 >= pixels.shape[2]:
        raise UserError(
            f"{where} has the shape {tuple(image.shape)}: tensors must be (channels, height, width), "
            "numpy arrays (height, width, channels)"
        )
    return pixels.float() if pixels.is_floating_point() else pixels


def _labels(dataset: MapStyle, name: str) -> Tensor:
    """(N,) int64 or (N, K): the labels that the data set lists, or else those of its items."""
    labels = None
    with suppress(TypeError, ValueError, RuntimeError):  # the data set lists no class numbers
        labels = torch.as_tensor(_listed_labels(dataset))
        labels = labels.float() if is_soft(labels) else labels.long()
    if labels is None:
        numbers = with_progress(range(len(dataset)), f"reading the labels of {name}")
        found = [torch.as_tensor(_item(dataset, i, name)[1]) for i in numbers]
        if len({one.shape for one in found}) > 1:
            raise UserError(f"{name}: some labels are class numbers and some probabilities, or of different lengths")
        return torch.stack(found)
    for i in {0, len(labels) // 2, len(labels) - 1} if labels.ndim == 1 else ():
        label = _item(dataset, i, name)[1]
        if not isinstance(label, int) or label != labels[i]:
            raise UserError(f"{name}: item {i} has label {label}, but the data set lists {labels[i]} for it")
    return labels


def _listed_labels(dataset: Any) -> Any:
    """The labels if the data set lists them, so that no images are read; else None."""
    if isinstance(dataset, Subset):
        listed = _listed_labels(dataset.dataset)
        return None if listed is None else [int(listed[i]) for i in dataset.indices]
    if hasattr(dataset, "with_format") and "label" in getattr(dataset, "features", ()):  # Hugging Face's
        return list(dataset.with_format(None)["label"])
    listed = getattr(dataset, "targets", None)
    if listed is None or getattr(dataset, "target_transform", None) is not None or len(listed) != len(dataset):
        return None
    return listed


def _listed_files(dataset: Any) -> list[str] | None:
    """The files of torchvision's image folders, below their root; None for other data sets."""
    if isinstance(dataset, Subset):
        listed = _listed_files(dataset.dataset)
        return None if listed is None else [listed[i] for i in dataset.indices]
    samples, root = getattr(dataset, "samples", None), getattr(dataset, "root", None)
    if not isinstance(samples, list) or root is None or len(samples) != len(dataset):
        return None
    if not all(isinstance(sample, tuple) and isinstance(sample[0], str | Path) for sample in samples):
        return None
    return [str(path).removeprefix(f"{root}{os.sep}") for path, _ in samples]


def _class_names(source: Any, classes: Sequence[str] | None, labels: Tensor) -> tuple[str, ...]:
    while isinstance(source, Subset):
        source = source.dataset
    if classes is None:
        features = getattr(source, "features", None)
        of_label = features.get("label") if isinstance(features, Mapping) else None
        found = getattr(source, "classes", None) or getattr(of_label, "names", None)
        classes = found if isinstance(found, Sequence) else None
    if classes is None:  # a label beyond the cap is an error of `check_labels`, not a lack of memory
        highest = labels.shape[1] - 1 if is_soft(labels) else int(labels.max()) if labels.numel() else 0
        classes = list(map(str, range(min(max(highest, 0), 100_000) + 1)))
    return tuple(map(str, classes))
