"""Recompute stored results from their evidence (ledgers, records, diagnoses, metrics), if it can be found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from advsphere.corruption.result import RECORD, CorruptionRecord
from advsphere.errors import UserError
from advsphere.evaluation.ledger import Ledger
from advsphere.evaluation.results import Evaluation
from advsphere.files import content_checksum
from advsphere.reproduce.collecting import shown_of_diagnosis
from advsphere.reproduce.results import StoredResult
from advsphere.training import read_metrics

_EVIDENCE = ("ledger.sqlite", RECORD, "diagnosis.json", "metrics.jsonl")

Status = Literal["confirmed", "WRONG", "no evidence here"]


@dataclass(frozen=True)
class Checked:
    """The outcome for one stored result: its label, its status, and the evidence found or the contradictions."""

    label: str
    status: Status
    detail: str = ""


def check(results: Sequence[StoredResult], roots: Sequence[Path]) -> list[Checked]:
    """Compare each result with its evidence, which is searched for in the roots and all folders below.

    Numbers that follow from a result's own outcomes are always recomputed.
    """
    present = _present(roots)
    return [_checked(result, present.get(result.evidence)) for result in results]


def _checked(result: StoredResult, path: Path | None) -> Checked:
    wrong = _contradictions(result)
    if path is not None and _outcomes(result) != _again(result, path):
        wrong.append(f"{path} has different outcomes")
    if wrong:
        return Checked(result.label, "WRONG", "; ".join(wrong))
    return Checked(result.label, "no evidence here" if path is None else "confirmed", str(path or ""))


def _contradictions(result: StoredResult) -> list[str]:
    """Stored numbers that do not follow from the stored outcomes."""
    if result.kind == "evaluation":
        stored = result.document
        pairs = zip([stored["clean"], *stored["attacks"], stored["worst"]], result.evaluation.rows, strict=True)
        return [f"{row.name}: k, n or interval contradict its outcomes" for d, row in pairs if d != row.to_dict()]
    if result.kind == "corruptions":
        again = result.corruptions.mca
        stored = result.document["numbers"]["mCA"]
        same = (stored["value"], stored["low"], stored["high"]) == (again.value, again.low, again.high)
        return [] if same else ["mCA contradicts its outcomes"]
    return []


def _outcomes(result: StoredResult) -> Any:
    """The part of a result that is compared with its evidence."""
    if result.kind == "evaluation":
        return {row.name: row.outcomes for row in result.evaluation.rows}
    if result.kind == "corruptions":
        return {(cell.corruption, cell.severity): cell.outcomes for cell in result.corruptions.cells}
    if result.kind == "training":
        return result.document["k"]
    return result.document


def _again(result: StoredResult, path: Path) -> Any:
    """The same part, computed from the evidence."""
    if result.kind == "evaluation":
        with Ledger.read(path) as ledger:
            return {row.name: row.outcomes for row in Evaluation.of(ledger).rows}
    if result.kind == "corruptions":
        return {(cell.corruption, cell.severity): cell.outcomes for cell in CorruptionRecord.load(path).cells}
    if result.kind == "training":
        robust = {epoch["epoch"]: epoch["robust"] for epoch in read_metrics(path.parent) if "robust" in epoch}
        return round(robust[result.run["validated"]["epoch"]] * result.n)
    return shown_of_diagnosis(json.loads(path.read_text()), result.document["place"])


def _present(roots: Iterable[Path]) -> dict[str, Path]:
    """The evidence in the roots and below, by checksum. Damaged files are skipped."""
    found = {}
    for root in roots:
        for name in _EVIDENCE:
            for path in sorted(root.rglob(name)):
                with suppress(UserError, ValueError, KeyError):
                    found[_checksum(path)] = path
    return found


def _checksum(path: Path) -> str:
    """The checksum of a file's content, computed again."""
    if path.name == "ledger.sqlite":
        with Ledger.read(path) as ledger:
            return ledger.checksum()
    if path.name == RECORD:
        return str(CorruptionRecord.load(path).to_dict()["checksum"])
    if path.name == "metrics.jsonl":
        return content_checksum({"epochs": read_metrics(path.parent)})
    return content_checksum(json.loads(path.read_text()))
