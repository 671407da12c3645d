"""Images a second that become training batches: our data path against torchvision's, with the same number of processes.

    python benchmarks/data_path.py --data imagenet-sample --workers 1 4

Both read, decode, crop at random, resize to 224 pixels and flip: ours from single files and from shards, torchvision
(ImageFolder, RandomResizedCrop, RandomHorizontalFlip, PILToTensor, DataLoader) from single files. Nothing is trained,
and batches stay on the CPU as float32.
"""

from __future__ import annotations

import io
import os
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from comparison import show
from PIL import Image
from torch import Tensor

from advsphere.cli.arguments import parse
from advsphere.data import Augment
from advsphere.data.batching import batches, epoch_batches
from advsphere.data.encoded import EncodedImages, View
from advsphere.data.folders import scan_folder
from advsphere.data.shards import scan_shards
from advsphere.machine import processor
from advsphere.provenance import commit


@dataclass(frozen=True, kw_only=True)
class Arguments:
    data: Path
    """A folder with train/<class>/ or val/<class>/ full of photos, or one of classes."""
    workers: tuple[int, ...] = (1,)
    """Numbers of processes that decode."""
    size: int = 224
    batch_size: int = 50
    epochs: int = 5
    """How often a pass goes through the data: to start processes takes time too, and real data are more."""
    rounds: int = 2
    """Passes of each side, in turns; the fastest counts."""
    enlarged: float = 1.0
    """Times the side of the photos, for those of other cameras."""


class Pace(NamedTuple):
    """Images in a second, and of a second of the processor."""

    wall: float
    cpu: float


def ours(images: EncodedImages, options: Arguments, workers: int) -> Iterable[Tensor]:
    augment = Augment(min_area=0.08, flip=True)
    ids = [
        i
        for epoch in range(options.epochs)
        for i in epoch_batches(len(images), options.batch_size, seed=0, epoch=epoch)
    ]
    return (batch.x for batch in batches(images, ids, augment, seed=0, epoch=0, workers=workers))


def torchvisions(folder: Path, options: Arguments, workers: int) -> Iterable[Tensor]:
    from torchvision import datasets, transforms

    view = [transforms.RandomResizedCrop(options.size), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    images: Any = torch.utils.data.ConcatDataset(
        [datasets.ImageFolder(str(folder), transforms.Compose(view))] * options.epochs
    )
    loader = torch.utils.data.DataLoader(images, options.batch_size, shuffle=True, num_workers=workers)
    return (x.float().div_(255) for x, _ in loader)


def pace(read: Callable[[], Iterable[Tensor]]) -> Pace:
    """One pass; the processor's time of all processes."""
    wall, cpu = time.perf_counter(), _cpu()
    n = sum(len(x) for x in read())
    return Pace(n / (time.perf_counter() - wall), n / (_cpu() - cpu))


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def prepared(source: EncodedImages, folder: Path, enlarged: float, per_shard: int = 250) -> tuple[Path, Path]:
    """The images as one folder a class and as shards, of the same bytes."""
    encoded = [Path(image.name).read_bytes() for image in source.encoded(list(range(len(source))))]
    if enlarged != 1:
        encoded = [_enlarged(content, enlarged) for content in encoded]
    labels = source.labels.tolist()
    for i, (content, label) in enumerate(zip(encoded, labels, strict=True)):
        path = folder / "files" / f"{label:04}" / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "shards").mkdir()
    for start in range(0, len(encoded), per_shard):
        with tarfile.open(folder / "shards" / f"{start // per_shard:06}.tar", "w") as tar:
            for i in range(start, min(start + per_shard, len(encoded))):
                for name, content in ((f"{i:06}.jpg", encoded[i]), (f"{i:06}.cls", str(labels[i]).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder / "files", folder / "shards"


def _enlarged(content: bytes, times: float) -> bytes:
    image, buffer = Image.open(io.BytesIO(content)).convert("RGB"), io.BytesIO()
    image.resize((round(image.width * times), round(image.height * times)), Image.Resampling.BICUBIC).save(
        buffer, "jpeg", quality=90
    )
    return buffer.getvalue()


def main(options: Arguments) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        source = _all(options.data, options.size)
        files, shards = prepared(source, Path(name), options.enlarged)
        from_files, from_shards = _all(files, options.size), _all(shards, options.size)
        sizes = [path.stat().st_size for path in files.rglob("*.jpg")]
        print(
            f"{processor()}, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}, commit {commit()}; "
            f"{len(sizes)} photos of {sum(sizes) / len(sizes) / 1024:.0f} KiB to {options.size} pixels\n"
        )
        rows = list[list[object]]()
        for workers in options.workers:
            sides: dict[str, Callable[[], Iterable[Tensor]]] = {
                "torchvision, files": lambda w=workers: torchvisions(files, options, w),  # type: ignore[misc]
                "ours, files": lambda w=workers: ours(from_files, options, w),  # type: ignore[misc]
                "ours, shards": lambda w=workers: ours(from_shards, options, w),  # type: ignore[misc]
            }
            rounds = [{side: pace(read) for side, read in sides.items()} for _ in range(options.rounds)]
            best = {side: Pace(*map(max, zip(*(each[side] for each in rounds), strict=True))) for side in sides}
            peer = best["torchvision, files"]
            rows += [
                [workers, side, f"{p.wall:.0f}", f"{p.cpu:.0f}", f"{p.wall / peer.wall:.2f} ({p.cpu / peer.cpu:.2f})"]
                for side, p in best.items()
            ]
        show(["processes", "", "images/s", "images/s of a core", "ratio (of a core)"], rows)


def _all(folder: Path, size: int) -> EncodedImages:
    """All images of a folder, encoded; of one with train and val those of the first that is there."""
    parts = [folder / part for part in ("train", "val", "test") if (folder / part).is_dir()]
    place = parts[0] if parts else folder
    view = View(size, size)
    return scan_shards(str(place), str(place), view) if any(place.glob("*.tar")) else scan_folder(place, view)


if __name__ == "__main__":
    main(parse(Arguments, sys.argv[1:] or ["--help"], prog="data_path.py"))
