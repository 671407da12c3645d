"""The unit of work of an evaluation, a batch of fixed membership: how large it is, and which process takes which."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from advsphere.distributed import World

LARGEST = 250
MOST_VALUES = 2**22
"""Numbers in a batch of images: what deep networks keep of it for a gradient then stays at a few GiB."""


def usual_batch_size(shape: Sequence[int]) -> int:
    """How many images of this shape (C, H, W) make a batch where nobody says: 250, and 27 at 224 pixels."""
    return max(1, min(LARGEST, MOST_VALUES // math.prod(shape)))


def dealt(batches: int, done: Iterable[set[int]], world: World) -> list[int]:
    """The batches that this process takes, in order. done: for each attack, the batches that are finished already.

    Every rank gets as many as any other, give or take one, of those that are equally far; by the same rule on all.
    """
    finished = [*done]
    order = sorted(range(batches), key=lambda batch: sum(batch in one for one in finished))
    return sorted(order[world.rank :: world.size])
