"""Archives in the layout of WebDataset: the same images as from a folder, in any order, from disks and from URLs."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from advsphere.data import Augment, ImageSet, load, load_test
from advsphere.data import shards as module
from advsphere.data.batching import batches, epoch_batches
from advsphere.data.shards import ShardImages
from advsphere.errors import UserError

Members = list[tuple[str, bytes]]


def png(value: int) -> bytes:
    """An 8x6 image of one colour."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def tar(members: Members) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def examples(first: int, last: int, classes: int = 3) -> Members:
    """Image i is filled with i and is of class i modulo `classes`; odd ones say so in JSON."""
    members = Members()
    for i in range(first, last):
        label = i % classes
        members.append((f"./{i:06}.png", png(i)))
        members.append(
            (f"./{i:06}.json", json.dumps({"label": label}).encode()) if i % 2 else (f"./{i:06}.cls", b"%d\n" % label)
        )
    return members


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "advsphere" / "shards"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """root/train with 12 images in two archives, root/val with 4."""
    root = tmp_path / "shards"
    for part, name, members in (
        ("train", "000000", examples(0, 7)), ("train", "000001", examples(7, 12)), ("val", "000000", examples(20, 24)),
    ):  # fmt: skip
        (root / part).mkdir(parents=True, exist_ok=True)
        (root / part / f"{name}.tar").write_bytes(tar(members))
    return root


def values(images: object) -> list[int]:
    assert isinstance(images, ImageSet | ShardImages)
    return images.stored(torch.arange(len(images)))[0][:, 0, 0, 0].tolist()


def test_an_image_folder_may_be_shards(shards: Path) -> None:
    data = load("imagefolder", shards, image_size=6)
    assert isinstance(data.train, ImageSet) and data.train.shape == (3, 6, 6) and data.note == ""
    assert values(data.train) == list(range(12)) and data.train.labels.tolist() == [i % 3 for i in range(12)]
    assert values(data.test) == [20, 21, 22, 23] and data.test.labels.tolist() == [2, 0, 1, 2]
    assert (data.train.name, data.test.name) == ("shards train", "shards val")
    assert data.train.classes == data.test.classes == ("0", "1", "2")
    assert values(load_test("imagefolder", shards, image_size=6)) == [20, 21, 22, 23]


def test_images_are_taken_in_any_order_and_by_other_processes(shards: Path) -> None:
    train = load("imagefolder", shards, image_size=6, crops=True).train
    assert isinstance(train, ShardImages)
    assert values(train.take(torch.tensor([11, 0, 7]))) == [11, 0, 7]
    assert [name.partition("/")[0] for name in train.take(torch.tensor([11, 0])).files] == ["000001.tar", "000000.tar"]
    assert train.in_memory().files == train.files and len({*train.files}) == 12
    assert train.take(torch.tensor([11, 0, 7])).labels.tolist() == [2, 0, 1]
    ids = epoch_batches(12, 5, seed=0, epoch=0)
    read = list(batches(train, ids, Augment(min_area=0.5), seed=0, epoch=0, workers=2))
    assert [(b.x[:, 0, 0, 0] * 255).round().int().tolist() for b in read] == [index.tolist() for index in ids]
    assert [b.y.tolist() for b in read] == [[i % 3 for i in index.tolist()] for index in ids]


def test_archives_at_a_url_are_read_through_fsspec(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    for path in shards.rglob("*.tar"):
        memory.pipe_file(f"/bucket/{path.relative_to(shards)}", path.read_bytes())
    try:
        data = load("imagefolder", Path("memory://bucket"), image_size=6)  # a Path keeps one slash only
        assert values(data.train) == list(range(12)) and values(data.test) == [20, 21, 22, 23]
        assert data.train.name == "bucket train"
        with pytest.raises(UserError, match=r"no .tar shards in memory://elsewhere/train, "):
            load("imagefolder", Path("memory://elsewhere"), image_size=6)
    finally:
        memory.rm("/bucket", recursive=True)


def test_what_cant_be_opened_names_the_extra() -> None:
    with pytest.raises(UserError, match=r"nosuch://bucket can't be opened .*pip install 'advsphere\[cloud\]'"):
        load("imagefolder", Path("nosuch://bucket"), image_size=6)


def test_classes_may_have_names(shards: Path) -> None:
    (shards / "classes.txt").write_text("cat\ndog\nbird\nfish\n\n")
    assert load("imagefolder", shards, image_size=6).test.classes == ("cat", "dog", "bird", "fish")
    (shards / "classes.txt").write_text("cat\n")
    with pytest.raises(UserError, match=r"classes.txt names 1 classes, but a label is 2: name one class per line"):
        load("imagefolder", shards, image_size=6)


def test_both_parts_have_the_classes_of_the_larger(shards: Path) -> None:
    (shards / "val" / "000000.tar").write_bytes(tar(examples(0, 2)))
    assert load("imagefolder", shards, image_size=6).test.classes == ("0", "1", "2")


def test_without_a_test_folder_a_tenth_is_held_out(shards: Path) -> None:
    for flat in (shards / "train", shards):
        (shards / "val" / "000000.tar").unlink(missing_ok=True)
        data = load("imagefolder", flat, image_size=6)
        assert sorted(values(data.train) + values(data.test)) == list(range(12)) and len(data.test) == 1
        assert "has no val or test folder: 1 of its 12 images are held out" in data.note
        assert values(load_test("imagefolder", flat, image_size=6)) == values(data.test)


def test_an_archive_is_indexed_once_and_again_when_it_changed(
    shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    scan = module._scan_archive

    def noted(archive: str, tar: tarfile.TarFile) -> module.Index:
        opened.append(Path(archive).parent.name)
        return scan(archive, tar)

    monkeypatch.setattr(module, "_scan_archive", noted)
    for _ in range(2):
        load("imagefolder", shards, image_size=6)
    assert sorted(opened) == ["train", "train", "val"] and len(list(cache.glob("*.json"))) == 3
    (shards / "val" / "000000.tar").write_bytes(tar(examples(30, 35)))
    assert values(load("imagefolder", shards, image_size=6).test) == [30, 31, 32, 33, 34]
    for damaged in cache.glob("*.json"):
        damaged.write_text("{")
    assert values(load("imagefolder", shards, image_size=6).test) == [30, 31, 32, 33, 34]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive at all" * 100, r"cannot read the archive .*bad.tar \(.*\): replace or remove it"),
        (tar(examples(0, 3))[:1000], r"cannot read the archive .*bad.tar \(.*\): replace or remove it"),
        (b"", r"cannot read the archive .*bad.tar \(.*\): replace or remove it"),
        (tar([("a.txt", b"")]), r"bad.tar has no images, looked for .*jpg"),
        (tar([("a.png", png(0)), ("b.png", png(0)), ("b.cls", b"0")]), r"a.png has no label \(1 such images\): add"),
        (tar([("d/a.cls", b"0")]), r"d/a has a label but no image \(1 such labels\): add an image"),
        (tar([("a.png", png(0)), ("a.cls", b"cat")]), r"a.cls holds no class number: write one from 0 on"),
        (tar([("a.png", png(0)), ("a.json", b'{"class": 3}')]), r"a.json holds no class number"),
        (tar([("a.png", png(0)), ("a.cls", b"-1")]), r"a.cls holds no class number"),
        (tar([("a.png", b"no image"), ("a.cls", b"0")]), r"cannot read the image a.png of .*bad.tar .*: replace or"),
    ],
)
def test_what_is_broken_is_one_line(shards: Path, content: bytes, message: str) -> None:
    (shards / "train" / "bad.tar").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load("imagefolder", shards, image_size=6)
    assert "\n" not in str(caught.value)


def test_an_archive_that_shrank_since_is_told(shards: Path) -> None:
    train = load("imagefolder", shards, image_size=6, crops=True).train
    (shards / "train" / "000001.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read ./000011.png of .*000001.tar .*has the archive changed"):
        train.stored(torch.tensor([11]))


def test_a_missing_image_size_names_that_of_the_first_image(shards: Path) -> None:
    with pytest.raises(UserError, match=r"train needs an image size .* first image is 8x6, so try image_size=6"):
        load("imagefolder", shards)


def test_test_archives_alone_are_no_training_set(shards: Path) -> None:
    for archive in (shards / "train").iterdir():
        archive.unlink()
    with pytest.raises(UserError, match=r"val has no train folder beside it"):
        load("imagefolder", shards, image_size=6)
    assert values(load_test("imagefolder", shards, image_size=6)) == [20, 21, 22, 23]


def test_no_damage_loses_an_image_silently(shards: Path) -> None:
    """A damaged header looks like the end of an archive to `tarfile`."""
    whole, path = tar(examples(0, 4)), shards / "train" / "000000.tar"
    files, refused = fsspec.filesystem("file"), 0
    places = range(0, len(whole), 67)
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            index = module._index(files, str(path))
        except UserError:
            refused += 1
        else:
            assert len(index.names) == 4
    assert len(places) // 5 < refused < len(places)
    for cut in range(0, len(whole), 512):
        path.write_bytes(whole[:cut])
        if any(whole[cut:]):
            with pytest.raises(UserError, match=r"damaged or cut off|cannot read the archive|has no"):
                module._index(files, str(path))
    path.write_bytes(whole + tar(examples(4, 6)))
    with pytest.raises(UserError, match="damaged or cut off at byte"):
        module._index(files, str(path))
