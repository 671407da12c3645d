"""The batches of an epoch, augmented, on their device; image files are decoded ahead by processes of PyTorch's
`DataLoader`.

What a batch holds is a function of (seed, epoch, ids), so it does not depend on how many processes there are, and a
resumed epoch begins at any batch.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from advsphere.data.augmentation import Augment
from advsphere.data.images import Images
from advsphere.errors import UserError
from advsphere.rng import Rng

GRACE = 30
"""Seconds that a process which decodes lives on after SIGTERM."""


class Batch(NamedTuple):
    """x: (B,C,H,W) float32 in [0,1], augmented. y: (B,). rng: what else is random about these examples this epoch."""

    x: Tensor
    y: Tensor
    rng: Rng


def batches(
    images: Images, ids: Sequence[Tensor], augment: Augment, *, seed: int, epoch: int, workers: int | None = None
) -> Iterator[Batch]:
    """The batches whose examples are ids, (B,) int64 each, in this order.

    workers: processes that decode encoded images ahead, a batch each; 0 for none, one for each core of this process'
    share of the machine by default. Images in memory need none. Raises UserError naming the image that cannot be read.
    """
    reading = Reading(images.to("cpu") if images.decodes else images, ids, augment, seed, epoch)
    device = images.labels.device
    for index, pixels in zip(ids, _ahead(reading, _processes(images, len(ids), workers), device), strict=True):
        if isinstance(pixels, UserError):
            raise pixels
        index = index.to(device)
        rng = Rng(seed, index, step=epoch)
        yield Batch(augment(pixels.to(device, non_blocking=True), rng), images.labels[index], rng)


@dataclass(frozen=True, eq=False)
class Reading(Dataset["Tensor | UserError"]):
    """The pixels of each batch by its number, before what the device does to them: what the processes run."""

    images: Images
    ids: Sequence[Tensor]
    augment: Augment
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, b: int) -> Tensor | UserError:
        """(B,C,H,W). An error is returned, because `DataLoader` would raise it with a traceback in its text."""
        ids = self.ids[b]
        crops = self.augment.crops(Rng(self.seed, ids.cpu(), step=self.epoch))
        try:
            return (self.images.stored(ids) if crops is None else self.images.cropped(ids, crops))[0]
        except UserError as error:
            return error


def _processes(images: Images, batches: int, workers: int | None) -> int:
    if not images.decodes:
        return 0
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return min(workers, batches)


def _ahead(reading: Reading, workers: int, device: torch.device) -> Iterator[Tensor | UserError]:
    if not workers:
        yield from map(reading.__getitem__, range(len(reading)))
        return
    loader: Iterable[Tensor | UserError] = DataLoader(
        reading,
        batch_size=None,  # an item is a batch already
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_signals_to_the_trainer,
        generator=torch.Generator(),  # else it would draw from the global one
    )
    try:
        yield from loader
        return
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        cause = " ".join(str(error).split())
    # Not within the handler: the error's traceback would keep the other processes.
    raise UserError(
        f"a process that decodes images died ({cause}): memory may be short, or shared memory "
        "(docker run --shm-size 8g); take fewer --workers, or 0"
    )


def _leave_signals_to_the_trainer(_: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach every process of a job. The trainer answers them, and ends these when it has
    taken its step; one that is ended by SIGTERM because it hangs has the same time.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE) and None)
