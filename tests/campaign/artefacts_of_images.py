"""Images, class numbers and weights in the formats of others."""

from __future__ import annotations

import io
import pickle
import pickletools
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import deserialize, safe_open
from safetensors.torch import save_file
from torch import nn

from advsphere.corruption.published import read_published
from advsphere.corruption.severity import CORRUPTIONS
from advsphere.data import ImageSet, load_test
from advsphere.data.cifar import read_cifar
from advsphere.files import tensor_checksum
from advsphere.models import load_weights
from tests.campaign.artefact import BINARY, Artefact
from tests.corruption.pictures import pictures


def _cifar(folder: Path) -> None:
    def file(name: str, content: Mapping[bytes, object]) -> None:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))

    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.random.default_rng(i).integers(0, 256, (2, 3072), dtype=np.uint8)
        file(name, {b"data": data, b"labels": [i, (i + 3) % 10], b"batch_label": b"x"})
    file("batches.meta", {b"label_names": [f"class {i}".encode() for i in range(10)]})


def _read_cifar(folder: Path) -> Any:
    data = read_cifar("cifar10", folder)
    return _held(data.train), _held(data.test), data.note


def _held(images: Any) -> Any:
    x, y = images.batch(torch.arange(len(images)))
    assert len(x) == len(y) and int(y.max()) < len(images.classes) and int(y.min()) >= 0
    return tensor_checksum({"x": x}), y.tolist(), images.classes


def _named_as_other(path: Path, found: Any, valid: Any) -> bool:
    """The files carry no checksum; MD5 sums of the published ones say that they are others."""
    return path.name in found[2]


def _parses_as_pickle(content: bytes) -> object:
    return [*pickletools.genops(content)]


def _photos(folder: Path) -> None:
    for i, image in enumerate(pictures(4, 24)):
        place = folder / "val" / ("cat", "dog")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{i}.{('png', 'png', 'jpg', 'gif')[i]}")


def _read_photos(folder: Path) -> Any:
    images = load_test("imagefolder", folder, image_size=16)
    pixels = images.batch(torch.arange(len(images)))[0]
    return len(images), images.labels.tolist(), [tensor_checksum({"x": x}) for x in pixels]


def _other_pixels(path: Path, found: Any, valid: Any) -> bool:
    """Pillow decodes the damaged image to other pixels, of this image only. It checks no checksum of PNG."""
    different = sum(a != b for a, b in zip(found[2], valid[2], strict=True))
    return bool(found[:2] == valid[:2] and different <= 1)


def _parses_as_image(content: bytes) -> object:
    with Image.open(io.BytesIO(content)) as picture:
        return picture.size


def _shards(folder: Path) -> None:
    (folder / "val").mkdir(exist_ok=True)
    with tarfile.open(folder / "val" / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for i, image in enumerate(pictures(4, 16)):
            png = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(png, "png")
            for suffix, content in (("png", png.getvalue()), ("cls", str(i % 2).encode())):
                member = tarfile.TarInfo(f"{i:04}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _read_shards(folder: Path) -> Any:
    images = load_test("imagefolder", folder, image_size=16)
    pixels = images.batch(torch.arange(len(images)))[0]
    return len(images), images.labels.tolist(), [tensor_checksum({"x": x}) for x in pixels]


def _as_in_the_archive(path: Path, found: Any, valid: Any) -> bool:
    """The images are those of the members, with their class numbers, by an independent reader; and as for a single
    image. If whole members are cut out, the archive is valid, and the images that it now has are right.
    """
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar}
        names = [name.removesuffix(".png") for name in members if name.endswith("png")]
        files = [tar.extractfile(members[f"{name}.cls"]) for name in names]
        labels = [int(file.read()) if file else -1 for file in files]
    end = max(member.offset_data + -(-member.size // 512) * 512 for member in members.values())
    different = sum(pixels != valid[2][int(name)] for name, pixels in zip(names, found[2], strict=True))
    whole = not content[end:].strip(b"\0")  # this reader ends without a word at a header that is damaged
    return whole and found[1] == labels and different <= 1


def _parses_as_tar(content: bytes) -> object:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        return tar.getmembers()


def _index(folder: Path) -> None:
    _shards(folder)
    _read_shards(folder)


def _published(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(folder / "labels.npy", np.tile(np.arange(2), 5).astype(np.int64))
    for name in CORRUPTIONS:
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8))


def _read_published(folder: Path) -> Any:
    clean = ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), ("a", "b"))
    images = read_published(folder, clean).load("fog", 3)
    x, y = images.batch(torch.arange(len(images)))
    return len(x), y.tolist(), tensor_checksum({"x": x})


def _pixels_as_stored(path: Path, found: Any, valid: Any) -> bool:
    """The header still says what it said, so that other bytes are other pixels, and labels are as before."""
    return found[:2] == valid[:2] and path.name == "fog.npy"


def _parses_as_array(content: bytes) -> object:
    return np.load(io.BytesIO(content), allow_pickle=False)


# Weights of others.


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _weights(folder: Path) -> None:
    torch.manual_seed(0)
    state = _net().state_dict()
    torch.save({"state_dict": state, "epoch": 3}, folder / "net.pt")
    save_file(state, folder / "net.safetensors")


def _load_weights(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        net = _net()
        load_weights(net, folder / name)
        return tensor_checksum(net.state_dict())

    return read


def _values_as_stored(path: Path, found: Any, valid: Any) -> bool:
    """The numbers are those in the file, with our names and shapes. An archive has checksums, and they fit."""
    if path.suffix == ".pt":
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    else:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    net = _net()
    own = net.state_dict()
    net.load_state_dict({name.removeprefix("net."): value for name, value in state.items()}, strict=False)
    return set(own) - set(state) <= {"1.num_batches_tracked"} and found == tensor_checksum(net.state_dict())


def _parses_as_zip(content: bytes) -> object:
    return zipfile.ZipFile(io.BytesIO(content)).namelist()


OF_IMAGES: dict[str, Artefact] = {
    "CIFAR-10": Artefact(
        _cifar, ("data_batch_3", "test_batch", "batches.meta"), _read_cifar, _parses_as_pickle, BINARY, _named_as_other
    ),
    "image folder": Artefact(
        _photos, ("val/cat/0.png", "val/cat/2.jpg", "val/dog/3.gif"), _read_photos, _parses_as_image, BINARY,
        _other_pixels,
    ),
    "tar shard": Artefact(_shards, ("val/0.tar",), _read_shards, _parses_as_tar, BINARY, _as_in_the_archive),
    "corrupted images": Artefact(
        _published, ("fog.npy", "labels.npy"), _read_published, _parses_as_array, BINARY, _pixels_as_stored
    ),
    "weights": Artefact(
        _weights, ("net.safetensors",), _load_weights("net.safetensors"), deserialize, BINARY, _values_as_stored
    ),
    "pickled weights": Artefact(
        _weights, ("net.pt",), _load_weights("net.pt"), _parses_as_zip, BINARY, _values_as_stored
    ),
}  # fmt: skip
