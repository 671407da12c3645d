from __future__ import annotations

import torch
from torch import nn

from advsphere.data import ImageSet
from advsphere.identity import data_checksum, model_checksum
from tests.evaluation.cases import linear


def test_a_model_is_known_by_all_its_weights_and_buffers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = model_checksum(model)
    assert model_checksum(model.to(memory_format=torch.channels_last)) == before  # type: ignore[call-overload]
    assert model_checksum(model.train().requires_grad_(False)) == before
    running = model[1].running_mean
    assert running is not None
    running[2] += 1e-6
    moved = model_checksum(model)
    model[0].weight.data[0, 1, 2, 0] += 1e-6  # type: ignore[index, operator, union-attr]
    assert len({before, moved, model_checksum(model), model_checksum(model.double())}) == 4


def test_the_same_numbers_in_another_shape_are_another_model() -> None:
    wide, high = nn.Linear(2, 4, bias=False), nn.Linear(4, 2, bias=False)
    high.weight.data = wide.weight.data.view(2, 4)
    assert model_checksum(wide) != model_checksum(high)


def test_data_is_known_by_pixels_labels_and_order_whatever_the_batch() -> None:
    _, images, labels = linear()

    def checksum(x: torch.Tensor, y: torch.Tensor, size: int = 250) -> str:
        return data_checksum(ImageSet(x, y, ("a", "b")), size)

    before = checksum(images, labels)
    assert checksum(images, labels, 7) == before
    other = images.clone()
    other[3, 0, 1, 1] += 1e-6
    relabelled = labels.clone()
    relabelled[5] = 1 - labels[5]
    changed = {checksum(other, labels), checksum(images, relabelled), checksum(images.flip(0), labels.flip(0))}
    assert len(changed | {before, checksum(images[:50], labels[:50])}) == 5
