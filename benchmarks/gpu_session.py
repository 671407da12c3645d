"""Steps under a budget of seconds: each result is written as it comes, and a step that has one is not run again."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from advsphere.errors import UserError
from advsphere.training import Stopped

SPARE = 15.0
"""Seconds at the end of the budget for closing files."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a step gets.

    Attributes:
        device: The device to measure.
        work: The folder of runs, images and ledgers. It may be lost.
        out: The folder of what is brought home.
        until: The time by `time.monotonic` at which the budget ends.
        tiny: Rehearse every step on a few images.
        data: The folder of CIFAR-10; None to search where the library does.
        peer: The folder of the official AutoAttack's package.
    """

    device: torch.device
    work: Path
    out: Path
    until: float
    tiny: bool = False
    data: Path | None = None
    peer: Path | None = None

    @property
    def left(self) -> float:
        """Seconds that a step may still take."""
        return self.until - SPARE - time.monotonic()


class Step(NamedTuple):
    """A part of the session.

    Attributes:
        name: "part/what"; unique.
        seconds: How long it is expected to take on an H100, an estimate.
        run: Measures, and returns a result that JSON can hold.
        after: A step whose output it needs.
        made: The file that later steps need. On a new machine it is missing, though the step is done.
    """

    name: str
    seconds: float
    run: Callable[[Setting], dict[str, Any]]
    after: str | None = None
    made: Callable[[Setting], Path] | None = None


def chosen(steps: Sequence[Step], only: Sequence[str]) -> list[Step]:
    """The steps whose names contain one of the words, and those that they need; all of them without words."""
    named = {step.name: step for step in steps}
    wanted = {step.name for step in steps if not only or any(word in step.name for word in only)}
    wanted |= {after for name in wanted if (after := named[name].after) is not None}
    if not wanted:
        parts = sorted({step.name.partition("/")[0] for step in steps})
        raise UserError(f"no step has {' or '.join(only)} in its name; the parts are {', '.join(parts)}")
    return [step for step in steps if step.name in wanted]


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The last row of each step."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows: dict[str, dict[str, Any]] = {}
    for line in lines:
        with contextlib.suppress(ValueError):  # the last line of a session that was killed
            row = json.loads(line)
            rows[row["step"]] = row
    return rows


def run(steps: Sequence[Step], setting: Setting, rows: Path) -> dict[str, str]:
    """Run the steps that are not done and fit into the budget; returns the state of each: done, failed, skipped."""
    rows.parent.mkdir(parents=True, exist_ok=True)
    before = read(rows)
    if rows.exists() and not rows.read_text().endswith("\n"):
        with rows.open("a") as file:
            file.write("\n")  # after the half of a line, of a session that was killed
    states = {name: row["state"] for name, row in before.items()}
    for step in steps:
        if states.get(step.name) == "done" and not _missed(step, steps, states, setting):
            continue
        if step.after is not None and states.get(step.after) != "done":
            states[step.name] = f"skipped: it needs {step.after}"
        elif setting.left < (0 if setting.tiny else step.seconds):
            states[step.name] = f"skipped: {step.seconds:g} s are expected and {max(setting.left, 0):.0f} s are left"
        else:
            row = _row(step, setting)
            states[step.name] = row["state"]
            with rows.open("a") as file:
                file.write(json.dumps(row, default=str) + "\n")
        print(f"{step.name}: {states[step.name]}", flush=True)
    return {step.name: states[step.name] for step in steps}


def _missed(step: Step, steps: Sequence[Step], states: Mapping[str, str], setting: Setting) -> bool:
    """Whether a step that is not done needs a file of this one, and there is none."""
    needed = any(other.after == step.name and states.get(other.name) != "done" for other in steps)
    return needed and step.made is not None and not step.made(setting).exists()


def _row(step: Step, setting: Setting) -> dict[str, Any]:
    """Run one step. Whatever it raises is written down, because the other steps do not depend on it."""
    began = time.monotonic()
    row: dict[str, Any] = {"step": step.name, "state": "done", "device": setting.device.type, "tiny": setting.tiny}
    try:
        row["result"] = step.run(setting)
    except Stopped as stopped:
        row |= {"state": "stopped", "error": str(stopped)}
    except (Exception, SystemExit) as error:
        row |= {"state": "failed", "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return row | {"seconds": round(time.monotonic() - began, 2), "expected": step.seconds}


def synchronize(device: torch.device) -> None:
    """Wait until the device has computed everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
