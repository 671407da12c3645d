"""Two processes that train together, one of which is killed: the other one ends with a line, and both go on."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from advsphere.distributed import World, joined, leave
from advsphere.runs.config import Config
from advsphere.runs.train import train
from tests.campaign.killing import dying, judged
from tests.campaign.machine import WITHIN, Ended, arm, finished, started
from tests.campaign.record import Record, scratch
from tests.campaign.subjects import often, training

PART = "training of two processes, one killed"
PAIRS = {"PGD-AT": often("pgd-at"), "FreeAT, average": often("freeat-he", ema=0.7)}


def together(task: Callable[[World], object]) -> list[Ended]:
    """Two processes in one world, each of which runs the task."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def rank() -> None:
        with joined() as world:
            task(world)
        leave(0)

    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    forks = [started(rank, place=shared | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(2)]
    return [finished(fork, seconds=60) for fork in forks]


def kill_one(record: Record, count: int, seed: int = 0) -> None:
    """`count` kills, in turn of the first process within a change of a file and of the second one after a step."""
    with tempfile.TemporaryDirectory(dir=scratch() or None) as place:
        for number, (name, config) in enumerate(PAIRS.items()):
            cases = [*range(number, count, len(PAIRS))]
            if any(record.due(PART, f"{name} {i}") for i in cases):
                _each(record, name, config, Path(place, str(number)), cases, seed)


def _each(record: Record, name: str, config: Config, place: Path, cases: list[int], seed: int) -> None:
    def run(folder: Path, *, dies: int | None = None, at: int = 0, step: int = 0) -> list[Ended]:
        def task(world: World) -> None:
            if world.first:
                arm(folder, at if dies == 0 else 0, WITHIN)
            stop = dying(step) if dies == world.rank == 1 else lambda: False
            train(config, folder, resume=True, world=world, stop=stop)

        return together(task)

    whole = run(place / "whole")
    if any(one.status for one in whole):
        record.add(PART, f"{name} whole", "it failed", said="".join(one.said for one in whole))
        return
    for turn, i in enumerate(cases):
        if not record.due(PART, f"{name} {i}"):
            continue
        rng, folder, victim = random.Random(f"{seed} {name} pair {i}"), place / str(i), i // len(PAIRS) % 2
        share = (turn + rng.random()) / len(cases)
        at, step = 1 + int(share * whole[0].changes), 1 + int(share * 4 * config.objective.replays)
        ended = run(folder, dies=victim, at=at, step=step)
        first, _ = run(folder)
        outcome, said = judged(first, training(config), place / "whole", folder)
        if outcome == "right" and "Traceback" in ended[1 - victim].said:
            outcome, said = "the other process ended with a traceback", ended[1 - victim].said
        outcome = "they do not go on" if outcome == "refused" else outcome
        died = ended[victim].status == -signal.SIGKILL and "Traceback" not in ended[victim].said
        moment = f"the second after step {step}" if victim else f"the first within change {at}"
        details = {"said": said[-1500:]} if said else {}
        record.add(PART, f"{name} {i}", outcome, moment=moment, killed=died, within=not victim, **details)
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(place)
