"""Who takes which part, and what all agree on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of one run, as one of them sees it; `World()` is a world of one.

    rank: this process, 0 to size - 1; rank 0, the first, alone writes and prints. local_rank: its number on this
    machine, and that of its GPU. backend: as torch.distributed names it, "" in a world of one. Every method is called
    by all ranks, at the same point.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    backend: str = ""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This rank's part of n things in a row, by `cut`; calls nobody."""
        return cut(n, self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks of a tensor of one shape, the same bits on all of them; exact for whole numbers."""
        return values if self.size == 1 else torch.stack(self._gathered(values)).sum(0)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in their order, on the first rank; elsewhere an empty list."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, values)
        return values or []

    def from_first(self, value: T) -> T:
        """What the first rank gave; the others' values are not looked at."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.sum(torch.zeros(1))

    def _gathered(self, values: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(gathered, values.contiguous())
        return gathered


def cut(n: int, parts: int) -> list[slice]:
    """n things in a row as contiguous parts, none of which is larger than one before it, nor smaller by more than 1."""
    size, rest = divmod(n, parts)
    starts = [part * size + min(part, rest) for part in range(parts + 1)]
    return [slice(*pair) for pair in pairwise(starts)]
