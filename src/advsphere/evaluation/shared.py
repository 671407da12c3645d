"""One evaluation by several processes, each with a ledger of its own beside the main one, which takes them over in the
end.

What any of them holds is kept: after an interruption, the next call takes it over first, whatever its number of
processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from advsphere.distributed import World
from advsphere.errors import UserError
from advsphere.evaluation.ledger import Ledger

Begin = Callable[..., Ledger]
"""`Ledger.create_or_resume` with all bound but its path and `beside`."""


@contextmanager
def whole(path: Path | None, begin: Begin) -> Iterator[Ledger]:
    """The main ledger, once it holds what the parts beside it do; they are then gone. path: None is in memory."""
    with begin(path) as book:
        if path is not None and (parts := sorted(path.parent.glob(_part(path, "*").name))):
            with ExitStack() as stack:
                book.take_over([stack.enter_context(begin(part)) for part in parts])
            for part in parts:
                part.unlink()
        yield book


@contextmanager
def own_part(path: Path | None, begin: Begin, world: World) -> Iterator[Ledger]:
    """The ledger that this process of several writes, and in which it reads what the main one holds too.

    All ranks enter and leave it together; in between they are on their own. Raises UserError without a path, and where
    the ranks do not mean the same evaluation.
    """
    if path is None:
        raise UserError("several processes put their results together in a file; give the ledger a path")
    if world.first:
        with whole(path, begin):
            pass
    world.barrier()
    begin(path).close()
    with begin(_part(path, str(world.rank)), beside=path) as book:
        yield book
    world.barrier()


def _part(path: Path, rank: str) -> Path:
    return path.with_name(f"{path.stem}.rank-{rank}{path.suffix}")


# FOLDED batches: The unit of work of an evaluation, a batch of fixed membership: how large it is, and which
# FOLDED batches: process takes which.

LARGEST = 250
MOST_VALUES = 2**22
"""Numbers in a batch of images: what deep networks keep of it for a gradient then stays at a few GiB."""


def usual_batch_size(shape: Sequence[int]) -> int:
    """How many images of this shape (C, H, W) make a batch where nobody says: 250, and 27 at 224 pixels."""
    return max(1, min(LARGEST, MOST_VALUES // math.prod(shape)))


def assign_batches(batches: int, done: Iterable[set[int]], world: World) -> list[int]:
    """The batches that this process takes, in order. done: for each attack, the batches that are finished already.

    Every rank gets as many as any other, give or take one, of those that are equally far; by the same rule on all.
    """
    finished = [*done]
    order = sorted(range(batches), key=lambda batch: sum(batch in one for one in finished))
    return sorted(order[world.rank :: world.size])
