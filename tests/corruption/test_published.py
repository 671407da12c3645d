"""The published layouts: what was written is read, and what is not as published is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advsphere.corruption import SEVERITIES, Corrupted, generated, read_published, save_arrays, save_folders
from advsphere.data import ImageSet
from advsphere.errors import UserError
from tests.corruption.pictures import pictures

LABELS = torch.tensor([2, 0, 1, 2, 0])
CLEAN = ImageSet(pictures(5, 32), LABELS, ("ant", "bee", "cow"), "pets")
FEW = ("contrast", "fog")


def few(names: tuple[str, ...] = FEW) -> Corrupted:
    return Corrupted(names, {}, generated(CLEAN).load)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Two corruptions of five images as CIFAR-10-C has them."""
    save_arrays(few(), tmp_path / "C", batch_size=2)
    return tmp_path / "C"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """One corruption of five images as ImageNet-C has them, within a folder of its kind."""
    save_folders(few(("contrast",)), tmp_path / "C" / "digital", batch_size=2)
    return tmp_path / "C"


def test_generated_sets_are_the_same_in_any_part() -> None:
    whole = generated(CLEAN, seed=1).load("fog", 2)
    pixels, y = whole.batch(torch.arange(5))
    assert torch.equal(y, LABELS) and whole.classes == CLEAN.classes and whole.shape == (3, 32, 32)
    part, _ = whole.take(torch.tensor([3, 1])).batch(torch.tensor([1]))
    assert torch.equal(part[0], pixels[1])
    assert not torch.equal(pixels, generated(CLEAN, seed=2).load("fog", 2).batch(torch.arange(5))[0])
    assert len(generated(CLEAN).names) == 15 and len(generated(CLEAN, extra=True).names) == 19


def test_generated_says_where_it_comes_from() -> None:
    assert generated(CLEAN, seed=3).source == {
        "kind": "generated", "table": "CIFAR-10-C", "side": 32, "seed": 3, "frost": "procedural",
    }  # fmt: skip
    grey = ImageSet(torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(UserError, match="square colour"):
        generated(grey)


def test_arrays_are_written_as_published_and_read_again(arrays: Path) -> None:
    assert sorted(path.name for path in arrays.iterdir()) == ["contrast.npy", "fog.npy", "labels.npy"]
    labels, fog = np.load(arrays / "labels.npy"), np.load(arrays / "fog.npy")
    assert labels.tolist() == LABELS.tolist() * 5 and labels.dtype == np.uint8
    assert fog.shape == (25, 32, 32, 3) and fog.dtype == np.uint8
    read = read_published(arrays, CLEAN)
    assert read.names == ("fog", "contrast") and read.source["kind"] == "arrays"  # in the benchmark's order
    for severity in SEVERITIES:
        again, made = read.load("fog", severity), few().load("fog", severity)
        index = torch.tensor([4, 0])
        assert torch.equal(again.batch(index)[0], made.batch(index)[0])
        assert torch.equal(again.first(3).labels, LABELS[:3])


def test_the_first_images_are_read_where_fewer_are_asked_for(arrays: Path) -> None:
    read = read_published(arrays, CLEAN.first(2)).load("fog", 5)
    assert len(read) == 2
    assert torch.equal(read.batch(torch.arange(2))[0], few().load("fog", 5).batch(torch.arange(2))[0])


def test_folders_are_written_as_published_and_read_again(folders: Path) -> None:
    files = sorted(str(path.relative_to(folders)) for path in (folders / "digital" / "contrast" / "3").rglob("*.JPEG"))
    assert files[0] == "digital/contrast/3/ant/00000001.JPEG" and len(files) == 5
    read = read_published(folders, CLEAN)
    assert read.names == ("contrast",)
    images = read.load("contrast", 3)
    assert images.labels.tolist() == [0, 0, 1, 2, 2] and images.classes == CLEAN.classes
    made = few().load("contrast", 3).batch(torch.tensor([1, 4, 2, 0, 3]))[0]
    assert float((images.batch(torch.arange(5))[0] - made).abs().mean()) < 0.03  # JPEG of quality 85
    before = (folders / files[0]).stat().st_mtime_ns
    save_folders(few(("contrast",)), folders / "digital")
    assert (folders / files[0]).stat().st_mtime_ns == before


def test_classes_are_matched_by_name_and_may_be_fewer(tmp_path: Path) -> None:
    for severity in SEVERITIES:
        for name in ("bee", "cow"):
            place = tmp_path / "fog" / str(severity) / name
            place.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(place / "1.png")
    assert read_published(tmp_path, CLEAN).load("fog", 1).labels.tolist() == [1, 2]
    other = ImageSet(CLEAN.pixels, LABELS, ("ant", "bee", "dog"))
    with pytest.raises(UserError, match="has no class 'cow'"):
        read_published(tmp_path, other).load("fog", 1)


def broken(what: str, root: Path) -> None:
    """One thing wrong with a folder of arrays."""
    fog, labels = np.load(root / "fog.npy"), np.load(root / "labels.npy")
    match what:
        case "labels missing":
            (root / "labels.npy").unlink()
        case "cut short":
            (root / "fog.npy").write_bytes((root / "fog.npy").read_bytes()[:-1000])
        case "empty":
            (root / "fog.npy").write_bytes(b"")
        case "page":
            (root / "fog.npy").write_bytes(b"<html>not found</html>")
        case "float":
            np.save(root / "fog.npy", fog / np.float32(255))
        case "shape":
            np.save(root / "fog.npy", fog[:20])
        case "channels first":
            np.save(root / "fog.npy", fog.transpose(0, 3, 1, 2))
        case "labels short":
            np.save(root / "labels.npy", labels[:-1])
        case "labels float":
            np.save(root / "labels.npy", labels.astype(float))
        case "labels shuffled":
            np.save(root / "labels.npy", np.roll(labels, 1)[[*range(5), *range(5, 25)]] * np.arange(1, 26) % 3)
        case "labels of others":
            np.save(root / "labels.npy", np.tile((LABELS.numpy() + 1) % 3, 5))
        case "labels too high":
            np.save(root / "labels.npy", labels + 7)
        case "objects":
            np.save(root / "fog.npy", np.array([{"a": 1}]), allow_pickle=True)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("labels missing", r"labels\.npy is missing"),
        ("cut short", r"fog\.npy is broken or truncated"),
        ("empty", "broken or truncated"),
        ("page", "broken or truncated"),
        ("objects", "broken or truncated"),
        ("float", r"must be uint8, 0 to 255; found float32"),
        ("shape", r"must be \(25, 32, 32, 3\).*found \(20, 32, 32, 3\)"),
        ("channels first", r"found \(25, 3, 32, 32\)"),
        ("labels short", "5 N whole numbers"),
        ("labels float", "5 N whole numbers"),
        ("labels shuffled", "five severities differ"),
        ("labels of others", "differs from the labels of pets"),
        ("labels too high", "outside 0..2"),
    ],
)
def test_broken_arrays_are_refused_in_one_line(what: str, said: str, arrays: Path) -> None:
    broken(what, arrays)
    with pytest.raises(UserError, match=said) as error:
        read_published(arrays, CLEAN)
    assert "\n" not in str(error.value)


def test_broken_folders_are_refused_in_one_line(folders: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        read_published(folders / "nowhere", CLEAN)
    with pytest.raises(UserError, match="no corrupted images"):
        read_published(folders / "digital" / "contrast", CLEAN)
    (picture := next((folders / "digital" / "contrast" / "2").rglob("*.JPEG"))).write_bytes(b"\xff\xd8\xff half")
    with pytest.raises(UserError, match=picture.name):
        read_published(folders, CLEAN).load("contrast", 2)
    (folders / "digital" / "contrast" / "4").rename(folders / "digital" / "contrast" / "0")
    with pytest.raises(UserError, match="lacks severity 4"):
        read_published(folders, CLEAN)


def test_a_severity_that_could_not_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    def load(name: str, severity: int) -> ImageSet:
        return ImageSet(CLEAN.pixels, LABELS, ("ant", "bee", "b/../../../../no"), "bad")

    with pytest.raises(UserError, match="can't name a folder"):
        save_folders(Corrupted(("fog",), {}, load), tmp_path / "C")

    def stops(name: str, severity: int) -> ImageSet:
        return replace(CLEAN, pixels=CLEAN.pixels.float() / 255)  # cannot be written as they are

    with pytest.raises(TypeError):
        save_folders(Corrupted(("fog",), {}, stops), tmp_path / "C")
    assert not list(tmp_path.rglob("*.JPEG")) and not (tmp_path / "C" / "fog" / "1").exists()
