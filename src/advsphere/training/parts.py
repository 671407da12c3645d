"""How a global batch is divided: over ranks, and within a rank into parts that follow each other.

Every rank and part has fixed positions in the batch, whatever its size, so that what is carried from batch to batch by
position (free training's perturbation) stays where it is. A batch that is short, an epoch's last one, leaves less to
the last ranks, or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from advsphere.distributed import World, cut
from advsphere.errors import UserError


class Part(NamedTuple):
    """What one forward and backward takes. number: which part of a full batch, None for a stand-in. places: in this
    rank's share. images: how many of the batch, 0 for a stand-in.
    """

    number: int | None
    places: slice
    images: int


@dataclass(frozen=True)
class Division:
    """Batches of up to `batch_size` images, or one more, over the ranks of a world, and a rank's share in `accumulate`
    parts.

    even: take equally many parts on every rank, as layers that wait for each other need (synchronised batch norm).
    Raises UserError where a full batch has too few images for that.
    """

    batch_size: int
    accumulate: int = 1
    world: World = World()
    even: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < self.world.size * self.accumulate:
            raise UserError(
                f"a batch of {self.batch_size} images can't be divided over {self.world.size} processes in "
                f"{self.accumulate} parts each: use fewer of them or a larger --batch-size"
            )

    def share(self, batch: Tensor) -> Tensor:
        """The entries of a global batch that this rank takes. Where none is left, the first one stands in: all ranks
        have to take part in every step, this one with weight 0.
        """
        positions = self.positions(self.world.rank)
        mine = batch[positions[0].start : positions[-1].stop]
        return mine if len(mine) else batch[:1]

    def positions(self, rank: int) -> list[slice]:
        """Of a rank's parts in a full batch. The very last part has room for one more, since `epoch_batches` lets a
        single image that is left over join the batch before.
        """
        share = cut(self.batch_size, self.world.size)[rank]
        pieces = cut(share.stop - share.start, self.accumulate)
        stops = [share.start + piece.stop for piece in pieces]
        stops[-1] += rank == self.world.size - 1
        return [slice(share.start + piece.start, stop) for piece, stop in zip(pieces, stops, strict=True)]

    def parts(self, n: int) -> list[Part]:
        """This rank's, of a batch of n images; at least one."""
        positions = self.positions(self.world.rank)
        start = positions[0].start
        parts = [
            Part(number, slice(at.start - start, min(at.stop, n) - start), min(at.stop, n) - at.start)
            for number, at in enumerate(positions)
            if at.start < n
        ]
        # The first rank's places are filled first, so no rank has more parts than it.
        wanted = sum(at.start < n for at in self.positions(0)) if self.even else 1
        return parts + [Part(None, slice(0, 1), 0)] * (wanted - len(parts))
