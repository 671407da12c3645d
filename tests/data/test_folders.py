from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as reference

from advsphere.data import ImageSet, encoded, from_dataset, image_folder, images, load, load_test
from advsphere.data.crops import ResizedCrops
from advsphere.data.encoded import View
from advsphere.data.folders import FolderImages
from advsphere.errors import UserError
from tests.data.layouts import write_image


def reds(images: ImageSet | FolderImages | object) -> list[int]:
    assert isinstance(images, ImageSet | FolderImages)
    return images.stored(torch.arange(len(images)))[0][:, 0, 0, 0].tolist()


def test_train_and_val_are_read_in_the_order_of_names(folder: Path) -> None:
    data = load("imagefolder", folder, image_size=6)
    assert isinstance(data.train, ImageSet) and data.train.shape == (3, 6, 6) and data.train.pixels.dtype == torch.uint8
    assert data.train.classes == data.test.classes == ("cat", "dog")
    assert reds(data.train) == [0, 1, 2, 10, 11, 12] and data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert reds(data.test) == [0, 1, 10, 11] and data.test.labels.tolist() == [0, 0, 1, 1]
    assert isinstance(data.test, ImageSet)
    assert bool((data.train.pixels[:, 2] == 100).all()) and not data.test.pixels[:, 1:].any()
    assert (data.train.name, data.test.name, data.note) == ("pets train", "pets val", "")


def test_a_test_folder_serves_as_well_as_val(folder: Path) -> None:
    (folder / "val").rename(folder / "test")
    assert load("imagefolder", folder, image_size=6).test.name == "pets test"


def test_deeper_folders_and_upper_case_names_are_found_and_other_files_are_not(folder: Path) -> None:
    write_image(folder / "train" / "cat" / "more" / "deep" / "x.PNG", np.full((6, 6, 3), 77, np.uint8))
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "train" / "cat" / "._0.png").write_text("what macOS leaves behind")
    (folder / "train" / ".cache").mkdir()
    train = load("imagefolder", folder, image_size=6).train
    assert sorted(reds(train)) == [0, 1, 2, 10, 11, 12, 77] and train.classes == ("cat", "dog")


@pytest.mark.parametrize(("width", "height"), [(40, 24), (24, 40), (33, 33), (16, 16), (10, 12)])
def test_images_are_resized_and_cropped_as_torchvision_does(folder: Path, width: int, height: int) -> None:
    ramp = np.linspace(0, 200, width)[None, :] + np.linspace(0, 50, height)[:, None]
    pixels = np.stack([ramp, 250 - ramp, ramp.clip(100, 150)], -1).astype(np.uint8)
    write_image(folder / "a" / "0" / "x.png", pixels)
    write_image(folder / "a" / "1" / "x.png", pixels)
    found = image_folder(folder / "a", 16).stored(torch.tensor([0]))[0][0]
    image = reference.resize(Image.fromarray(pixels), [16], reference.InterpolationMode.BILINEAR)
    expected = reference.pil_to_tensor(reference.center_crop(image, [16]))
    # torchvision rounds the crop to whole pixels after resizing: half a pixel of a ramp with steps up to 20.
    assert int((found.int() - expected.int()).abs().max()) <= 10
    if width == height:
        assert torch.equal(found, expected)


def test_a_centre_of_the_resized_image_is_torchvisions(folder: Path) -> None:
    ramp = np.linspace(0, 200, 90)[None, :] + np.linspace(0, 50, 60)[:, None]
    pixels = np.stack([ramp, 250 - ramp, ramp.clip(100, 150)], -1).astype(np.uint8)
    for name in "01":
        write_image(folder / "a" / name / "x.png", pixels)
    found = image_folder(folder / "a", 28, resize=32).stored(torch.tensor([0]))[0][0]
    image = reference.resize(Image.fromarray(pixels), [32], reference.InterpolationMode.BILINEAR)
    expected = reference.pil_to_tensor(reference.center_crop(image, [28]))
    assert int((found.int() - expected.int()).abs().max()) <= 4, "half a pixel of a ramp with steps up to 6"
    assert load("imagefolder", folder, image_size=4, resize=6).test.shape == (3, 4, 4)


@pytest.mark.parametrize("resize", [15, 0])
def test_a_centre_that_is_larger_than_the_image_is_refused(folder: Path, resize: int) -> None:
    with pytest.raises(UserError, match=f"a centre of 16 pixels can't be cropped from images .* resized to {resize}"):
        image_folder(folder / "train", 16, resize=resize)


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A photograph of 640x480 for 64 pixels is decoded at a half."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    for name in "01":
        path = folder / "a" / name / "x.jpg"
        path.parent.mkdir(parents=True)
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=95)
    images = FolderImages(torch.tensor([0]), ("0", "1"), "a", View(64, 64), (str(path),), str(folder))
    index, whole = torch.tensor([0]), ResizedCrops(torch.full((1, 22), 0.999), 1.0)
    third = ResizedCrops(torch.full((1, 22), 0.5), 0.1)
    sizes: list[tuple[int, int]] = []
    convert = Image.Image.convert
    monkeypatch.setattr(Image.Image, "convert", lambda self, mode: sizes.append(self.size) or convert(self, mode))
    small = [images.stored(index)[0], images.stored(index, whole)[0], images.stored(index, third)[0]]
    monkeypatch.setattr(encoded, "GAP", 1000)
    full = [images.stored(index)[0], images.stored(index, whole)[0], images.stored(index, third)[0]]
    assert sizes == [(320, 240), (320, 240), (320, 240), *[(640, 480)] * 3]
    for a, b in zip(small, full, strict=True):
        assert (a.float() - b.float()).abs().mean() < 2, "grey levels, where neighbours differ by 10"


def test_an_image_that_has_the_size_keeps_its_pixels(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for name in "01":
        write_image(folder / "a" / name / "x.png", pixels)
    assert np.array_equal(image_folder(folder / "a", 16).stored(torch.tensor([1]))[0][0].permute(1, 2, 0), pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_usual_kind_of_image_becomes_rgb(folder: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    for name in "01":
        path = folder / "a" / name / f"x.{suffix}"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    images = image_folder(folder / "a", 8)
    assert images.shape == (3, 8, 8) and bool((images.stored(torch.tensor([0]))[0] >= 254).all())


def test_a_flat_folder_has_a_tenth_held_out_with_a_note(tmp_path: Path) -> None:
    for i in range(50):
        write_image(tmp_path / "flat" / "ab"[i % 2] / f"{i:02}.png", np.full((4, 4, 3), i, np.uint8))
    data = load("imagefolder", tmp_path / "flat", image_size=4)
    train, test = reds(data.train), reds(data.test)
    assert len(test) == 5 and sorted(train + test) == list(range(50))
    assert data.test.labels.tolist() == [i % 2 for i in test]
    assert "flat has no val or test folder: 5 of its 50 images are held out" in data.note
    again = load("imagefolder", tmp_path / "flat", image_size=4)
    assert reds(again.test) == test == reds(load_test("imagefolder", tmp_path / "flat", image_size=4))


def test_a_train_folder_alone_has_a_tenth_held_out(folder: Path) -> None:
    (folder / "val").rename(folder.parent / "elsewhere")
    data = load("imagefolder", folder, image_size=6)
    assert sorted(reds(data.train) + reds(data.test)) == [0, 1, 2, 10, 11, 12] and len(data.test) == 1 and data.note
    assert reds(load_test("imagefolder", folder, image_size=6)) == reds(data.test)


def test_the_test_part_can_be_had_without_a_train_folder(folder: Path) -> None:
    expected = reds(load("imagefolder", folder, image_size=6).test)
    assert reds(load_test("imagefolder", folder, image_size=6)) == expected
    (folder / "train").rename(folder.parent / "elsewhere")
    assert reds(load_test("imagefolder", folder, image_size=6)) == expected
    with pytest.raises(
        UserError, match=r"pets/val has no train folder beside it: put the training images into .*train"
    ):
        load("imagefolder", folder, image_size=6)


def test_sets_too_large_for_memory_are_decoded_on_access(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = load("imagefolder", folder, image_size=6)
    monkeypatch.setattr(images, "MEMORY_LIMIT", 6 * 3 * 6 * 6 - 1)  # one byte less than train needs
    lazy = load("imagefolder", folder, image_size=6)
    assert isinstance(lazy.train, FolderImages) and isinstance(lazy.test, ImageSet)
    index = torch.tensor([5, 0, 3])
    for ours, theirs in zip(lazy.train.batch(index), in_memory.train.batch(index), strict=True):
        assert torch.equal(ours, theirs)
    assert lazy.train.shape == in_memory.train.shape and lazy.train.classes == in_memory.train.classes
    assert reds(lazy.train.take(index)) == [12, 0, 10] and lazy.train.take(index).labels.tolist() == [1, 0, 1]
    assert reds(lazy.train.first(2)) == [0, 1]
    for a, b in zip(lazy.train.split(2, seed=0), in_memory.train.split(2, seed=0), strict=True):
        assert reds(a) == reds(b)
    assert torch.equal(lazy.train.in_memory().pixels, in_memory.train.stored(torch.arange(6))[0])
    assert lazy.train.to("cpu").paths == lazy.train.paths


@pytest.mark.parametrize("content", [b"", b"not an image", None])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_unreadable_image_is_named(folder: Path, content: bytes | None, suffix: str) -> None:
    path = folder / "train" / "dog" / f"broken{suffix}"
    if content is None:  # cut in the middle
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        write_image(path, noise)
        content = path.read_bytes()[: len(path.read_bytes()) // 2]
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot read the image .*dog/broken{suffix} \(.*\): replace or remove it"):
        load("imagefolder", folder, image_size=6)


def test_images_of_16_bits_are_refused_rather_than_clipped(folder: Path) -> None:
    path = folder / "train" / "dog" / "deep.png"
    Image.fromarray(np.full((6, 6), 1000, np.uint16)).save(path)
    with pytest.raises(UserError, match=r"deep.png \(more than 8 bits per pixel, I;16.*; convert it"):
        load("imagefolder", folder, image_size=6)


def test_an_empty_class_folder_is_named(folder: Path) -> None:
    (folder / "train" / "bird").mkdir()
    (folder / "val" / "bird").mkdir()
    with pytest.raises(
        UserError, match=r"no images in .*train/bird, looked for .*jpg.*: add some, or remove the folder"
    ):
        load("imagefolder", folder, image_size=6)


@pytest.mark.parametrize("read", [load, load_test])
def test_class_folders_that_differ_are_named(folder: Path, read: object) -> None:
    (folder / "val" / "dog").rename(folder / "val" / "dogs")
    with pytest.raises(UserError, match=r"class folders differ: only .*train has dog; only .*val has dogs: give both"):
        read("imagefolder", folder, image_size=6)  # type: ignore[operator]


def test_a_missing_image_size_names_that_of_the_first_image(folder: Path) -> None:
    with pytest.raises(UserError, match=r"needs an image size .* first image is 6x6, so try image_size=6"):
        load("imagefolder", folder)


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 0 class folders: it needs at least two"):
        load("imagefolder", tmp_path, image_size=6)
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        image_folder(tmp_path / "nowhere", 6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_their_camera_was(orientation: int, tmp_path: Path) -> None:
    """A camera stores the pixels as its sensor saw them, and the turn as EXIF data."""
    upright = Image.new("RGB", (16, 16))
    upright.paste((255, 255, 255), (0, 0, 8, 4))  # a mark in the upper left corner, wider than high
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        stored.save(tmp_path / name / "photo.png", exif=exif)
    pixels = image_folder(tmp_path, 16).batch(torch.tensor([0, 1]))[0]
    assert (pixels[:, :, :4, :8] == 1).all() and pixels.sum() == 2 * 3 * 4 * 8


def test_all_broken_images_are_named_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{i}.png")
    for broken in ("a/1.png", "b/0.png", "b/2.png"):
        (tmp_path / broken).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read 3 images, .*a/1\.png .*b/0\.png .*b/2\.png .*: replace"):
        image_folder(tmp_path, 4)


def test_files_that_are_skipped_are_named(tmp_path: Path) -> None:
    for part, name in ((part, name) for part in ("train", "val") for name in ("a", "b")):
        (tmp_path / part / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / part / name / "0.gif")
    assert load("imagefolder", tmp_path, image_size=4).note == ""
    for other in ("train/a/movie.mp4", "val/b/Thumbs.db", "val/b/.hidden"):
        (tmp_path / other).touch()
    note = load("imagefolder", tmp_path, image_size=4).note
    assert "movie.mp4" in note and "Thumbs.db" in note and "hidden" not in note


def test_images_know_their_files(folder: Path) -> None:
    names = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]
    decoded, memory = load("imagefolder", folder, image_size=6, crops=True).train, image_folder(folder / "train", 6)
    theirs = from_dataset(Subset(ImageFolder(folder / "train"), [5, 0, 2]), image_size=6)
    assert isinstance(decoded, FolderImages) and isinstance(memory, ImageSet)
    chosen = torch.tensor([4, 1])
    for found in (decoded, memory):
        assert list(found.files) == names and list(found.take(chosen).files) == [names[4], names[1]]
    assert theirs.files == (names[5], names[0], names[2])
    assert from_dataset((torch.rand(2, 1, 3, 3), torch.tensor([0, 1]))).files is None
    with pytest.raises(UserError, match="2 images but 1 file names"):
        ImageSet(torch.rand(2, 1, 3, 3), torch.tensor([0, 1]), ("a", "b"), files=("x",))
