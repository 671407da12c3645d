from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advsphere.data.pickles import read_pickle
from advsphere.errors import UserError
from tests.data.layouts import python2_pickle

FILE = Path("some_batch")
VALUE = {b"data": np.arange(24, dtype=np.uint8).reshape(4, 6), b"labels": [3, 0, 9, 255]}


def check(content: bytes) -> None:
    value = read_pickle(content, FILE)
    assert set(value) == {"data", "labels"} and value["labels"] == VALUE[b"labels"]
    assert value["data"].dtype == np.uint8 and np.array_equal(value["data"], VALUE[b"data"])


def test_python_2_pickles_are_read() -> None:
    content = python2_pickle(VALUE)
    standard = pickle.loads(content, encoding="bytes")  # the test's own writer is right
    assert np.array_equal(standard[b"data"], VALUE[b"data"])
    check(content)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("text_keys", [False, True])
def test_python_3_pickles_are_read(protocol: int, text_keys: bool) -> None:
    value: dict[Any, Any] = {key.decode(): item for key, item in VALUE.items()} if text_keys else VALUE
    check(pickle.dumps(value, protocol=protocol))


@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_in_fortran_order_are_read(protocol: int) -> None:
    value = {b"data": np.asfortranarray(VALUE[b"data"]), b"labels": VALUE[b"labels"]}
    check(pickle.dumps(value, protocol=protocol))


class Command:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        function, *arguments = self.call
        return function, tuple(arguments)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["value", "key", "list", "bare"])
def test_a_pickle_that_calls_anything_is_refused_and_not_run(tmp_path: Path, protocol: int, where: str) -> None:
    evil = Command(os.system, f"touch {tmp_path / 'ran'}")
    value = {"value": {b"data": evil}, "key": {(evil,): 1}, "list": {b"labels": [evil]}, "bare": evil}[where]
    with pytest.raises(UserError, match=r"some_batch was not loaded: it asks for (posix|nt).system.*do not trust it"):
        read_pickle(pickle.dumps(value, protocol=protocol), FILE)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["builtins\neval", "numpy\nload", "numpy\nndarray.tofile", "torch\nload"])
def test_no_other_name_is_known(name: str) -> None:
    with pytest.raises(UserError, match="asks for " + name.replace("\n", r"\.")):
        read_pickle(b"\x80\x04c" + name.encode() + b"\n.", FILE)


def test_other_types_of_arrays_are_refused() -> None:
    with pytest.raises(UserError, match="some_batch holds an array of type 'f8': images must be uint8"):
        read_pickle(pickle.dumps({b"data": np.zeros(3)}), FILE)


def test_bytes_in_an_unknown_encoding_are_refused() -> None:
    with pytest.raises(UserError, match="encoding 'zip'"):
        read_pickle(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.", FILE)


@pytest.mark.parametrize("keep", [0, 1, 40, 200, -1])
def test_a_truncated_pickle_is_named(keep: int) -> None:
    with pytest.raises(UserError, match=r"some_batch is broken or truncated \(.*\): get it again"):
        read_pickle(python2_pickle(VALUE)[:keep], FILE)


def test_an_array_whose_bytes_do_not_fill_its_shape_is_broken() -> None:
    content = python2_pickle({b"data": np.zeros((2, 3), np.uint8)})
    shape = b"(J\x02\0\0\0J\x03\0\0\0t"
    assert shape in content
    with pytest.raises(UserError, match="some_batch is broken"):
        read_pickle(content.replace(shape, b"(J\x02\0\0\0J\x04\0\0\0t"), FILE)


def test_an_array_that_was_never_filled_is_broken() -> None:
    with pytest.raises(UserError, match="some_batch is broken"):
        read_pickle(b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n)Ru.", FILE)


def test_something_else_than_a_dictionary_is_refused() -> None:
    with pytest.raises(UserError, match="some_batch holds no dictionary but list"):
        read_pickle(pickle.dumps([1, 2]), FILE)
