"""Several processes as one run: they divide the work, exchange values, and fail together.

torchrun starts the processes and sets their ranks in the environment. Without torchrun the world is this process.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread
from typing import Any, NoReturn, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from advsphere.errors import UserError, in_one_line
from advsphere.files import differences, some
from advsphere.heartbeat import Exchanges, Heartbeat

__all__ = ["World", "joined"]

POLL_SECONDS = 0.5
"""Interval in which a process checks whether another one failed."""

PATIENCE_SECONDS = 10.0
"""Time that a failed process waits for the first one to print the error."""

T = TypeVar("T")

_exchanges = Exchanges()


@dataclass(frozen=True)
class World:
    """The processes of one run, as one of them sees it; `World()` is a single process.

    All ranks must call a method at the same point, `share` excepted.

    Attributes:
        rank: This process, 0 to size - 1. Only rank 0, the first, writes and prints.
        size: The number of processes.
        local_rank: The number of this process on its machine, and of its GPU.
        backend: The backend of torch.distributed; empty for a single process.
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
        """This rank's part of n items, by `cut`.

        Args:
            n: The number of items.

        Returns:
            The part, as a slice of 0..n-1.
        """
        return cut(n, self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over the ranks.

        Args:
            values: The tensor, of the same shape on all ranks.

        Returns:
            The sum, with the same bits on all ranks; exact for whole numbers.
        """
        if self.size == 1:
            return values
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        with _exchanges.one():
            dist.all_gather(gathered, values.contiguous())
        return torch.stack(gathered).sum(0)

    def gather(self, value: T) -> list[T]:
        """Collect a value from each rank.

        Args:
            value: Anything that can be pickled.

        Returns:
            The values in the order of ranks on the first rank, an empty list on the others.
        """
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.first else None
        with _exchanges.one():
            dist.gather_object(value, values)
        return values or []

    def from_first(self, value: T) -> T:
        """Send the first rank's value to all.

        Args:
            value: Anything that can be pickled; ignored on the other ranks.

        Returns:
            The first rank's value.
        """
        values = [value]
        if self.size > 1:
            with _exchanges.one():
                dist.broadcast_object_list(values)
        return values[0]

    def require_same(self, values: Mapping[str, Any], what: str) -> None:
        """Compare the values of all ranks. Ranks that differ would train apart, or wait for each other for ever.

        Args:
            values: JSON-able values.
            what: What they are, for the message, such as "settings".

        Raises:
            UserError: On all ranks, if a rank has other values than the first one.
        """
        held = self.gather(values)
        changes = [(rank, str(c)) for rank, other in enumerate(held) for c in differences(held[0], other)]
        if told := self.from_first([f"{change} on rank {rank}" for rank, change in changes]):
            raise UserError(
                f"the processes were started with different {what}: {some(told, 3)}; start all with the same"
            )

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.sum(torch.zeros(1))


def cut(n: int, parts: int) -> list[slice]:
    """Cut n items into contiguous parts whose sizes differ by at most 1, larger ones first."""
    size, rest = divmod(n, parts)
    starts = [part * size + min(part, rest) for part in range(parts + 1)]
    return [slice(*pair) for pair in pairwise(starts)]


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started, for the duration of a with block.

    Tensors on a CPU are sent by gloo, those on a GPU by nccl. Only the first rank prints: `sys.stdout` and `sys.stderr`
    of the others are silent. All ranks leave together. An error that leaves the block on any rank ends all processes
    within seconds. The first rank then prints it to stderr, a UserError in one line and any other error with its
    traceback. The exit status is 1, or that of a SystemExit. A rank that the others wait for is named after 300 s, or
    ADVSPHERE_HANG_SECONDS, with the function in which it is. A rank that shows no sign of life for as long, because it
    was stopped or its machine is gone, ends the run.

    Yields:
        The world; a single process without torchrun.

    Raises:
        UserError: If a machine has more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    backend = "gloo"
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {local_rank} of this machine has no GPU, because there are only {torch.cuda.device_count()}: "
                f"use torchrun --nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    shared, rank, size = next(rendezvous("env://"))
    store = _fresh_store(shared, rank, size)
    # A rank may wait for another one without limit. `_watch` finds out if the other one fails.
    heartbeat = Heartbeat(store, rank, size, _exchanges, every=POLL_SECONDS)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(days=365))
    world = World(rank, size, local_rank, backend)
    over = Event()
    watcher = Thread(target=_watch, args=(store, world, heartbeat, over), daemon=True)
    watcher.start()
    leaving: SystemExit | None = None
    with ExitStack() as silence:
        if not world.first:
            nowhere = silence.enter_context(Path(os.devnull).open("w"))
            silence.enter_context(redirect_stdout(nowhere))
            silence.enter_context(redirect_stderr(nowhere))
        try:
            yield world
            world.barrier()
        except BaseException as error:
            code = error.code if isinstance(error, SystemExit) else 1
            if code:
                over.set()
                watcher.join()  # the watcher may be reporting another rank's failure, which ends this process
                _end(store, world, code if isinstance(code, int) else 1, _message(error))
            leaving = error if isinstance(error, SystemExit) else None
    over.set()
    watcher.join()
    dist.destroy_process_group()
    if leaving is not None:
        raise leaving


def leave(status: int) -> None:
    """End this process at once if it is one of several; otherwise do nothing. Call it as the last statement.

    If several processes end in the ordinary way, torch's own threads abort about one in fifty (torch 2.11, gloo), and
    torchrun would report a failure of the run.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _fresh_store(store: Store, rank: int, size: int) -> Store:
    """An empty part of torchrun's store, which outlives its processes (torch 2.11).

    Otherwise restarted processes would find the addresses, and the failure, of the previous ones.
    """
    mine = uuid4().hex
    if rank > 0:
        store.set(f"asked by {rank}", mine)
        prefix = store.get(f"answer to {mine}").decode()
        store.set(f"{prefix} found by {rank}", "")
        return PrefixStore(prefix, store)
    missing = list(range(1, size))
    while missing:
        for other in missing:
            if store.check([f"asked by {other}"]):  # the process may be dead, but then an answer does no harm
                store.set(f"answer to {store.get(f'asked by {other}').decode()}", mine)
        time.sleep(POLL_SECONDS / 10)
        missing = [other for other in missing if not store.check([f"{mine} found by {other}"])]
    return PrefixStore(mine, store)


def _watch(store: Store, world: World, heartbeat: Heartbeat, over: Event) -> None:
    """Check until `over` is set whether another rank failed or stands still, and then end this process too."""
    while not over.wait(POLL_SECONDS):
        try:
            failed = store.check(["failed"])
            if not failed and (still := heartbeat.beat()):
                _end(store, world, 1, still)
            if not failed and world.first and (late := heartbeat.late()):
                print(f"note: {late}", file=sys.stderr)
        except RuntimeError:  # the process that hosted the store is gone, so this run is over
            failed = not over.wait(POLL_SECONDS)
        if failed:
            _end(store, world, 1)


def _end(store: Store, world: World, status: int, message: str = "") -> NoReturn:
    """End this process after the first rank has printed the message, unless another rank failed before.

    SystemExit would not do, because the main thread and the destructors may wait for ranks that are gone.
    """
    try:
        store.compare_set("failed", "", message)
        if world.first:
            message = store.get("failed").decode()
            if message:
                print(f"error: {message}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            store.set("said", "")
            time.sleep(2 * POLL_SECONDS)  # the others must read it from the store, which may end with this process
        until = time.monotonic() + PATIENCE_SECONDS
        while not (told := store.check(["said"])) and time.monotonic() < until:
            time.sleep(POLL_SECONDS / 10)
        if message and not told:  # the first rank is the one that stands still
            print(f"error: {message}", file=sys.__stderr__, flush=True)
    finally:
        os._exit(status)


def _message(error: BaseException) -> str:
    """The message that the first rank prints about an error of this one."""
    if isinstance(error, SystemExit):  # its reason was printed where it was raised
        return ""
    if said := in_one_line(error):
        return said
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, dist.DistError) or "gloo" in str(error):
        return (
            "another process of this run is gone (killed, or out of memory); run the same command again to continue, "
            "or let torchrun restart it with --max-restarts"
        )
    return "".join(traceback.format_exception(error)).rstrip()
