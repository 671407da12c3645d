"""The batches of an epoch: the same however they are decoded, and from wherever they begin."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advsphere.data import Augment, Images, ImageSet, load
from advsphere.data.batching import Batch, batches, epoch_batches
from advsphere.data.crops import ResizedCrops
from advsphere.data.encoded import Encoded
from advsphere.data.folders import FolderImages
from advsphere.errors import UserError
from advsphere.rng import Rng

AUGMENT = Augment(padding=1, flip=True, min_area=0.2)


@pytest.fixture
def photos(tmp_path: Path) -> FolderImages:
    """22 JPEG files of two classes, each of another size."""
    rng = np.random.default_rng(0)
    for i in range(22):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40 + i, 60 - i), Image.Resampling.BICUBIC).save(path, quality=95)
    train = load("imagefolder", tmp_path / "photos", image_size=16, crops=True).train
    assert isinstance(train, FolderImages)
    return train


def epoch(images: Images, augment: Augment = AUGMENT, *, begin: int = 0, workers: int | None = 0) -> list[Batch]:
    ids = epoch_batches(len(images), 4, seed=0, epoch=2)[begin:]
    return list(batches(images, ids, augment, seed=0, epoch=2, workers=workers))


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.x, y.x) and torch.equal(x.y, y.y) and torch.equal(x.rng.ids, y.rng.ids)
        for x, y in zip(a, b, strict=True)
    )


def test_neither_processes_nor_a_late_beginning_change_a_batch(photos: FolderImages) -> None:
    whole = epoch(photos)
    assert [len(batch.y) for batch in whole] == [4, 4, 4, 4, 4]
    for workers in (1, 2, None):
        assert same(epoch(photos, workers=workers), whole)
    assert same(epoch(photos, begin=3, workers=2), whole[3:])


def test_a_batch_is_cropped_from_the_files_then_augmented(photos: FolderImages) -> None:
    batch = epoch(photos)[1]
    ids = epoch_batches(len(photos), 4, seed=0, epoch=2)[1]
    rng = Rng(0, ids, step=2)
    assert torch.equal(batch.rng.ids, ids) and (batch.rng.seed, batch.rng.step) == (0, 2)
    crops = ResizedCrops.of(rng, 0.2)
    pixels, y = photos.stored(ids, crops)
    assert torch.equal(batch.x, AUGMENT(pixels, rng)) and torch.equal(batch.y, y)
    for i, (path, found) in enumerate(zip([photos.paths[i] for i in ids], pixels, strict=True)):
        image = Image.open(path).convert("RGB")
        left, top, width, height = crops.box(i, *image.size)
        part = image.crop((left, top, left + width, top + height)).resize((16, 16), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(part)).permute(2, 0, 1)
        assert int((found.int() - expected.int()).abs().max()) <= 1, "torch and Pillow round in other ways"


def test_images_in_memory_give_what_the_loop_always_got() -> None:
    images = load("digits").train.first(50)
    assert isinstance(images, ImageSet)
    augment = Augment(padding=1, flip=True)
    for batch, ids in zip(epoch(images, augment), epoch_batches(50, 4, seed=0, epoch=2), strict=True):
        pixels, y = images.stored(ids)
        assert torch.equal(batch.x, augment(pixels, Rng(0, ids, step=2))) and torch.equal(batch.y, y)


@pytest.mark.parametrize("together", [1, 3, 100])
def test_batches_made_together_are_those_made_one_by_one(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU makes them: several at once, of which the last may be shorter."""
    images = load("digits").train.first(30)
    augment = Augment(padding=1, flip=True)
    alone = epoch(images, augment)
    monkeypatch.setattr("advsphere.data.batching._together", lambda images, sizes: together)
    for one, other in zip(epoch(images, augment), alone, strict=True):
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y) and torch.equal(one.rng.ids, other.rng.ids)
        assert one.x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one.rng.uniform((5,), "start"), other.rng.uniform((5,), "start"))


def test_images_in_memory_are_cropped_too() -> None:
    images = load("digits").train.first(20)
    augment = Augment(min_area=0.08)
    for batch, ids in zip(epoch(images, augment), epoch_batches(20, 4, seed=0, epoch=2), strict=True):
        crops = ResizedCrops.of(Rng(0, ids, step=2), 0.08)
        assert torch.equal(batch.x, crops(images.stored(ids)[0]).float() / 255)
        assert not torch.equal(batch.x, images.batch(ids)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_one_line_wherever_it_is_read(photos: FolderImages, workers: int) -> None:
    Path(photos.paths[7]).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot read the image .*\.jpg \(.*\): replace or remove it") as caught:
        epoch(photos, workers=workers)
    assert "\n" not in str(caught.value)


class Deadly(FolderImages):
    """Sends itself a signal where its sixth image is read."""

    number: int

    def encoded(self, index: list[int]) -> list[Encoded]:
        if 5 in index:
            os.kill(os.getpid(), self.number)
        return super().encoded(index)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_the_trainers(photos: FolderImages, number: int) -> None:
    deadly = type("Deadly", (Deadly,), {"number": number})
    images = deadly(*(getattr(photos, field.name) for field in fields(photos)))
    assert same(epoch(images, workers=2), epoch(photos))


def test_a_process_that_dies_is_one_line(photos: FolderImages, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(*_: object, **__: object) -> Iterator[torch.Tensor]:
        yield photos.stored(torch.arange(4))[0]
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Bus error.\nIt is out of memory")

    monkeypatch.setattr(sys.modules["advsphere.data.batching"], "DataLoader", dying)
    with pytest.raises(UserError, match=r"a process that decodes images died .*Bus error.*--workers") as caught:
        epoch(photos, workers=2)
    assert "\n" not in str(caught.value)


def test_an_empty_batch_is_one_too(photos: FolderImages) -> None:
    none = torch.empty(0, dtype=torch.int64)
    (batch,) = batches(photos, [none], AUGMENT, seed=0, epoch=0, workers=0)
    assert batch.x.shape == (0, 3, 16, 16) and batch.y.shape == (0,)


def test_global_randomness_is_untouched(photos: FolderImages) -> None:
    before = torch.get_rng_state()
    epoch(photos, workers=1)
    assert torch.equal(torch.get_rng_state(), before)
