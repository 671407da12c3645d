"""The record of a campaign: JSON lines, written as it goes. A campaign that starts again skips what is there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GOOD = ("right", "refused")
"""`right`: the result of an undisturbed run. `refused`: one clear line, and no result."""


@dataclass
class Record:
    """The lines of a campaign in a file.

    Attributes:
        path: The file.
        until: The time at which the campaign has to end.
        lines: All lines so far.
    """

    path: Path
    until: float
    lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lines = [*read(self.path)]
        self.known = {(line["part"], line["case"]) for line in self.lines}

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until

    def due(self, part: str, case: str) -> bool:
        """Whether a case has still to be tried, and there is time for it."""
        return (part, case) not in self.known and not self.over

    def add(self, part: str, case: str, outcome: str, **details: Any) -> None:
        """Write the outcome of a case: `right`, `refused`, or what went wrong."""
        line = {"part": part, "case": case, "outcome": outcome, **details}
        self.lines.append(line)
        self.known.add((part, case))
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if outcome not in GOOD:
            print(f"FAULT {part}: {case}: {outcome} {str(details.get('said', ''))[-2000:]}", flush=True)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a record; a last line that was cut off is left out."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def scratch() -> str:
    """A folder in memory if there is one: a campaign writes tens of gigabytes."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else ""
