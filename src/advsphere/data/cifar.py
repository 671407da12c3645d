"""CIFAR-10 and CIFAR-100 from their published folders, without running code from their pickles.

Source: A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009); layout of the "python version".
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from advsphere.data.images import Dataset, ImageSet
from advsphere.errors import UserError


@dataclass(frozen=True)
class Layout:
    """The files of a published CIFAR folder. train, test and meta: file name -> MD5 sum of the published file."""

    title: str
    folder: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    labels_key: str
    names_key: str

    @property
    def cure(self) -> str:
        """How to get the folder."""
        loader, archive = self.title.replace("-", ""), f"{self.title.lower()}-python.tar.gz"
        return f'torchvision.datasets.{loader}("data", download=True) fetches {archive} and unpacks it there'

    def find(self, place: Path) -> Path | None:
        """The CIFAR folder, if `place` is that folder or contains it."""
        if (place / self.folder).is_dir():
            return place / self.folder
        is_it = place.name == self.folder or all((place / file).is_file() for file in self.meta | self.test)
        return place if is_it and place.is_dir() else None


LAYOUTS = {
    "cifar10": Layout(
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        labels_key="labels",
        names_key="label_names",
    ),
    "cifar100": Layout(
        title="CIFAR-100",
        folder="cifar-100-python",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        labels_key="fine_labels",
        names_key="fine_label_names",
    ),
}


def read_cifar(name: str, folder: Path) -> Dataset:
    """Read "cifar10" or "cifar100" from its folder, 3x32x32 uint8. The note names files that were altered.

    Raises UserError for a missing, truncated, misshapen or unsafe file.
    """
    layout, changed = LAYOUTS[name], list[str]()
    classes = _classes(folder, layout, changed)
    train = _part(name, "train", layout.train, classes, folder, changed)
    test = _part(name, "test", layout.test, classes, folder, changed)
    note = f"{folder} is not the published {layout.title}: other MD5 sums for {', '.join(changed)}" if changed else ""
    return Dataset(train, test, note)


def read_cifar_test(name: str, folder: Path) -> ImageSet:
    """Read only the test images. The training files may be absent. Raises UserError as `read_cifar`."""
    layout = LAYOUTS[name]
    return _part(name, "test", layout.test, _classes(folder, layout, []), folder, [])


def _part(
    name: str, part: str, files: dict[str, str], classes: tuple[str, ...], folder: Path, changed: list[str]
) -> ImageSet:
    layout = LAYOUTS[name]
    pieces = [_images(_values(folder / file, layout, changed), folder / file, layout) for file in files]
    pixels, labels = (each[0] if len(each) == 1 else torch.cat(each) for each in zip(*pieces, strict=True))
    return ImageSet(pixels, labels, classes, f"{name} {part}")


def _values(path: Path, layout: Layout, changed: list[str]) -> dict[str, Any]:
    """The dictionary in a file. Its name is added to `changed` if it is not the published file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} of {layout.title} ({error.strerror}): {layout.cure}") from error
    published = (layout.meta | layout.train | layout.test)[path.name]
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != published:
        changed.append(path.name)
    return read_pickle(content, path)


def _classes(folder: Path, layout: Layout, changed: list[str]) -> tuple[str, ...]:
    (file,) = layout.meta
    names = _values(folder / file, layout, changed).get(layout.names_key)
    if not isinstance(names, list) or not names:
        raise UserError(f"{folder / file} is broken: it has no list {layout.names_key}; {layout.cure}")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def _images(content: dict[str, Any], path: Path, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (N, 3, 32, 32) uint8 and labels (N,) int64 of one file."""
    rows, labels = content.get("data"), content.get(layout.labels_key)
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 3072:
        found = "nothing" if rows is None else f"shape {getattr(rows, 'shape', type(rows).__name__)}"
        raise UserError(f"{path} is broken: data must be (N, 3072) uint8, found {found}; {layout.cure}")
    if (
        not isinstance(labels, list)
        or not all(type(label) is int and abs(label) < 2**63 for label in labels)
        or len(labels) != len(rows)
    ):
        raise UserError(f"{path} is broken: {layout.labels_key} must be a list of {len(rows)} integers; {layout.cure}")
    return torch.tensor(rows).view(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)


# A pickle is a program. The reader below accepts only the seven names that a pickled uint8 array needs, and replaces
# them by stand-ins. It builds no library object from the file, because a hostile file can make even numpy's own types
# read foreign memory.


def read_pickle(content: bytes, path: Path) -> dict[str, Any]:
    """The dictionary in a CIFAR pickle of Python 2 or 3, with its keys as text; arrays must be uint8.

    Raises UserError, naming `path`, for a pickle that is broken or uses any other name.
    """
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(value, dict):
            raise UserError(f"holds a {type(value).__name__} instead of a dictionary: it is no CIFAR file")
        return {
            key.decode() if isinstance(key, bytes) else str(key): item.array if isinstance(item, _Array) else item
            for key, item in value.items()
        }
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:  # a broken pickle may raise any exception
        raise UserError(f"{path} is broken or truncated ({' '.join(str(error).split())}): get it again") from error


class _DType:
    """Stands in for numpy.dtype, and accepts only "u1"."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        if code not in (b"u1", "u1"):
            raise UserError(f"holds an array of type {code!r}: images must be uint8")

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and alignment, which do not apply to single bytes."""


class _Array:
    """Stands in for numpy.ndarray. Unpickling can set only its shape and bytes."""

    array: np.ndarray[Any, np.dtype[np.uint8]]

    def __setstate__(self, state: tuple[int, tuple[int, ...], _DType, bool, bytes]) -> None:
        _, shape, _, fortran, content = state
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(content: bytes, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise UserError(f"holds bytes in the encoding {encoding!r}: only latin1 is known here")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    known: ClassVar[dict[str, Any]] = {
        "numpy.ndarray": _Array,
        "numpy.dtype": _DType,
        "numpy.core.multiarray._reconstruct": _reconstruct,  # numpy 1
        "numpy._core.multiarray._reconstruct": _reconstruct,  # numpy 2
        "numpy.core.numeric._frombuffer": _from_buffer,
        "numpy._core.numeric._frombuffer": _from_buffer,
        "_codecs.encode": _encode,  # how Python 3 writes bytes for Python 2
    }

    def find_class(self, module: str, name: str, /) -> Any:
        if f"{module}.{name}" not in self.known:
            raise UserError(f"was not loaded: it uses {module}.{name}, which no CIFAR file needs; do not trust it")
        return self.known[f"{module}.{name}"]
