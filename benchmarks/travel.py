"""What travels to a machine without a network, and back: images, packages, rows, logs and a checkpoint."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from advsphere.data import Dataset
from advsphere.data.images import ImageSet
from advsphere.errors import UserError

LIMIT = 64 * 2**20
"""Bytes that may travel: the tracked files of the repository and the pack."""
ROOM = 40 * 2**20
"""Bytes for the images."""
QUALITIES = (98, 95, 90, 85, 80, 75)
"""Of JPEG, with full resolution of colour. The best that fits is taken."""
TEST = 1000
"""Test images that travel, unchanged."""
ROWS, COLUMNS = 25, 40
"""Images in one JPEG. Its blocks are 8 pixels wide, so that neighbours do not run into each other."""
MISSING = ("tyro", "docstring-parser", "shtab", "typeguard", "cattrs")
"""Packages that the usual images with PyTorch for GPUs lack."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
IMAGES, WHEELS, PEERS = "cifar10.npz", "wheels", "peers"
FILES, PART = 8, 15 * 2**20
"""Files that come home, and bytes of one."""

Pixels = NDArray[np.uint8]


def pack(folder: Path, data: Dataset, constraints: Path, peers: Path, python: str) -> list[str]:
    """Write everything that must travel into a new folder; returns what to say. Raises UserError over the limit."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    said = [pack_images(folder / IMAGES, data)]
    fetch_wheels(folder / WHEELS, constraints, python)
    if (peers / "pyautoattack").is_dir():
        # Its modules import each other by relative names, so the package may have the official name.
        shutil.copytree(
            peers / "pyautoattack",
            folder / PEERS / "autoattack",
            ignore=shutil.ignore_patterns("__pycache__", "examples"),
        )
    else:
        said.append(f"no official AutoAttack: {peers} has no pyautoattack, which `make test` installs")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    around = _tracked()
    said.append(f"{folder}: {size / 2**20:.1f} MiB, and {around / 2**20:.1f} MiB of tracked files; the limit is 64 MiB")
    if size + around > LIMIT:
        raise UserError(f"{said[-1]}: too much to travel; make room in the images or leave out wheels")
    return said


def pack_images(path: Path, data: Dataset) -> str:
    """Training images as JPEG mosaics of the best quality that fits, the first test images unchanged."""
    train, test = (_pixels(images) for images in (data.train.in_memory(), data.test.first(TEST).in_memory()))
    for quality in QUALITIES:
        mosaics = [
            _encoded(part, quality) for part in np.split(train, range(ROWS * COLUMNS, len(train), ROWS * COLUMNS))
        ]
        if sum(map(len, mosaics)) <= ROOM or quality == QUALITIES[-1]:
            break
    back = np.concatenate([*map(_decoded, mosaics)])[: len(train)]
    error = float(((back.astype(np.float32) - train) ** 2).mean())
    arrays: dict[str, NDArray[Any]] = {
        "test": test,
        "test_labels": data.test.first(TEST).labels.numpy(),
        "train_labels": data.train.labels.numpy(),
        "classes": np.array(data.train.classes),
    }
    arrays |= {f"train_{i}": np.frombuffer(mosaic, np.uint8) for i, mosaic in enumerate(mosaics)}
    np.savez_compressed(path, allow_pickle=False, **arrays)
    decibel = 10 * np.log10(255**2 / error) if error else np.inf
    return (
        f"{len(train):,} training images as JPEG of quality {quality} ({decibel:.1f} dB from those on disk), "
        f"{len(test):,} test images unchanged"
    )


def unpack_images(path: Path, folder: Path) -> Path:
    """Write the images in the layout of CIFAR-10's published folder, and return the folder to name as data root."""
    place = folder / "cifar-10-batches-py"
    place.mkdir(parents=True, exist_ok=True)
    with np.load(path) as packed:
        mosaics = sorted((name for name in packed if re.fullmatch(r"train_\d+", name)), key=lambda n: int(n[6:]))
        labels = packed["train_labels"]
        train = np.concatenate([_decoded(packed[name].tobytes()) for name in mosaics])[: len(labels)]
        for i, index in enumerate(np.array_split(np.arange(len(labels)), 5)):
            _write_batch(place / f"data_batch_{i + 1}", train[index], labels[index])
        _write_batch(place / "test_batch", packed["test"], packed["test_labels"])
        names = [str(name) for name in packed["classes"]]
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=2))
    return folder


def _write_batch(path: Path, pixels: Pixels, labels: NDArray[np.int64]) -> None:
    content = {"data": pixels.reshape(len(pixels), -1), "labels": labels.tolist()}
    path.write_bytes(pickle.dumps(content, protocol=2))


def _pixels(images: ImageSet) -> Pixels:
    if images.pixels.dtype != torch.uint8 or images.shape != (3, 32, 32):
        raise UserError(f"{images.name} has images of {images.shape}, {images.pixels.dtype}; CIFAR-10 can be packed")
    found: Pixels = images.pixels.numpy()
    return found


def _encoded(pixels: Pixels, quality: int) -> bytes:
    whole = np.zeros((ROWS * COLUMNS, 3, 32, 32), np.uint8)
    whole[: len(pixels)] = pixels
    mosaic = whole.reshape(ROWS, COLUMNS, 3, 32, 32).transpose(0, 3, 1, 4, 2).reshape(ROWS * 32, COLUMNS * 32, 3)
    file = io.BytesIO()
    Image.fromarray(mosaic).save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
    return file.getvalue()


def _decoded(mosaic: bytes) -> Pixels:
    whole = np.asarray(Image.open(io.BytesIO(mosaic)))
    apart = whole.reshape(ROWS, 32, COLUMNS, 32, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(apart.reshape(ROWS * COLUMNS, 3, 32, 32))


def fetch_wheels(folder: Path, constraints: Path, python: str) -> None:
    """Download the wheels of the missing packages, in our pinned versions, for another Python on Linux."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *("--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms),
        *("-c", str(constraints), "-d", str(folder), *MISSING),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"pip could not fetch the wheels: {done.stderr.strip().splitlines()[-1]}")


def _tracked() -> int:
    """Bytes of the repository's tracked files; 0 outside a checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True)
    paths = [Path(name) for name in listed.stdout.split("\0") if name]
    return sum(path.stat().st_size for path in paths if path.is_file())


def collect(work: Path, out: Path) -> list[str]:
    """Put the logs and the smallest checkpoint of the runs into the folder that is brought home, in files of at most 15
    MiB; returns what to say.
    """
    logs = out / "logs.tar.gz"
    with tarfile.open(logs, "w:gz") as archive:
        for path in _logs(work):
            archive.add(path, path.relative_to(work))
    said = [f"{logs.name}: {logs.stat().st_size / 2**20:.1f} MiB"]
    for old in out.glob("checkpoint-*"):
        old.unlink()
    checkpoints = sorted((work / "runs").glob("*/best.safetensors"), key=lambda path: (path.stat().st_size, path))
    free = FILES - sum(1 for path in out.iterdir() if path.is_file())
    if not checkpoints:
        return said
    smallest = checkpoints[0]
    content, name = (
        smallest.read_bytes(),
        f"checkpoint-{re.sub(r'[^A-Za-z0-9._-]', '-', smallest.parent.name)}.safetensors",
    )
    parts = [content[at : at + PART] for at in range(0, len(content), PART)]
    if len(parts) > free:
        return [*said, f"{smallest} stays: it takes {len(parts)} files, and {free} are left"]
    for i, part in enumerate(parts):
        (out / f"{name}.{i}").write_bytes(part)
    return [*said, f"{name}: {len(content) / 2**20:.1f} MiB in {len(parts)} parts; join them with cat {name}.*"]


def _logs(work: Path) -> Iterator[Path]:
    for path in sorted(work.rglob("*")):
        with contextlib.suppress(OSError):
            if path.suffix in (".json", ".jsonl", ".yaml", ".txt") and path.stat().st_size < PART:
                yield path
