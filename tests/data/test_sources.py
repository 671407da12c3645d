from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from advsphere.data import ImageSet, load, load_test
from advsphere.data.sources import NAMES
from advsphere.errors import UserError
from tests.data.layouts import Cifar


def test_the_environment_names_the_place_and_an_explicit_root_wins(
    cifar: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVSPHERE_DATA", str(cifar.folder.parent))
    assert len(load("cifar10").train) == 100
    with pytest.raises(UserError) as caught:
        load("cifar10", str(tmp_path / "elsewhere"))
    assert str(tmp_path / "elsewhere") in str(caught.value) and f"in {cifar.folder.parent}:" not in str(caught.value)


def test_without_either_the_folder_data_is_looked_at(cifar: Cifar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADVSPHERE_DATA", raising=False)
    here = cifar.folder.parent
    (here / "data").mkdir()
    cifar.folder.rename(here / "data" / "cifar-10-batches-py")
    monkeypatch.chdir(here)
    assert len(load_test("cifar10")) == 20


def test_all_places_that_were_looked_at_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVSPHERE_DATA", str(tmp_path / "named"))
    monkeypatch.chdir(tmp_path)
    for name in ("cifar10", "imagefolder"):
        with pytest.raises(UserError) as caught:
            load(name, image_size=None)
        message = str(caught.value)
        assert f"{tmp_path / 'named'} and {tmp_path / 'data'}" in message and "$ADVSPHERE_DATA" in message


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="no data set 'cifar-10': did you mean cifar10"):
        load("cifar-10")
    for read in (load, load_test):
        with pytest.raises(UserError, match=f"no data set 'svhn': known are {', '.join(NAMES)}"):
            read("svhn")


def test_a_size_for_a_set_that_has_its_own_is_refused() -> None:
    with pytest.raises(UserError, match="digits is 8x8: leave out image_size=32"):
        load("digits", image_size=32)
    assert load("digits", image_size=8).test.shape == (1, 8, 8)
    with pytest.raises(UserError, match="digits is 8x8: leave out resize=9"):
        load("digits", resize=9)


def test_the_test_part_alone_is_the_test_part() -> None:
    assert load_test("digits").labels.tolist() == load("digits").test.labels.tolist()


# The digits.


def both() -> tuple[ImageSet, ImageSet]:
    data = load("digits")
    assert isinstance(data.train, ImageSet) and isinstance(data.test, ImageSet)
    return data.train, data.test


def test_counts_shapes_and_classes() -> None:
    train, test = both()
    assert len(train) == 1297 and len(test) == 500
    assert train.shape == test.shape == (1, 8, 8) and train.pixels.dtype == torch.uint8
    assert train.classes == test.classes == tuple("0123456789")
    assert int(train.labels.bincount().min()) > 100 and int(test.labels.bincount().min()) > 25


def test_the_parts_together_are_the_whole_set_with_its_labels() -> None:
    bunch = load_digits()
    whole = sorted((tuple(image.ravel()), label) for image, label in zip(bunch.images, bunch.target, strict=True))
    found = []
    for part in both():
        levels = (part.pixels.double() / 255 * 16).round().numpy()
        found += [(tuple(image.ravel()), label) for image, label in zip(levels, part.labels.tolist(), strict=True)]
    assert np.array_equal([image for image, _ in sorted(found)], [image for image, _ in whole])
    assert [label for _, label in sorted(found)] == [label for _, label in whole]


def test_white_is_one_and_black_zero() -> None:
    x, _ = both()[0].batch(torch.arange(100))
    assert x.min() == 0 and x.max() == 1


def test_the_split_is_the_same_each_time_and_everywhere() -> None:
    test = both()[1]
    assert torch.equal(test.pixels, both()[1].pixels)
    # Pinned: results of different machines and versions are about the same test images.
    assert test.labels[:20].tolist() == [0, 4, 6, 9, 8, 9, 0, 7, 5, 5, 9, 8, 5, 6, 3, 7, 3, 6, 9, 1]
