from __future__ import annotations

import io
import lzma
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advsphere.data import Dataset, ImageSet, load, load_test
from advsphere.data.cifar import read_pickle
from advsphere.errors import UserError
from tests.data.layouts import Cifar, python2_pickle

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def pixels_of(rows: np.ndarray) -> torch.Tensor:
    """CIFAR's row of 3072: 1024 red, 1024 green, 1024 blue, each row by row."""
    return torch.stack([torch.tensor(rows[:, 1024 * c : 1024 * (c + 1)]).view(-1, 32, 32) for c in range(3)], 1)


def check(data: Dataset, cifar: Cifar) -> None:
    assert isinstance(data.train, ImageSet) and isinstance(data.test, ImageSet)
    files = [f"data_batch_{i}" for i in range(1, 6)]
    assert torch.equal(data.train.pixels, pixels_of(np.concatenate([cifar.rows[file] for file in files])))
    assert data.train.labels.tolist() == [label for file in files for label in cifar.labels[file]]
    assert torch.equal(data.test.pixels, pixels_of(cifar.rows["test_batch"]))
    assert data.test.labels.tolist() == cifar.labels["test_batch"]
    assert data.train.classes == data.test.classes == tuple(f"class {i}" for i in range(10))
    assert (data.train.name, data.test.name) == ("cifar10 train", "cifar10 test")


def test_the_folder_or_the_one_that_holds_it_can_be_given(cifar: Cifar) -> None:
    check(load("cifar10", cifar.folder), cifar)
    check(load("cifar10", cifar.folder.parent), cifar)
    renamed = cifar.folder.rename(cifar.folder.parent / "renamed")
    check(load("cifar10", renamed), cifar)


def test_the_test_images_are_read_without_the_training_files(cifar: Cifar) -> None:
    whole = load("cifar10", cifar.folder).test
    for i in range(1, 6):
        (cifar.folder / f"data_batch_{i}").unlink()
    test = load_test("cifar10", cifar.folder)
    assert torch.equal(test.pixels, whole.pixels) and torch.equal(test.labels, whole.labels)
    assert (test.name, test.classes) == (whole.name, whole.classes)
    with pytest.raises(UserError, match=r"cannot read .*data_batch_1 of CIFAR-10"):
        load("cifar10", cifar.folder)


def test_files_of_python_3_are_read(cifar: Cifar) -> None:
    for file in cifar.rows:
        value = {"data": cifar.rows[file], "labels": cifar.labels[file]}
        (cifar.folder / file).write_bytes(pickle.dumps(value))
    (cifar.folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    check(load("cifar10", cifar.folder), cifar)


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    for file in ("train", "test"):
        value = {b"data": rows, b"fine_labels": [99, 0, 42], b"coarse_labels": [1, 2, 3]}
        (folder / file).write_bytes(python2_pickle(value))
    meta = {b"fine_label_names": [f"fine {i}".encode() for i in range(100)], b"coarse_label_names": [b"coarse"] * 20}
    (folder / "meta").write_bytes(python2_pickle(meta))
    test = load("cifar100", tmp_path).test
    assert test.labels.tolist() == [99, 0, 42] and len(test.classes) == 100 and test.classes[42] == "fine 42"


def test_files_other_than_the_published_ones_are_noted(cifar: Cifar) -> None:
    note = load("cifar10", cifar.folder).note
    assert note.startswith(f"{cifar.folder} is not the published CIFAR-10") and "test_batch" in note


def test_a_missing_folder_says_what_where_and_how(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load("cifar10", tmp_path)
    message = str(caught.value)
    for part in ("cifar-10-batches-py", str(tmp_path), "cifar-10-python.tar.gz", "torchvision.datasets.CIFAR10("):
        assert part in message
    assert "\n" not in message
    with pytest.raises(UserError, match=r"cifar-100-python.tar.gz|torchvision.datasets.CIFAR100\("):
        load("cifar100", tmp_path)


def test_a_missing_file_is_named_with_how_to_get_it(cifar: Cifar) -> None:
    (cifar.folder / "data_batch_3").unlink()
    with pytest.raises(UserError, match=r"cannot read .*data_batch_3 of CIFAR-10 .*cifar-10-python.tar.gz"):
        load("cifar10", cifar.folder)


def test_a_truncated_file_is_named(cifar: Cifar) -> None:
    file = cifar.folder / "data_batch_2"
    file.write_bytes(file.read_bytes()[:30000])
    with pytest.raises(UserError, match="data_batch_2 is broken or truncated"):
        load("cifar10", cifar.folder)


ROWS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        (
            "test_batch",
            {b"data": ROWS[:, :100], b"labels": [1, 2]},
            r"data must be \(N, 3072\) uint8, found shape \(2, 100\)",
        ),
        ("test_batch", {b"labels": [1, 2]}, "data must be .* found nothing"),
        ("test_batch", {b"data": ROWS}, "labels must be a list of 2 integers"),
        ("test_batch", {b"data": ROWS, b"labels": [1]}, "labels must be a list of 2 integers"),
        ("test_batch", {b"data": ROWS, b"labels": [1, b"dog"]}, "labels must be a list of 2 integers"),
        ("test_batch", {b"data": ROWS, b"labels": [1, 10]}, "cifar10 test: label 10 of image 1 is outside 0..9"),
        ("batches.meta", {b"names": []}, "batches.meta is broken: it has no list label_names"),
    ],
)
def test_wrong_contents_are_named(cifar: Cifar, file: str, value: object, message: str) -> None:
    cifar.write(file, value)
    with pytest.raises(UserError, match=message):
        load("cifar10", cifar.folder)


@pytest.mark.skipif(not (SHARED / "unpack.py").exists(), reason="no real CIFAR-10 in ../shared/data")
def test_the_real_images_are_those_that_were_published(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SHARED / "unpack.py", "cifar10", tmp_path], check=True)
    data = load("cifar10", tmp_path)
    assert len(data.train) == 50000 and len(data.test) == 10000
    assert data.train.labels.bincount().tolist() == [5000] * 10 and data.test.labels.bincount().tolist() == [1000] * 10
    assert data.test.classes[:4] == ("airplane", "automobile", "bird", "cat") and data.test.classes[9] == "truck"
    assert "data_batch_1" in data.note  # most of these went through JPEG
    with lzma.open(SHARED / "cifar10-first-originals.npz.xz") as file:
        originals = np.load(io.BytesIO(file.read()))
    published = torch.tensor(originals["test_batch_images"]).view(-1, 3, 32, 32)
    assert len(published) > 1000
    x, y = data.test.batch(torch.arange(len(published)))
    assert torch.equal(x, published / 255)
    assert y.tolist() == originals["test_batch_labels"][: len(published)].tolist()
    # The means that every CIFAR-10 recipe has; JPEG moves them by less than a thousandth.
    assert isinstance(data.train, ImageSet)
    mean = torch.stack([data.train.pixels[:, c].sum() / (50000 * 1024 * 255) for c in range(3)])
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-3)


# The pickles in the folder.

FILE = Path("some_batch")
VALUE = {b"data": np.arange(24, dtype=np.uint8).reshape(4, 6), b"labels": [3, 0, 9, 255]}


def check_pickle(content: bytes) -> None:
    value = read_pickle(content, FILE)
    assert set(value) == {"data", "labels"} and value["labels"] == VALUE[b"labels"]
    assert value["data"].dtype == np.uint8 and np.array_equal(value["data"], VALUE[b"data"])


def test_python_2_pickles_are_read() -> None:
    content = python2_pickle(VALUE)
    standard = pickle.loads(content, encoding="bytes")  # the test's own writer is right
    assert np.array_equal(standard[b"data"], VALUE[b"data"])
    check_pickle(content)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("text_keys", [False, True])
def test_python_3_pickles_are_read(protocol: int, text_keys: bool) -> None:
    value: dict[Any, Any] = {key.decode(): item for key, item in VALUE.items()} if text_keys else VALUE
    check_pickle(pickle.dumps(value, protocol=protocol))


@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_in_fortran_order_are_read(protocol: int) -> None:
    value = {b"data": np.asfortranarray(VALUE[b"data"]), b"labels": VALUE[b"labels"]}
    check_pickle(pickle.dumps(value, protocol=protocol))


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
    with pytest.raises(UserError, match=r"some_batch was not loaded: it uses (posix|nt).system.*do not trust it"):
        read_pickle(pickle.dumps(value, protocol=protocol), FILE)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["builtins\neval", "numpy\nload", "numpy\nndarray.tofile", "torch\nload"])
def test_no_other_name_is_known(name: str) -> None:
    with pytest.raises(UserError, match="uses " + name.replace("\n", r"\.")):
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
    with pytest.raises(UserError, match="some_batch holds a list instead of a dictionary"):
        read_pickle(pickle.dumps([1, 2]), FILE)
