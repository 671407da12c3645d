from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from advsphere.data import ImageSet
from advsphere.data.images import as_float
from advsphere.errors import UserError

CLASSES = ("a", "b", "c")


def make(n: int = 12) -> ImageSet:
    """Image i is filled with the value i; its label is i modulo 3."""
    pixels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).repeat(1, 3, 4, 5)
    return ImageSet(pixels, torch.arange(n) % 3, CLASSES, "numbered")


def test_batch_holds_the_named_examples_as_float_pixels() -> None:
    x, y = make().batch(torch.tensor([7, 0, 7]))
    assert x.dtype == torch.float32 and x.shape == (3, 3, 4, 5)
    assert torch.equal(x[:, 0, 0, 0], torch.tensor([7.0, 0.0, 7.0]) / 255)
    assert y.tolist() == [1, 0, 1]


def test_stored_pixels_stay_uint8() -> None:
    pixels, y = make().stored(torch.tensor([2, 5]))
    assert pixels.dtype == torch.uint8 and pixels[:, 0, 0, 0].tolist() == [2, 5] and y.tolist() == [2, 2]


def test_as_float_spans_zero_to_one_exactly() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_float(levels), torch.arange(256, dtype=torch.float32) / 255)
    assert torch.equal(as_float(torch.tensor([0.25], dtype=torch.float64)), torch.tensor([0.25]))


def test_float_pixels_come_back_as_they_were() -> None:
    pixels = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    x, _ = ImageSet(pixels, torch.zeros(4, dtype=torch.int64), ("a",)).batch(torch.tensor([3, 1]))
    assert torch.equal(x, pixels[[3, 1]])


def test_take_and_first_keep_examples_labels_and_names() -> None:
    images = make()
    assert len(images) == 12 and images.shape == (3, 4, 5)
    taken = images.take(torch.tensor([4, 2]))
    assert taken.pixels[:, 0, 0, 0].tolist() == [4, 2] and taken.labels.tolist() == [1, 2]
    assert taken.classes == CLASSES and taken.name == "numbered"
    assert images.first(5).pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert len(images.first(100)) == 12


def test_a_few_are_the_first_ones_or_of_all_classes() -> None:
    pixels = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1)
    mixed = ImageSet(pixels, torch.arange(12) % 3, ("a", "b", "c"))
    assert mixed.few(5).pixels.flatten().tolist() == [0, 1, 2, 3, 4]
    by_class = ImageSet(pixels, torch.arange(12) // 4, ("a", "b", "c"))
    assert by_class.few(5).pixels.flatten().tolist() == [0, 2, 4, 7, 9]
    assert by_class.few(3).labels.tolist() == [0, 1, 2] and len(by_class.few(100)) == 12
    for n in (0, -3):
        with pytest.raises(UserError, match=rf"{n} images of .* were asked for; give 1 or more"):
            mixed.few(n)


def test_to_keeps_everything_but_the_device() -> None:
    moved = make().to("cpu")
    assert torch.equal(moved.pixels, make().pixels) and torch.equal(moved.labels, make().labels)


def test_split_is_a_partition_that_depends_on_the_seed_alone() -> None:
    train, validation = make(100).split(30, seed=1)
    ids = [part.pixels[:, 0, 0, 0].tolist() for part in (train, validation)]
    assert len(ids[1]) == 30 and sorted(ids[0] + ids[1]) == list(range(100))
    assert ids[1] == sorted(ids[1]) and ids[1] != list(range(30)) and ids[1] != list(range(70, 100))
    assert make(100).split(30, seed=1)[1].pixels[:, 0, 0, 0].tolist() == ids[1]
    assert make(100).split(30, seed=2)[1].pixels[:, 0, 0, 0].tolist() != ids[1]
    other_labels = ImageSet(make(100).pixels, torch.zeros(100, dtype=torch.int64), CLASSES)
    assert other_labels.split(30, seed=1)[1].pixels[:, 0, 0, 0].tolist() == ids[1]


@pytest.mark.parametrize("validation", [0, 12, 13, -1])
def test_split_refuses_an_empty_part(validation: int) -> None:
    with pytest.raises(
        UserError,
        match=f"cannot hold out {validation} of the 12 images .* hold out 1 to 11 of",
    ):
        make().split(validation, seed=0)


def test_global_randomness_is_untouched() -> None:
    before = torch.get_rng_state()
    make().split(3, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


GOOD = torch.full((3, 1, 2, 2), 0.5)
LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (GOOD * 4 - 3.1, LABELS, r"pixels in \[0,1\]; found min -1.1 .*put the normalisation inside the model"),
        (GOOD * 2.8, LABELS, r"found min 1.4 and max 1.4: divide by 255, or give them as uint8"),
        (GOOD * 1000, LABELS, r"max 500: .*normalisation inside the model"),
        (GOOD * float("nan"), LABELS, "NaN"),
        (torch.ones(3, 1, 2, 2, dtype=torch.int64), LABELS, "must be uint8 or floating point; found torch.int64"),
        (GOOD[:, 0], LABELS, r"must be \(N, channels, height, width\); found \(3, 2, 2\)"),
        (GOOD[:0], LABELS[:0], "there are no images"),
        (GOOD, torch.tensor([0, 3, 7]), r"label 3 of image 1 is outside 0..2 \(2 such labels\)"),
        (GOOD, torch.tensor([0, 1, -1]), "label -1 of image 2 is outside 0..2"),
        (GOOD, LABELS[:2], "3 images but 2 labels"),
        (GOOD, torch.eye(3).long(), r"one int64 class number for each image.*argmax\(1\)"),
        (GOOD, LABELS.int(), r"torch.int32: use labels.long\(\)"),
    ],
)
def test_bad_input_is_named_with_its_cure(pixels: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ImageSet(pixels, labels, CLASSES, "mine")
    assert str(caught.value).startswith("mine: ") and "\n" not in str(caught.value)


def test_the_bounds_of_pixels_themselves_are_allowed() -> None:
    ImageSet(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1]), CLASSES)


def test_as_float_divides_by_a_tensor_on_the_device() -> None:
    """CUDA multiplies by the reciprocal of a host's number, which changes the bits and so every checksum."""
    divided = list[Any]()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket is torch.ops.aten.div_:
                divided.append(args[1])
            return func(*args, **(kwargs or {}))

    with Watch():
        as_float(torch.zeros(3, dtype=torch.uint8, device="meta"))
    assert [(type(d), d.device.type) for d in divided] == [(torch.Tensor, "meta")]
