"""Joining the world that torchrun made, and failing together."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import NoReturn
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from advsphere.distributed.world import World
from advsphere.errors import UserError

POLL_SECONDS = 0.5
"""How often a process looks whether another one failed."""

PATIENCE_SECONDS = 10.0
"""How long a process that failed waits for the first one to say so."""


@contextmanager
def joined() -> Iterator[World]:
    """The world that torchrun made, joined until the block is left; a world of one without torchrun.

    Tensors on a CPU travel by gloo, those on a GPU by nccl. Of several ranks the first alone prints: `sys.stdout` and
    `sys.stderr` of the others are silent. All leave together. An error that leaves the block on any rank ends the
    processes of all within seconds, whatever they wait for: the first rank prints it to stderr, a UserError in one
    line and anything else with its traceback, and the exit status is 1 (that of a SystemExit is kept). Raises UserError
    where a machine has more processes than GPUs.
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
                f"process {local_rank} of this machine has no GPU of its own, there are {torch.cuda.device_count()}: "
                f"use torchrun --nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    shared, rank, size = next(rendezvous("env://"))
    store = _new_corner(shared, rank, size)
    # One rank may wait for another as long as that works: it is watched whether it fails.
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(days=365))
    world = World(rank, size, local_rank, backend)
    over = Event()
    watcher = Thread(target=_watch, args=(store, world, over), daemon=True)
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
                watcher.join()  # another rank's failure may be being told, which ends this process
                _end(store, world, code if isinstance(code, int) else 1, _told(error))
            leaving = error if isinstance(error, SystemExit) else None
    over.set()
    watcher.join()
    dist.destroy_process_group()
    if leaving is not None:
        raise leaving


def leave(status: int) -> None:
    """End this process with that exit status if it is one of several, else do nothing. To be called last of all: about
    one in fifty of several processes that end in the ordinary way is aborted by torch's own threads (torch 2.11, gloo),
    and torchrun would take that for a failure of the run.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _new_corner(store: Store, rank: int, size: int) -> Store:
    """A part of the store in which nothing is written yet. torchrun's own outlives its processes (torch 2.11): one that
    is started again would find the addresses, and the failure, of those before it.
    """
    mine = uuid4().hex
    if rank > 0:
        store.set(f"asked by {rank}", mine)
        corner = store.get(f"answer to {mine}").decode()
        store.set(f"{corner} found by {rank}", "")
        return PrefixStore(corner, store)
    missing = list(range(1, size))
    while missing:
        for other in missing:
            if store.check([f"asked by {other}"]):  # perhaps by one that is dead, whom an answer does not harm
                store.set(f"answer to {store.get(f'asked by {other}').decode()}", mine)
        time.sleep(POLL_SECONDS / 10)
        missing = [other for other in missing if not store.check([f"{mine} found by {other}"])]
    return PrefixStore(mine, store)


def _watch(store: Store, world: World, over: Event) -> None:
    """Until it is over, look whether another rank failed, and then end this process too."""
    while not over.wait(POLL_SECONDS):
        try:
            failed = store.check(["failed"])
        except RuntimeError:  # whoever kept the store is gone, so this run is
            failed = not over.wait(POLL_SECONDS)
        if failed:
            _end(store, world, 1)


def _end(store: Store, world: World, status: int, message: str = "") -> NoReturn:
    """End this process, with a message unless another rank has one, after the first rank has said it. Not by
    SystemExit: the main thread may wait for ranks that are gone, and so may the destructors.
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
            time.sleep(2 * POLL_SECONDS)  # the others look it up in a store that may end with this process
        until = time.monotonic() + PATIENCE_SECONDS
        while not store.check(["said"]) and time.monotonic() < until:
            time.sleep(POLL_SECONDS / 10)
    finally:
        os._exit(status)


def _told(error: BaseException) -> str:
    """What the first rank prints about an error of this one."""
    if isinstance(error, SystemExit):  # said already, by whoever raised it
        return ""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, dist.DistError) or "gloo" in str(error):
        return (
            "another process of this run is gone (killed, or out of memory); go on from what was kept by the same "
            "command, or let torchrun do so with --max-restarts"
        )
    return "".join(traceback.format_exception(error)).rstrip()
