"""Reading a pickle of plain values and byte arrays without running what is in it.

A pickle is a program. This reader knows the seven names that a pickled uint8 array needs, and puts stand-ins of its
own in their places: no object of any library is built from the file, so there is none to be misled (a hostile file can
make numpy's own types read memory that is not theirs).
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from advsphere.errors import UserError


def read_pickle(content: bytes, path: Path) -> dict[str, Any]:
    """The dictionary in a CIFAR pickle of Python 2 or 3, with its keys as text; arrays must be uint8.

    Raises UserError for a pickle that is broken, or that names anything but the few things such files need. path is for
    the messages.
    """
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(value, dict):
            raise UserError(f"holds no dictionary but {type(value).__name__}: it is no CIFAR file")
        return {
            key.decode() if isinstance(key, bytes) else str(key): item.array if isinstance(item, _Array) else item
            for key, item in value.items()
        }
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:  # whatever a broken pickle may raise: there is no complete list
        raise UserError(f"{path} is broken or truncated ({error}): get it again") from error


class _DType:
    """Stands in for numpy.dtype, of which only "u1" is known here."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        if code not in (b"u1", "u1"):
            raise UserError(f"holds an array of type {code!r}: images must be uint8")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which single bytes do not have."""


class _Array:
    """Stands in for numpy.ndarray: unpickling sets its shape and bytes, and nothing else can be set."""

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
            raise UserError(f"was not loaded: it asks for {module}.{name}, which no CIFAR file needs; do not trust it")
        return self.known[f"{module}.{name}"]
