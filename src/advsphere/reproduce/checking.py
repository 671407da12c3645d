"""Recompute rows of results from the evidence that made them, where it is at hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from advsphere.errors import UserError
from advsphere.evaluation import Evaluation, Ledger
from advsphere.evaluation.corruption_record import CorruptionRecord
from advsphere.evaluation.records import content_checksum
from advsphere.results import Row
from advsphere.training import read_metrics

_EVIDENCE = {
    "ledger": "ledger.sqlite",
    "record": "corruptions.json",
    "diagnosis": "diagnosis.json",
    "metrics": "metrics.jsonl",
}
"""What a row names the checksum of, and the file that has it."""

Status = Literal["confirmed", "WRONG", "no evidence here"]


@dataclass(frozen=True)
class Checked:
    """What became of the rows of one piece of evidence. detail: for people."""

    of: str
    status: Status
    rows: int
    detail: str = ""


def check(rows: Sequence[Row], roots: Sequence[Path]) -> list[Checked]:
    """Every row against the evidence of its checksum, looked for anywhere below the roots; numbers that follow from
    outcomes are computed once more in any case.
    """
    by_evidence: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        kind = next(kind for kind in _EVIDENCE if kind in row["evaluated"])
        by_evidence.setdefault((kind, row["evaluated"][kind]), []).append(row)
    present = _present(roots)
    return [_checked(own, present.get(key)) for key, own in by_evidence.items()]


def _checked(rows: Sequence[Row], path: Path | None) -> Checked:
    first = rows[0]
    changed = "".join(f", {line}" for line in first["overrides"])
    of = f"{first['recipe']}{changed}: {first['suite']}, {first['checkpoint']}, n = {first['n']}"
    wrong = [f"{row['attack']}: {problem}" for row in rows for problem in _contradictions(row)]
    if path is not None:
        found = _again(path)
        for row in rows:
            again = found(row)
            if again is not None and again != _measured(row):
                wrong.append(f"{row['attack']}: {path} says otherwise")
    if wrong:
        return Checked(of, "WRONG", len(rows), "; ".join(wrong))
    return Checked(of, "no evidence here" if path is None else "confirmed", len(rows), str(path or ""))


def _contradictions(row: Row) -> Iterator[str]:
    """What a row says of itself that its own outcomes deny."""
    outcomes = row.get("outcomes")
    if isinstance(outcomes, str) and (row["k"], row["n"]) != (outcomes.count("1"), len(outcomes)):
        yield "k and n are not those of its outcomes"
    if "k" in row and row["accuracy"] != row["k"] / row["n"]:
        yield "its accuracy is not k / n"


def _measured(row: Mapping[str, Any]) -> Any:
    """The part of a row that its evidence decides."""
    return row.get("outcomes", row.get("k", row.get("gradients")))


def _present(roots: Iterable[Path]) -> dict[tuple[str, str], Path]:
    """The evidence below the roots, by kind and checksum; damaged files are none."""
    found = {}
    for root in roots:
        for kind, name in _EVIDENCE.items():
            for path in sorted(root.rglob(name)):
                with suppress(UserError, ValueError, KeyError):
                    found[kind, _checksum(path)] = path
    return found


def _checksum(path: Path) -> str:
    """Of the content, computed and not only read."""
    if path.name == _EVIDENCE["ledger"]:
        with Ledger.read(path) as book:
            return book.checksum()
    if path.name == _EVIDENCE["record"]:
        return str(CorruptionRecord.load(path).to_dict()["checksum"])
    if path.name == _EVIDENCE["metrics"]:
        return content_checksum({"epochs": read_metrics(path.parent)})
    return content_checksum(json.loads(path.read_text()))


def _again(path: Path) -> Any:
    """A function from a row to what the evidence says of it; None for what it does not hold."""
    if path.name == _EVIDENCE["ledger"]:
        with Ledger.read(path) as book:
            evaluation = Evaluation.of(book)
        return lambda row: evaluation.row(row["attack"]).outcomes
    if path.name == _EVIDENCE["record"]:
        record = CorruptionRecord.load(path)
        return partial(_corrupted, record)
    if path.name == _EVIDENCE["metrics"]:
        robust = {epoch["epoch"]: epoch["robust"] for epoch in read_metrics(path.parent)}
        return lambda row: round(robust[row["validated"]["epoch"]] * row["n"])
    return partial(_inside, json.loads(path.read_text()))


def _corrupted(record: CorruptionRecord, row: Row) -> Any:
    return {name: [record.cell(name, s).outcomes for s in range(1, 6)] for name in record.names}


def _inside(content: Mapping[str, Any], row: Row) -> Any:
    (network,) = (n for n in content["networks"] if n["checksum"] == row["evaluated"]["model"])
    if row["attack"] == "gradient norms":
        return network["gradients"]["as judged"]
    for cell in network["table 7"]["cells"]:
        if cell["factor"] == 1 and row["attack"] == f"PGD-{cell['steps']}" + ", FN in the attack" * cell["FN"]:
            return cell["k"]
    return None
