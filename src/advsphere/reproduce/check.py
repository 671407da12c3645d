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
from advsphere.evaluation.results import LEDGER, Evaluation
from advsphere.files import canonical, content_checksum
from advsphere.reproduce.collecting import run_block, shown_of_diagnosis
from advsphere.reproduce.results import StoredResult
from advsphere.training import read_metrics

_EVIDENCE = (LEDGER, RECORD, "diagnosis.json", "metrics.jsonl")

Status = Literal["confirmed", "WRONG", "no evidence here"]


@dataclass(frozen=True)
class Checked:
    """The outcome for one stored result: its label, its status, and the evidence found or the contradictions."""

    label: str
    status: Status
    detail: str = ""


def check(results: Sequence[StoredResult], roots: Sequence[Path]) -> list[Checked]:
    """Compare each result with its evidence, which is searched for in the roots and all folders below.

    What follows from the results alone is always checked: numbers follow from outcomes, the worst case is that of the
    attacks, and all measurements of a checkpoint are of one model, which no other run has.
    """
    present = _present(roots)
    models = _models(results)
    return [_checked(result, present.get(result.evidence), _strangers(result, models)) for result in results]


def _checked(result: StoredResult, path: Path | None, strangers: list[str]) -> Checked:
    try:
        wrong, stored = [*_contradictions(result), *strangers], _claims(result)
    except UserError as error:  # it is refused while it is read
        return Checked(result.label, "WRONG", str(error))
    if path is not None:
        again = _again(result, path)
        wrong += [f"{path} has another {name}" for name in again if name in stored and stored[name] != again[name]]
        wrong += _of_another_run(result, path)
    if wrong:
        return Checked(result.label, "WRONG", "; ".join(wrong))
    return Checked(result.label, "no evidence here" if path is None else "confirmed", str(path or ""))


def _contradictions(result: StoredResult) -> list[str]:
    """Stored numbers that do not follow from the stored outcomes. An evaluation with any is refused as it is read."""
    if result.kind == "corruptions":
        again = result.corruptions.mca
        stored = result.document["numbers"]["mCA"]
        same = (stored["value"], stored["low"], stored["high"]) == (again.value, again.low, again.high)
        return [] if same else ["mCA contradicts its outcomes"]
    return []


def _model(result: StoredResult) -> str | None:
    """The checksum of the measured model; None for a training, which is of no single checkpoint."""
    if result.kind == "diagnosis":
        return str(result.document["model"])
    return None if result.kind == "training" else str(result.document["identity"]["model"]["checksum"])


def _run(result: StoredResult) -> str:
    return canonical([result.run[name] for name in ("recipe", "overrides", "seed", "data")])


Models = tuple[dict[tuple[str, str], set[str]], dict[str, set[str]]]
"""The models of each (run, checkpoint), and the runs of each model."""


def _models(results: Iterable[StoredResult]) -> Models:
    of_run: dict[tuple[str, str], set[str]] = {}
    of_model: dict[str, set[str]] = {}
    for result in results:
        if (model := _model(result)) is not None:
            of_run.setdefault((_run(result), result.run["checkpoint"]), set()).add(model)
            of_model.setdefault(model, set()).add(_run(result))
    return of_run, of_model


def _strangers(result: StoredResult, models: Models) -> list[str]:
    model, (of_run, of_model) = _model(result), models
    if model is None:
        return []
    found = []
    if len(of_run[_run(result), result.run["checkpoint"]]) > 1:
        found.append("the measurements of this checkpoint are of different models")
    if len(of_model[model]) > 1:
        found.append("another run has the same model")
    return found


def _claims(result: StoredResult) -> dict[str, Any]:
    """The parts of a result that are compared with its evidence. Older results did not store all of them."""
    if result.kind == "evaluation":
        return _parts(result.evaluation)
    if result.kind == "corruptions":
        cells = {(cell.corruption, cell.severity): cell.outcomes for cell in result.corruptions.cells}
        return {"outcomes": cells, "identity": result.corruptions.identity}
    if result.kind == "training":
        return {"number of robust images": result.document["k"]}
    return {"content": result.document}


def _again(result: StoredResult, path: Path) -> dict[str, Any]:
    """The same parts, computed from the evidence."""
    if result.kind == "evaluation":
        with Ledger.read(path) as ledger:
            return _parts(Evaluation.of(ledger))
    if result.kind == "corruptions":
        record = CorruptionRecord.load(path)
        cells = {(cell.corruption, cell.severity): cell.outcomes for cell in record.cells}
        return {"outcomes": cells, "identity": record.identity}
    if result.kind == "training":
        robust = {epoch["epoch"]: epoch["robust"] for epoch in read_metrics(path.parent) if "robust" in epoch}
        return {"number of robust images": round(robust[result.run["validated"]["epoch"]] * result.n)}
    return {"content": shown_of_diagnosis(json.loads(path.read_text()), result.document["place"])}


def _parts(evaluation: Evaluation) -> dict[str, Any]:
    outcomes = {row.name: row.outcomes for row in evaluation.rows}
    return {"outcomes": outcomes, **evaluation.identity, "environments": list(evaluation.environments)}


_OF_RUN = ("recipe", "overrides", "network", "objective", "scale", "margin", "weight_decay", "epochs", "seed")


def _of_another_run(result: StoredResult, path: Path) -> list[str]:
    """Settings, seed and commit that are not those of the run in whose folder the evidence lies, if it lies in one."""
    if result.kind not in ("evaluation", "corruptions", "training"):
        return []
    run = path.parent if result.kind == "training" else path.absolute().parents[2]
    if not (run / "config.yaml").is_file():
        return []
    try:
        again = run_block(run, result.run["checkpoint"])
    except (UserError, OSError, LookupError, ValueError) as error:
        return [f"the run {run} can't be read: {error}"]
    changed = [name for name in _OF_RUN if result.run[name] != again[name]]
    commits = [block["trained"].get("commit") for block in (result.run, again)]
    return [f"{run} has another {name}" for name in [*changed, *["commit"] * (commits[0] != commits[1])]]


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
    if path.name == LEDGER:
        with Ledger.read(path) as ledger:
            return ledger.checksum()
    if path.name == RECORD:
        return str(CorruptionRecord.load(path).to_dict()["checksum"])
    if path.name == "metrics.jsonl":
        return content_checksum({"epochs": read_metrics(path.parent)})
    return content_checksum(json.loads(path.read_text()))
