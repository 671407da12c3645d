"""The figures of a campaign in docs/guarantees.md: `python -m tests.campaign --page`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from advsphere.reproduce.results import write_between
from tests.campaign.record import GOOD, read

PAGE = Path(__file__).parents[2] / "docs" / "guarantees.md"
RECORD = Path(__file__).parents[2] / "results" / "campaign" / "record.jsonl"
MARKERS = {"begin": "<!-- campaign -->", "end": "<!-- /campaign -->"}
LAW = {
    "training killed": "resumed to the same bits",
    "training of two processes, one killed": "the other ends with one line; resumed to the same bits",
    "evaluation killed": "the same command ends with the same ledger, record or rows",
    "power lost": "goes on to the same result, or says in one line what is missing",
    "bad surroundings": "one line or the right result; goes on when the place is good again",
}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """What was disturbed, how often, and how it ended."""
    rows = ["| what | cases | within a write | right | one clear line | faults | law |"]
    rows += ["|---|--:|--:|--:|--:|--:|---|"]
    for part, law in LAW.items():
        own = [line for line in lines if line["part"] == part]
        right, refused = (_count(line["outcome"] == outcome for line in own) for outcome in GOOD)
        within = _count(line.get("within") for line in own) if any("within" in line for line in own) else ""
        counts = (len(own), within, right, refused, len(own) - right - refused)
        rows.append(f"| {part} | {' | '.join(f'{n:,}' if n != '' else '' for n in counts)} | {law} |")
    rows += ["", "| damaged | cases | parsed | right | of these with another meaning | one clear line | faults |"]
    rows += ["|---|--:|--:|--:|--:|--:|--:|"]
    batches = [line for line in lines if line["part"] == "fuzz" and "cases" in line]
    names = [*dict.fromkeys(_name(line) for line in batches)]
    for name in (*names, "all"):
        own = [line for line in batches if name in ("all", _name(line))]
        sums = [sum(line[key] for line in own) for key in ("cases", "parsed", "right", "given", "refused", "faults")]
        rows.append(f"| {name} | {' | '.join(f'{n:,}' for n in sums)} |")
    return "\n".join(rows)


def _name(line: dict[str, Any]) -> str:
    return str(line["case"]).rpartition(" ")[0]


def _count(which: Iterable[object]) -> int:
    return sum(map(bool, which))


def write(record: Path = RECORD) -> None:
    """Write the figures into the page."""
    write_between(PAGE, table([*read(record)]), **MARKERS)
