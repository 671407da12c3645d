"""The batches of an epoch: ordered, read in advance by worker processes, augmented and moved to the device.

A batch depends only on (seed, epoch, ids). So the number of workers does not matter, and a resumed epoch can begin at
any batch.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from advsphere.data.augmentation import Augment
from advsphere.data.crops import ResizedCrops
from advsphere.data.images import Images
from advsphere.errors import UserError
from advsphere.rng import Rng, permutation

GRACE = 30
"""Seconds that a worker keeps running after SIGTERM."""
_PIXELS = 2**22
"""A GPU makes batches of up to this many pixel values together; they take 16 MiB."""


class Batch(NamedTuple):
    """Augmented images x (B, C, H, W) float32 in [0, 1], their labels y (B,), and their generator in this epoch."""

    x: Tensor
    y: Tensor
    rng: Rng


def epoch_batches(n: int, batch_size: int, *, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The ids of each batch, (B,) int64: n examples in the order of (seed, epoch); the last batch may be smaller.

    A last batch of one example is merged into the batch before, because batch norm needs more than one value.
    """
    *batches, last = torch.split(permutation(n, seed=seed, epoch=epoch), batch_size)
    if len(last) == 1 < batch_size and batches:
        return *batches[:-1], torch.cat([batches[-1], last])
    return *batches, last


def batches(
    images: Images, ids: Sequence[Tensor], augment: Augment, *, seed: int, epoch: int, workers: int | None = None
) -> Iterator[Batch]:
    """The batches with these ids, (B,) int64 each, in this order.

    Encoded images are decoded by `workers` processes, by default one for each core of this process's share of the
    machine. Raises UserError naming an image that cannot be read.
    """
    device, sizes = images.labels.device, [len(index) for index in ids]
    # Ids and random numbers for all batches at once: copying and drawing for each of them would keep a GPU waiting.
    whole = torch.cat([torch.empty(0, dtype=torch.int64), *ids]).to(device)
    drawn = augment.draw(Rng(seed, whole, step=epoch))
    together = _together(images, sizes)
    groups = [sizes[i : i + together] for i in range(0, len(sizes), together)]
    lengths = [sum(group) for group in groups]
    there = whole.split(lengths)
    choices = [None] * len(groups) if drawn is None else drawn.split(lengths)
    decoding = images.decodes
    reading = _Reading(images.to("cpu") if decoding else images, ids if decoding else there, augment, seed, epoch)
    read = _read(reading, _processes(images, len(ids), workers), device)
    for group, index, choice, pixels in zip(groups, there, choices, read, strict=True):
        if isinstance(pixels, UserError):
            raise pixels
        x = augment.apply(pixels.to(device, non_blocking=True), choice)
        y = images.labels.index_select(0, index)
        yield from map(Batch, x.split(group), y.split(group), Rng(seed, index, step=epoch).split(group))


def _together(images: Images, sizes: Sequence[int]) -> int:
    """How many batches are made at once. Small images on a GPU take as many launches for one batch as for several."""
    if images.decodes or images.labels.device.type == "cpu":
        return 1
    return max(1, _PIXELS // max(1, math.prod(images.shape) * max(sizes, default=1)))


@dataclass(frozen=True, eq=False)
class _Reading(Dataset["Tensor | UserError"]):
    """The work of the worker processes: the stored pixels (B, C, H, W) of each batch by its number."""

    images: Images
    ids: Sequence[Tensor]
    augment: Augment
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, b: int) -> Tensor | UserError:
        ids = self.ids[b]
        area = self.augment.min_area
        crops = None if area is None else ResizedCrops.of(Rng(self.seed, ids.cpu(), step=self.epoch), area)
        try:
            return self.images.stored(ids, crops)[0]
        except UserError as error:
            return error  # `DataLoader` would add a traceback to its message


def _processes(images: Images, batches: int, workers: int | None) -> int:
    if not images.decodes:
        return 0
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return min(workers, batches)


def _read(reading: _Reading, workers: int, device: torch.device) -> Iterator[Tensor | UserError]:
    if not workers:
        yield from map(reading.__getitem__, range(len(reading)))
        return
    loader: Iterable[Tensor | UserError] = DataLoader(
        reading,
        batch_size=None,  # an item is a batch already
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_signals_to_the_trainer,
        generator=torch.Generator(),  # otherwise it would draw from the global one
    )
    try:
        yield from loader
        return
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        cause = " ".join(str(error).split())
    # Raise outside the handler: the traceback of the error would keep the other processes alive.
    raise UserError(
        f"a process that decodes images died ({cause}): memory may be short, or shared memory "
        "(docker run --shm-size 8g); use fewer --workers, or 0"
    )


def _leave_signals_to_the_trainer(_: int) -> None:
    """Let a worker survive Ctrl-C and SIGTERM, which reach every process of a job, until the trainer finishes its step
    and ends the worker. A worker that hangs ends after `GRACE` seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE) and None)
