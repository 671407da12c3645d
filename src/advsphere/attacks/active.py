"""The examples that are still attacked, and how the others leave the batch without waiting for the device.

On a CPU an example leaves as soon as it is done, because passes cost everything and reading a tensor costs nothing. On
other devices every decision of the host waits for the device. There the examples that are done are carried along,
masked, and leave together every `EVERY` steps. Attacks keep all state per example, so both ways give the same images.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from advsphere.threat import over_pixels

FREE_READS = frozenset({"cpu"})
"""Types of devices whose tensors the host reads at no cost."""

EVERY = 8
"""On other devices, the number of steps after which the examples that are done leave the batch."""


def reads_are_free(device: torch.device) -> bool:
    """Whether the host can read a tensor of this device without waiting."""
    return device.type in FREE_READS


class Active:
    """The rows of a batch that an attack still works on.

    `index` (b,) holds their positions in the batch, and `open` (b,) bool which of them are not done.
    """

    def __init__(self, index: Tensor, *, every: int | None = None) -> None:
        self.index, self.open = index, torch.ones_like(index, dtype=torch.bool)
        self.every = every or (1 if reads_are_free(index.device) else EVERY)
        self.steps = 0

    def __len__(self) -> int:
        return len(self.index)

    def drop(self, done: Tensor) -> Tensor | None:
        """Note which rows are done now, (b,) bool. If rows leave the batch, returns the numbers of those that stay."""
        self.open = self.open & ~done
        self.steps += 1
        if self.steps % self.every:
            return None
        rows = self.open.nonzero().squeeze(1)
        if len(rows) == len(self):
            return None
        self.index, self.open = self.index[rows], self.open[rows]
        return rows


def targets_at_once(targets: int, room: int, done: Tensor) -> Iterator[tuple[range, Tensor]]:
    """The ranks of the targets to try side by side, each with the images (b,) that are not `done`, (B,) bool, by then.

    The first target comes alone, because nearly every success is there. Of the others as many go together as make a
    batch of at most `room` images, because a small batch takes about as long as a single image.
    """
    rank = 0
    while rank < targets and len(index := (~done).nonzero().squeeze(1)) > 0:
        many = min(targets - rank, max(1, room // len(index))) if rank else 1
        yield range(rank, rank + many), index
        rank += many


def put(store: Tensor, index: Tensor, mask: Tensor, values: Tensor) -> None:
    """Set store[index] to values (b, ...) where the mask (b,) holds. No position may appear twice in index (b,)."""
    if reads_are_free(mask.device):
        rows = mask.nonzero().squeeze(1)
        store[index[rows]] = values[rows]
    else:
        store[index] = torch.where(over_pixels(mask, values), values, store[index])
