"""Work that is killed at any change of a file, or after any step, and goes on: it must end as if nothing had been."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tests.campaign.machine import MOMENTS, WITHIN, Ended, arm, forked
from tests.campaign.record import Record, scratch
from tests.campaign.subjects import Subject


def dying(step: int) -> Callable[[], bool]:
    """A `stop` hook that kills the process when it is called for that time."""
    taken = 0

    def stop() -> bool:
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    return stop


def watched(subject: Subject, folder: Path, at: int = 0, how: int = WITHIN, **options: int) -> Ended:
    """Work in a folder whose changes are counted, and something happens at one of them."""

    def task() -> None:
        arm(folder, at, how, **options)
        subject.run(folder)

    return forked(task)


def judged(ended: Ended, subject: Subject, one: Path, other: Path) -> tuple[str, str]:
    """The outcome of work that went on, compared with that in the folder `one`; and what it said if that matters."""
    if ended.refused:
        return "refused", ended.said
    if ended.status != 0 or "Traceback" in ended.said:
        return f"status {ended.status}", ended.said
    try:
        differing = subject.differing(one, other)
    except Exception as error:
        return f"no result: {error}", ended.said
    return (f"wrong: {differing}", ended.said) if differing else ("right", "")


def kill(record: Record, part: str, subjects: Mapping[str, Subject], count: int, seed: int = 0) -> None:
    """Kill so many times: of three, twice at a change and once after a step, if there are steps. Of those at a change,
    three of five are within it. Every fifth is killed again while it goes on.
    """
    with tempfile.TemporaryDirectory(dir=scratch() or None) as place:
        for number, (name, subject) in enumerate(subjects.items()):
            cases = [*range(number, count, len(subjects))]
            if any(record.due(part, f"{name} {i}") for i in cases):
                _each(record, part, name, subject, Path(place, str(number)), cases, seed)


def _each(record: Record, part: str, name: str, subject: Subject, place: Path, cases: list[int], seed: int) -> None:
    place.mkdir()
    whole = watched(subject, place / "whole")
    if whole.status:
        record.add(part, f"{name} whole", f"status {whole.status}", said=whole.said)
        return
    for turn, i in enumerate(cases):
        if not record.due(part, f"{name} {i}"):
            continue
        rng, folder = random.Random(f"{seed} {name} {i}"), place / str(i)
        # Moments are spread over the work, and drawn within their share of it.
        share = (turn + rng.random()) / len(cases)
        if subject.steps and i % 3 == 2:
            step = 1 + int(share * subject.steps)
            moment, ended = f"after step {step}", forked(partial(subject.run, folder, stop=dying(step)))
        else:
            at, how = 1 + int(share * whole.changes), rng.choice([*MOMENTS, WITHIN, WITHIN])
            moment, ended = f"{MOMENTS[how]} change {at}", watched(subject, folder, at, how)
        if i % 5 == 4 and ended.status == -signal.SIGKILL:
            at = 1 + rng.randrange(max(1, whole.changes // 3))
            moment += f", again within change {at}"
            watched(subject, folder, at, WITHIN)
        died = ended.status == -signal.SIGKILL and "Traceback" not in ended.said
        outcome, said = judged(watched(subject, folder), subject, place / "whole", folder)
        outcome = "it does not go on" if outcome == "refused" else outcome
        details = {"said": said[-1500:]} if said else {}
        record.add(part, f"{name} {i}", outcome, moment=moment, killed=died, within="within" in moment, **details)
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(place)
