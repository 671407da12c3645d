from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from advsphere.data import ImageSet, load


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
