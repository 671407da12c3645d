"""Data sets of other libraries become image sets: the same pixels and labels, or an error that names the item."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from advsphere.data import Augment, ImageSet, from_dataset, images
from advsphere.data.batching import batches
from advsphere.data.crops import ResizedCrops
from advsphere.data.encoded import View
from advsphere.data.folders import scan_folder
from advsphere.data.torch_datasets import DatasetImages
from advsphere.errors import UserError
from advsphere.rng import Rng

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]
EXPECTED = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


class Listed(list[Any]):
    """A map-style data set with the names of its classes."""

    classes = ("cat", "dog", "owl")


def pairs(convert: Any = lambda pixels: pixels) -> Listed:
    return Listed((convert(pixels), label) for pixels, label in zip(PIXELS, LABELS, strict=True))


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        lambda pixels: pixels,
        lambda pixels: pixels[::-1].copy()[::-1],
        lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
    ],
    ids=["picture", "array", "flipped array", "tensor"],
)
def test_every_kind_of_image_keeps_its_pixels(convert: Any) -> None:
    found = from_dataset(pairs(convert))
    assert isinstance(found, ImageSet) and torch.equal(found.pixels, EXPECTED)
    assert found.labels.tolist() == LABELS and found.classes == Listed.classes and found.name == "Listed"


def test_float_images_and_grey_ones_are_kept() -> None:
    found = from_dataset([(torch.full((5, 4), 0.25, dtype=torch.float64), np.int32(1))], name="mine")
    assert found.shape == (1, 5, 4) and found.classes == ("0", "1") and found.name == "mine"
    assert torch.equal(found.batch(torch.tensor([0]))[0], torch.full((1, 1, 5, 4), 0.25))
    grey = from_dataset([(Image.fromarray(PIXELS[0]).convert("L"), 0)])
    assert grey.shape == (1, 5, 4)


def test_dictionaries_and_the_names_of_their_features_as_in_hugging_face() -> None:
    class HuggingFace(list[Any]):
        features: ClassVar = {"image": None, "label": SimpleNamespace(names=["cat", "dog", "owl"])}

        def with_format(self, kind: None) -> dict[str, list[int]]:
            return {"label": LABELS}

    for key in ("image", "img"):
        items = [{key: Image.fromarray(pixels), "label": y} for pixels, y in zip(PIXELS, LABELS, strict=True)]
        found = from_dataset(HuggingFace(items))
        assert isinstance(found, ImageSet) and torch.equal(found.pixels, EXPECTED)
        assert found.classes == ("cat", "dog", "owl")


def test_a_pair_of_tensors_and_what_torch_makes_of_it() -> None:
    labels = torch.tensor(LABELS, dtype=torch.int32)
    for found in (from_dataset((EXPECTED, labels)), from_dataset(TensorDataset(EXPECTED, labels))):
        assert isinstance(found, ImageSet) and torch.equal(found.pixels, EXPECTED)
        assert found.labels.tolist() == LABELS and found.classes == ("0", "1", "2")
    assert from_dataset(found) is found


def test_a_subset_has_the_labels_and_classes_of_its_data_set() -> None:
    dataset = pairs()
    dataset.targets = LABELS  # type: ignore[attr-defined]
    found = from_dataset(Subset(dataset, [4, 2]))
    assert found.labels.tolist() == [1, 2] and found.classes == Listed.classes
    assert torch.equal(found.stored(torch.arange(2))[0], EXPECTED[[4, 2]])


def test_a_large_data_set_is_read_when_a_batch_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MEMORY_LIMIT", 10)
    found, index = from_dataset(pairs()), torch.tensor([5, 1])
    assert isinstance(found, DatasetImages) and found.shape == (3, 5, 4) and found.dtype == torch.uint8
    assert torch.equal(found.stored(index)[0], EXPECTED[index]) and found.stored(index)[1].tolist() == [2, 1]
    other_numbers = replace(found, labels=2 - found.labels)
    assert other_numbers.stored(index)[1].tolist() == [0, 1], "another numbering of the classes"
    assert torch.equal(found.take(index).to("cpu").in_memory().pixels, EXPECTED[index])
    memory = ImageSet(EXPECTED, torch.tensor(LABELS), Listed.classes)
    for augment in (Augment(padding=1, flip=True), Augment(min_area=0.3)):
        for workers in (0, 1):
            ours, theirs = (
                list(batches(each, [index], augment, seed=0, epoch=1, workers=workers)) for each in (found, memory)
            )
            assert torch.equal(ours[0].x, theirs[0].x) and torch.equal(ours[0].y, theirs[0].y)


def test_pictures_of_any_size_are_resized_and_cropped_as_files_are(tmp_path: Path) -> None:
    pictures = [Image.fromarray(PIXELS[i]).resize((20 + i, 30)) for i in range(4)]
    for i, picture in enumerate(pictures):
        (tmp_path / "train" / "ab"[i // 2]).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "train" / "ab"[i // 2] / f"{i}.png")
    files = scan_folder(tmp_path / "train", View(8, 9))
    items = [(picture, i // 2) for i, picture in enumerate(pictures)]
    small, large = (from_dataset(items, image_size=8, resize=9, crops=crops) for crops in (False, True))
    assert isinstance(small, ImageSet) and isinstance(large, DatasetImages)
    index, drawn = torch.arange(4), ResizedCrops.of(Rng(0, torch.arange(4)), 0.1)
    assert torch.equal(small.stored(index)[0], files.stored(index)[0])
    assert torch.equal(large.stored(index, drawn)[0], files.stored(index, drawn)[0])


class Mixing(Listed):
    def __init__(self) -> None:
        super().__init__(pairs(lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1)))


def mixed(items: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = default_collate(items)
    one_hot = torch.nn.functional.one_hot(y, 3).float()
    return x, (one_hot + one_hot.flip(0)) / 2


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(pairs())


def as_tensors(picture: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def collated(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """As in the tutorials of Hugging Face."""
    labels = torch.tensor([item["label"] for item in items])
    return {"pixel_values": torch.stack([as_tensors(item["image"]) for item in items]) / 255, "labels": labels}


def test_the_items_of_a_data_loader_in_the_order_of_its_data_set() -> None:
    pictures = [{"image": Image.fromarray(pixels), "label": y} for pixels, y in zip(PIXELS, LABELS, strict=True)]
    tensors = TensorDataset(EXPECTED, torch.tensor(LABELS))
    for loader in (
        DataLoader(tensors, batch_size=4, shuffle=True),
        DataLoader(
            pairs(), collate_fn=lambda items: (torch.stack([as_tensors(x) for x, _ in items]), [y for _, y in items])
        ),
        DataLoader(tensors, batch_sampler=BatchSampler(SequentialSampler(tensors), 2, drop_last=True)),
    ):
        found = from_dataset(loader)
        assert isinstance(found, ImageSet) and torch.equal(found.pixels, EXPECTED) and found.labels.tolist() == LABELS
    found = from_dataset(DataLoader(pictures, batch_size=2, collate_fn=collated))
    assert torch.equal(found.batch(torch.arange(6))[0], EXPECTED / 255) and found.labels.tolist() == LABELS
    subset = from_dataset(DataLoader(tensors, sampler=SubsetRandomSampler([5, 2])))
    assert torch.equal(subset.stored(torch.arange(2))[0], EXPECTED[[2, 5]])


def test_soft_labels_are_kept_and_have_a_most_likely_class() -> None:
    soft = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    for source in ((EXPECTED[:2], soft), (EXPECTED[:2].numpy(), soft.numpy()), list(zip(EXPECTED, soft, strict=False))):
        found = from_dataset(source)
        assert torch.equal(found.labels, soft) and found.classes == ("0", "1", "2")
        assert found.hard().labels.tolist() == [0, 2] and found.hard().hard().labels.tolist() == [0, 2]
        assert torch.equal(found.few(1).labels, soft[:1])
    dataset = Listed(zip(EXPECTED, soft, strict=False))
    dataset.targets = soft  # type: ignore[attr-defined]
    assert torch.equal(from_dataset(dataset).labels, soft)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "there are no images"),
        ([(PIXELS[0], 0), (PIXELS[0][:3], 0)], r"image 1 is \(3, 3, 4\) of torch.uint8, .* one shape, .* image_size"),
        ([(EXPECTED[0] * 1.0, 0)], "divide by 255, or give them as uint8"),
        ([(EXPECTED[0].long(), 0)], "must be uint8 or floating point"),
        ([(torch.from_numpy(PIXELS[0]).repeat(2, 1, 1), 0)], r"\(10, 4, 3\): tensors must be \(channels, height"),
        ([("cat.png", 0)], "image 0 of list is a str: give a PIL image, a tensor or a numpy array"),
        ([(Image.fromarray(np.full((6, 6), 1000, np.uint16)), 0)], "more than 8 bits per pixel"),
        ([(PIXELS[0], torch.tensor([0, 1]))], r"label of item 0 must be a class number or the probabilities \(K,\)"),
        ([(PIXELS[0], torch.tensor([0.5, 0.9]))], "must be probabilities: at least 0, with a sum of 1"),
        ([(PIXELS[0], torch.eye(2)[0]), (PIXELS[1], 1)], "some labels are class numbers and some probabilities"),
        ((PIXELS, np.array(LABELS)), r"\(6, 5, 4, 3\) has the channels last: .*transpose\(0, 3, 1, 2\) for arrays"),
        ((EXPECTED.numpy().astype(float), np.array(LABELS)), "divide by 255, or give them as uint8"),
        (DataLoader(Mixing(), collate_fn=mixed), "makes soft labels, so it mixes images .* train in your own loop"),
        (
            DataLoader(Listed(), sampler=WeightedRandomSampler([1.0] * 6, 6)),
            "draws its items by a WeightedRandomSampler",
        ),
        (DataLoader(Endless()), "Endless is no map-style data set"),
        ([(PIXELS[0], "cat")], "label of item 0 must be a class number .*, found 'cat': number the classes from 0"),
        ([(PIXELS[0], -1)], "label -1 of image 0 is outside"),
        ([{"picture": PIXELS[0], "label": 0}], r'"image" and "label"; found the entries picture, label: rename them'),
        ([(PIXELS[0], 0, 1)], "found a tuple of 3"),
        (
            (PIXELS, LABELS, PIXELS, LABELS),
            r"give \(images, labels\), or .*; found arrays: 4",
        ),
        ((EXPECTED, ["cat"] * 6), r"no numbers: classes, labels = numpy.unique\(names, return_inverse=True\)"),
        ((EXPECTED[:, 0], LABELS), r"found \(6, 5, 4\): give grey images one channel, images\[:, None\]"),
        ((EXPECTED[:0], []), "there are no images"),
        ([PIXELS[0]], "images need labels"),
    ],
)
def test_what_is_wrong_is_said_with_its_cure(items: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        from_dataset(items)
    assert "\n" not in str(caught.value)


def test_random_transforms_labels_that_differ_and_sizes_for_tensors_are_refused() -> None:
    class Random(Listed):
        """Changes its third image, as a random flip may leave the first ones as they are."""

        def __getitem__(self, i: Any) -> Any:
            return torch.rand(3, 4, 4, generator=generator) if i == 2 else torch.zeros(3, 4, 4), 0

    generator = torch.Generator().manual_seed(0)
    with pytest.raises(UserError, match=r"change between two reads: .*TrainSettings.augment"):
        from_dataset(Random([0] * 4))
    dataset = pairs()
    dataset.targets = LABELS[::-1]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="item 0 has label 0, but the data set lists 2 for it"):
        from_dataset(dataset)
    dataset.targets = ["where", "the", "boxes", "are", "kept", "."]
    assert from_dataset(dataset).labels.tolist() == LABELS
    with pytest.raises(UserError, match="image_size resizes PIL images only"):
        from_dataset(pairs(), image_size=4)
    with pytest.raises(UserError, match="no map-style data set"):
        from_dataset(iter(pairs()))  # type: ignore[arg-type]
