"""Heartbeats of the processes of a run: which one stands still, which one the others wait for, and what it was doing.

Time is counted in a process's own beats. So a run whose processes were all stopped for an hour, and then continued,
has missed none.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.distributed_c10d import Store

from advsphere.errors import UserError

SECONDS = 300.0
"""Time after which a rank that others wait for is named, and after which a rank without heartbeat ends the run."""

VARIABLE = "ADVSPHERE_HANG_SECONDS"
"""The environment variable that sets another time."""


def hang_seconds() -> float:
    """The time after which a rank is named.

    Returns:
        Seconds, `SECONDS` or those of the environment variable.

    Raises:
        UserError: If the variable holds no positive number.
    """
    given = os.environ.get(VARIABLE, "")
    try:
        seconds = float(given or SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{VARIABLE} is {given!r}; give a positive number of seconds, or unset it for {SECONDS:.0f}")
    return seconds


class Exchanges:
    """The exchanges of this process with the others: how many have begun, and whether it is inside one."""

    def __init__(self) -> None:
        self.begun, self.inside = 0, False

    @contextmanager
    def one(self) -> Iterator[None]:
        """Around each exchange."""
        self.begun, self.inside = self.begun + 1, True
        try:
            yield
        finally:
            self.inside = False


@dataclass
class _Heard:
    """What a rank said last, and for how many of our beats it has said nothing new."""

    beat: int = -1
    begun: int = 0
    inside: bool = False
    doing: str = "starting"
    silent: int = 0


class Heartbeat:
    """The heartbeat of this rank. The first rank listens to all others, and each of them to the first one.

    Args:
        store: What all ranks can reach.
        rank: This rank.
        size: The number of ranks.
        exchanges: This rank's exchanges.
        every: Seconds between two beats.
    """

    def __init__(self, store: Store, rank: int, size: int, exchanges: Exchanges, *, every: float) -> None:
        self._store, self._rank, self._exchanges, self._every = store, rank, exchanges, every
        self._patience = max(2, round(hang_seconds() / every))
        self._others = {other: _Heard() for other in (range(1, size) if rank == 0 else (0,))}
        self._beats, self._waited, self._before = 0, 0, [0]

    def beat(self) -> str:
        """Say that this rank lives, and listen. Returns the error that ends the run, or nothing."""
        self._beats += 1
        said = [self._beats, self._exchanges.begun, self._exchanges.inside, _doing()]
        self._store.set(f"heartbeat {self._rank}", json.dumps(said))
        for rank, heard in self._others.items():
            if self._store.check([f"heartbeat {rank}"]):
                beat, *state = json.loads(self._store.get(f"heartbeat {rank}"))
                heard.silent = heard.silent + 1 if beat == heard.beat else 0
                heard.beat, (heard.begun, heard.inside, heard.doing) = beat, state
            if heard.silent >= self._patience:
                return (
                    f"rank {rank} has shown no sign of life for {self._seconds} (stopped, or its machine is gone); "
                    f"it was last {heard.doing}; end what is left of it and run the same command again to continue"
                )
        return ""

    def late(self) -> str:
        """Which ranks the others wait for, once the wait has taken the stated time; otherwise nothing."""
        own = _Heard(begun=self._exchanges.begun, inside=self._exchanges.inside, doing=_doing())
        ranks = {self._rank: own, **self._others}
        now = [heard.begun for heard in ranks.values()]
        stands = now == self._before and any(heard.inside for heard in ranks.values())
        self._waited, self._before = self._waited + 1 if stands else 0, now
        if self._waited != self._patience:
            return ""
        missing = {rank: heard for rank, heard in ranks.items() if heard.begun < max(now)} or ranks
        where = "; ".join(f"rank {rank} is {heard.doing}" for rank, heard in missing.items())
        return f"the processes have waited for each other for {self._seconds}: {where}"

    @property
    def _seconds(self) -> str:
        return f"{self._patience * self._every:.0f} s"


_OWN = str(Path(__file__).parent)


def _doing() -> str:
    """Where the main thread is: the innermost function of advsphere, or of anybody if there is none."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    innermost = frame
    while frame is not None and (
        not frame.f_code.co_filename.startswith(_OWN) or frame.f_code.co_filename.endswith("distributed.py")
    ):
        frame = frame.f_back
    found = frame or innermost
    if found is None:
        return "starting"
    path = Path(found.f_code.co_filename)
    place = path.relative_to(Path(_OWN).parent) if path.is_relative_to(_OWN) else path.name
    return f"in {found.f_code.co_qualname} ({place}:{found.f_lineno})"
