"""A bad place to work in: a full, failing or read-only disk, a folder that goes away, two owners, few handles, clocks
that jump or stand. The work ends with one line or with the right result, and goes on when the place is good again.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tests.campaign.killing import judged, watched
from tests.campaign.machine import (
    FAIL,
    NO_MOUNTS,
    Ended,
    arm,
    changes,
    finished,
    forked,
    mount_read_only,
    set_clock,
    started,
)
from tests.campaign.record import GOOD, Record, scratch
from tests.campaign.subjects import Subject

PART = "bad surroundings"


class Place:
    """What a case has: the work, a folder, a random generator, and how many changes the undisturbed work makes."""

    def __init__(self, subject: Subject, folder: Path, rng: random.Random, total: int) -> None:
        self.subject, self.folder, self.rng, self.total = subject, folder, rng, total

    @property
    def moment(self) -> int:
        return 1 + self.rng.randrange(self.total)


def failing(number: int, lasts: int = -1) -> Callable[[Place], list[Ended]]:
    """From some change on, calls fail with an error: all, or only the next few."""

    def case(place: Place) -> list[Ended]:
        return [watched(place.subject, place.folder, place.moment, FAIL, error=number, lasts=lasts)]

    return case


def read_only(place: Place) -> list[Ended]:
    """A mount that is read-only, over work that was begun."""

    def task() -> None:
        mount_read_only(place.folder)
        place.subject.run(place.folder)

    watched(place.subject, place.folder, place.moment)
    ended = forked(task)
    return [] if NO_MOUNTS in ended.said else [ended]


def going_away(moved: bool) -> Callable[[Place], list[Ended]]:
    """The folder is removed, or moved, while the work is in it."""

    def case(place: Place) -> list[Ended]:
        at, away = place.moment, place.folder.with_suffix(".away")

        def task() -> None:
            arm(place.folder)
            from threading import Thread

            def wait() -> None:
                while changes() < at:
                    time.sleep(0.0005)
                if moved:
                    os.rename(place.folder, away)
                else:
                    shutil.rmtree(place.folder, ignore_errors=True)

            Thread(target=wait, daemon=True).start()
            place.subject.run(place.folder)

        ended = forked(task)
        shutil.rmtree(away, ignore_errors=True)
        if not moved:  # a write during the removal keeps the folder, and whoever removes it does so again
            shutil.rmtree(place.folder, ignore_errors=True)
        return [ended]

    return case


def two_owners(place: Place) -> list[Ended]:
    """Two processes do the same work in one folder."""
    forks = [started(partial(place.subject.run, place.folder)) for _ in range(2)]
    return [finished(fork) for fork in forks]


def few_handles(place: Place) -> list[Ended]:
    """The process may open only a few more files than it has."""

    def task() -> None:
        used = max(map(int, os.listdir("/proc/self/fd"))) + 1
        few = used + place.rng.randrange(8)
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))
        place.subject.run(place.folder)

    return [forked(task)]


def clock(factor: float, jump: float) -> Callable[[Place], list[Ended]]:
    """Clocks that stand, run backwards or fast, or jump."""

    def case(place: Place) -> list[Ended]:
        def task() -> None:
            set_clock(factor, jump)
            place.subject.run(place.folder)

        return [forked(task)]

    return case


CASES: dict[str, Callable[[Place], list[Ended]]] = {
    "the disk is full": failing(errno.ENOSPC),
    "the disk is full for a moment": failing(errno.ENOSPC, 3),
    "the quota is used up": failing(errno.EDQUOT),
    "the disk fails": failing(errno.EIO),
    "the disk fails once": failing(errno.EIO, 1),
    "no permission": failing(errno.EACCES),
    "it becomes read-only": failing(errno.EROFS),
    "a read-only mount": read_only,
    "the folder is removed": going_away(moved=False),
    "the folder is moved": going_away(moved=True),
    "two owners": two_owners,
    "few handles": few_handles,
    "the clock stands": clock(0.0, 0.0),
    "the clock runs backwards": clock(-1.0, 0.0),
    "the clock runs 10,000 times as fast": clock(1e4, 0.0),
    "the clock jumps a year ahead": clock(1.0, 3.2e7),
    "the clock jumps a year back": clock(1.0, -3.2e7),
}


def disturb(record: Record, subjects: Mapping[str, Subject], rounds: int, seed: int = 0) -> None:
    """Each case on each subject, so many times. Rounds below 1 leave out subjects."""
    with tempfile.TemporaryDirectory(dir=scratch() or None) as folder:
        for number, (name, subject) in enumerate(subjects.items()):
            place, whole = Path(folder, str(number)), None
            place.mkdir()
            for i, (what, case) in enumerate(CASES.items()):
                for turn in range(max(1, int(rounds))):
                    key = f"{name}: {what} {turn}"
                    if (rounds < 1 and (i + number) % round(1 / rounds)) or not record.due(PART, key):
                        continue
                    whole = whole or watched(subject, place / "whole")
                    at = Place(subject, place / f"{i} {turn}", random.Random(f"{seed} {key}"), whole.changes)
                    _one(record, key, case, at, place / "whole")


def _one(record: Record, key: str, case: Callable[[Place], list[Ended]], place: Place, whole: Path) -> None:
    ended = case(place)
    found = [judged(one, place.subject, whole, place.folder) for one in ended]
    # Work that was refused has to go on when the place is good again.
    again = judged(watched(place.subject, place.folder), place.subject, whole, place.folder)
    refused = sum(outcome == "refused" for outcome, _ in found)
    bad = [one for one in (*found, again) if one[0] not in GOOD] + [again] * (again[0] == "refused")
    outcome, said = bad[0] if bad else ("right", "")
    if outcome == "refused":
        outcome = "it does not go on"
    details = {"said": said[-1500:]} if said else {}
    record.add(PART, key, outcome, refused=refused, of=len(found), **details)
    shutil.rmtree(place.folder, ignore_errors=True)
