"""Training that is killed at any change of a file or after any step, resumed, and compared with a run that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from advsphere.distributed import World, joined, leave
from advsphere.runs.config import Config
from advsphere.runs.train import train
from tests.campaign.machine import MOMENTS, WITHIN, Ended, arm, finished, forked, started
from tests.campaign.record import Record, scratch
from tests.training.tiny import left_behind, tiny_config

PART = "training killed"
TOGETHER = "two processes, one killed"


def often(name: str, **settings: object) -> Config:
    """A recipe that writes a checkpoint after each batch."""
    return tiny_config(name, checkpoint_minutes=0.0, **settings)


CASES: dict[str, Config] = {
    "Standard": often("standard-he"),
    "PGD-AT": often("pgd-at"),
    "ALP": often("alp-he"),
    "TRADES": often("trades"),
    "FastAT": often("fastat"),
    "FreeAT": often("freeat"),
    "FreeAT on the sphere": often("freeat-he"),
    "average of weights": often("pgd-at-he", ema=0.7),
    "FreeAT, average": often("freeat", ema=0.7),
    "accumulation": often("trades-he", accumulate=2),
    "FreeAT, accumulation": often("freeat-he", accumulate=2),
}
PAIRS = {"PGD-AT": often("pgd-at"), "FreeAT, average": often("freeat-he", ema=0.7)}


def whole(config: Config, folder: Path) -> Ended:
    """An undisturbed run; how many changes it made."""

    def task() -> None:
        arm(folder)
        train(config, folder)

    return forked(task)


def killed_at_change(config: Config, folder: Path, at: int, how: int) -> Ended:
    """Train, or go on, until a change of a file."""

    def task() -> None:
        arm(folder, at, how)
        train(config, folder, resume=True)

    return forked(task)


def killed_after_step(config: Config, folder: Path, step: int) -> Ended:
    """Train, or go on, until a step."""

    def task() -> None:
        train(config, folder, resume=True, stop=dying(step))

    return forked(task)


def dying(step: int, by: signal.Signals = signal.SIGKILL) -> Callable[[], bool]:
    """A `stop` hook that kills the process when it is called for that time."""
    taken = 0

    def stop() -> bool:
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), by)
        return False

    return stop


def differing(one: Path, other: Path) -> str:
    """The names of what two runs left behind differently, and of files that should not be there; "" if none."""
    a, b = left_behind(one), left_behind(other)
    names = sorted(key for key in a.keys() | b.keys() if key not in a or key not in b or a[key] != b[key])
    extra = {path.name for path in other.iterdir()} - {path.name for path in one.iterdir()}
    return ", ".join([*names[:5], *sorted(extra)])


def judged(ended: Ended, one: Path, other: Path) -> tuple[str, str]:
    """The outcome of a resume, and what it said if that matters."""
    if ended.refused:
        return "refused", ended.said
    if ended.status != 0 or "Traceback" in ended.said:
        return f"status {ended.status}", ended.said
    names = differing(one, other)
    return ("wrong: " + names, ended.said) if names else ("right", "")


def campaign(record: Record, count: int, seed: int = 0) -> None:
    """`count` kills: two of three at a change, of these two of three within it; the others after a step. Every fifth
    run is killed a second time while it goes on.
    """
    with tempfile.TemporaryDirectory(dir=scratch() or None) as place:
        for name, config in CASES.items():
            cases = [i for i in range(count) if i % len(CASES) == [*CASES].index(name)]
            if any(record.due(PART, f"{name} {i}") for i in cases):
                _one(record, name, config, Path(place, name), cases, seed)


def _one(record: Record, name: str, config: Config, place: Path, cases: list[int], seed: int) -> None:
    made = whole(config, place / "whole")
    if made.status:
        record.add(PART, f"{name} whole", f"status {made.status}", said=made.said)
        return
    steps = 4 * config.objective.replays
    for turn, i in enumerate(cases):
        if not record.due(PART, f"{name} {i}"):
            continue
        rng, folder = random.Random(f"{seed} {name} {i}"), place / str(i)
        # Moments are spread over the run, and drawn within their share of it.
        share = (turn + rng.random()) / len(cases)
        if i % 3 == 2:
            moment = f"after step {1 + int(share * steps)}"
            ended = killed_after_step(config, folder, 1 + int(share * steps))
        else:
            at, how = 1 + int(share * made.changes), rng.choice([*MOMENTS, WITHIN, WITHIN])
            moment = f"{MOMENTS[how]} change {at}"
            ended = killed_at_change(config, folder, at, how)
        if i % 5 == 4 and ended.status == -signal.SIGKILL:
            at = 1 + rng.randrange(max(1, made.changes // 3))
            moment += f", again within change {at}"
            killed_at_change(config, folder, at, WITHIN)
        died = ended.status == -signal.SIGKILL and "Traceback" not in ended.said
        again = forked(partial(train, config, folder, resume=True))
        outcome, said = judged(again, place / "whole", folder)
        details = {"said": said[-1500:]} if said else {}
        record.add(PART, f"{name} {i}", outcome, moment=moment, killed=died, within="within" in moment, **details)
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(place)


def ranks(config: Config, folder: Path, task: Callable[[int, World], None]) -> list[Ended]:
    """Two processes that train together; `task` is called in each, with its rank, before it joins."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> None:
        with joined() as world:
            task(number, world)
        leave(0)

    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    forks = [started(partial(rank, i), place=shared | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(2)]
    return [finished(fork, seconds=60) for fork in forks]


def campaign_of_pairs(record: Record, count: int, seed: int = 0) -> None:
    """`count` kills of one of two processes. The other one has to end with a line, and both go on together."""
    with tempfile.TemporaryDirectory(dir=scratch() or None) as folder:
        for name, config in PAIRS.items():
            cases = [i for i in range(count) if i % len(PAIRS) == [*PAIRS].index(name)]
            if any(record.due(TOGETHER, f"{name} {i}") for i in cases):
                _pair(record, name, config, Path(folder, name), cases, seed)


def _pair(record: Record, name: str, config: Config, place: Path, cases: list[int], seed: int) -> None:
    def go_on(folder: Path) -> Callable[[int, World], None]:
        def task(rank: int, world: World) -> None:
            if rank == 0:
                arm(folder)
            train(config, folder, resume=True, world=world)

        return task

    first, second = ranks(config, place / "whole", go_on(place / "whole"))
    if first.status or second.status:
        record.add(TOGETHER, f"{name} whole", f"status {first.status}, {second.status}", said=first.said + second.said)
        return
    for turn, i in enumerate(cases):
        if not record.due(TOGETHER, f"{name} {i}"):
            continue
        rng, folder = random.Random(f"{seed} {name} pair {i}"), place / str(i)
        share = (turn + rng.random()) / len(cases)
        victim, at, step = i // 2 % 2, 1 + int(share * first.changes), 1 + int(share * 4 * config.objective.replays)

        def dies(rank: int, world: World) -> None:
            if rank == victim == 0:  # noqa: B023
                arm(folder, at, WITHIN)  # noqa: B023
            stop = dying(step) if rank == victim == 1 else lambda: False  # noqa: B023
            train(config, folder, resume=True, world=world, stop=stop)  # noqa: B023

        ended = ranks(config, folder, dies)
        other = ended[1 - victim]
        again = ranks(config, folder, go_on(folder))
        outcome, said = judged(again[0], place / "whole", folder)
        if outcome == "right" and "Traceback" in other.said:
            outcome, said = "the other process ended with a traceback", other.said
        moment = f"the first within change {at}" if victim == 0 else f"the second after step {step}"
        died = ended[victim].status == -signal.SIGKILL and "Traceback" not in ended[victim].said
        details = {"said": said[-1500:]} if said else {}
        record.add(TOGETHER, f"{name} {i}", outcome, moment=moment, killed=died, within=victim == 0, **details)
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(place)
