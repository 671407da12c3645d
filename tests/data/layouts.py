"""Small data sets on disk, in the layouts that users have."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image


def python2_pickle(value: object) -> bytes:
    """What Python 2 wrote for dicts, lists, byte strings, ints and uint8 arrays: the form of the published files."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: object) -> bytes:
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(key) + _opcodes(item) for key, item in value.items()) + b"u"
    assert isinstance(value, np.ndarray) and value.dtype == np.uint8
    dtype = b"cnumpy\ndtype\n" + _opcodes(b"u1") + b"K\x00K\x01\x87R(K\x03" + _opcodes(b"|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _opcodes(b"b") + b"\x87R"
    shape = b"(" + b"".join(map(_opcodes, value.shape)) + b"t"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + _opcodes(value.tobytes()) + b"tb"


class Cifar:
    """A CIFAR-10 folder with 20 images in each of its six files; `rows` and `labels` are what went into each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(0)
        self.rows, self.labels = {}, {}
        for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            self.rows[file] = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
            self.labels[file] = rng.integers(0, 10, 20).tolist()
            self.write(file, {b"data": self.rows[file], b"labels": self.labels[file]})
        self.write("batches.meta", {b"label_names": [f"class {i}".encode() for i in range(10)]})

    def write(self, file: str, value: object) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / file).write_bytes(python2_pickle(value))


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
