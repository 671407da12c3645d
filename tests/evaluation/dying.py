"""Evaluations that end at a chosen moment, by a signal: `main` with FOLDER KIND SAMPLE in sys.argv.

Each runs in a process of its own, forked from one that has computed nothing yet. A moment is a forward of the model, a
statement of SQL or a row that it writes. For a sample of all moments m, FOLDER/m.sqlite is the ledger of an evaluation
that was ended there and then run again; FOLDER/whole.sqlite is of one that nothing ended. It prints a line
"m signal status" for each.
"""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental.symbolic_shapes  # torch imports it late; here, so that not every fork has to

from advsphere.attacks import cw, deepfool, square
from advsphere.evaluation import AttackSpec, Effort, evaluate
from advsphere.evaluation.cascades import cascade
from tests.evaluation.cases import THREAT, linear, pgd_spec

PGD = replace(pgd_spec("PGD-3", steps=3), restarts=2)
SMALLEST = AttackSpec("DeepFool", partial(deepfool, norm="linf", steps=5), minimal=True)
FAR = AttackSpec("C&W", partial(cw, norm="l2", steps=5, rounds=2), minimal=True)
SEARCH = AttackSpec("Square", partial(square, threat=THREAT, queries=20))
KINDS: dict[str, dict[str, Any]] = {
    "each over all": {"suite": (PGD, SMALLEST, FAR)},
    "in turn": {"suite": cascade((SMALLEST, PGD, SEARCH))},
    "within a budget": {"suite": (PGD, SMALLEST, SEARCH), "budget": 60.0},
    "by name": {"suite": "table2", "effort": Effort(steps=2, guides=2)},
}


def run(kind: str, ledger: Path, tick: Callable[[], object] = lambda: None) -> None:
    """An evaluation, called again for as long as its budget leaves something; tick is called at each moment."""
    known = linear(40, classes=3, wrong=4)

    class Watched(sqlite3.Connection):
        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            tick()
            result = super().execute(*arguments)
            tick()
            return result

        def executemany(self, sql: str, rows: Iterable[Any]) -> sqlite3.Cursor:  # type: ignore[override]
            def ticking() -> Iterator[Any]:
                for row in rows:
                    tick()
                    yield row

            return super().executemany(sql, ticking())

    def note(*_: Any) -> None:
        tick()

    connect, clock, looks = sqlite3.connect, time.monotonic, itertools.count()
    sqlite3.connect = partial(connect, factory=Watched)  # type: ignore[assignment]
    time.monotonic = lambda: float(next(looks))  # a second for each forward
    handle = known.model.register_forward_pre_hook(note)
    try:
        while evaluate(*known, threat=THREAT, batch_size=20, ledger=ledger, **KINDS[kind]).worst.unreached:
            pass
    finally:
        handle.remove()
        sqlite3.connect, time.monotonic = connect, clock


def forked(task: Callable[[], None]) -> int:
    """The exit status of a task in a process of its own; negative is the signal that ended it."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        task()
        status = 0
    except KeyboardInterrupt:
        status = 130
    except Exception:  # whatever it is must be shown here: the fork may not return into its parent's tests
        traceback.print_exc()
    finally:
        os._exit(status)


def count(kind: str, path: Path) -> None:
    """Run without an end, and write down how many moments there were."""
    moments = itertools.count()
    run(kind, path, lambda: next(moments))
    path.with_suffix(".moments").write_text(str(next(moments)))


def end(kind: str, path: Path, moment: int, by: signal.Signals) -> None:
    """Run until a moment."""
    moments = itertools.count()
    run(kind, path, lambda: os.kill(os.getpid(), by) if next(moments) == moment else None)


def main() -> None:
    folder, kind, sample = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)  # other threads don't survive a fork
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    whole = folder / "whole.sqlite"
    assert forked(lambda: count(kind, whole)) == 0
    moments = int(whole.with_suffix(".moments").read_text())
    for i in range(sample):
        moment, by = round((i + 0.5) / sample * moments), (signal.SIGKILL, signal.SIGINT)[i % 2]
        path = folder / f"{moment}.sqlite"
        ended = forked(lambda: end(kind, path, moment, by))  # noqa: B023
        again = forked(lambda: run(kind, path))  # noqa: B023
        print(moment, by.name, ended, again)
