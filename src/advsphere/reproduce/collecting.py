"""From finished jobs to rows of results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from advsphere.corruption.result import CorruptionRecord
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation, Ledger
from advsphere.files import content_checksum, write_atomically
from advsphere.reproduce import results
from advsphere.reproduce.jobs import Job
from advsphere.reproduce.plan import Plan
from advsphere.reproduce.results import Row, corruption_row, row_of_checkpoint
from advsphere.runs.folder import read_config
from advsphere.stats import wilson
from advsphere.threat import radius
from advsphere.training import read_metrics

INSIDE = "inside"
"""The suite of rows that come from a diagnosis."""
VALIDATION = "validation"
"""The suite of the row that each training leaves: how robust its best checkpoint is on held-out training images."""


def collect(found: Plan, file: Path) -> None:
    """Put the rows of every job of a plan that is done into a file of results, and pictures beside it. Raises UserError
    where a file is missing or was changed.
    """
    rows: list[Row] = []
    for job in found.jobs:
        if job.done:
            data = "imagenet" if job.config.data.name == "imagefolder" else "cifar10"
            rows += _rows(job, found.budget.data_name[data], file.parent)
    results.add(file, rows)


def _rows(job: Job, data_name: str, beside: Path) -> Iterator[Row]:
    folder = job.made.parent
    if job.command[0] == "evaluate":
        yield from results.rows_of(folder.parents[1], folder, data_name=data_name)
    elif job.command[0] == "train":
        yield row_of_training(folder, data_name=data_name)
    elif job.command[0] == "corruptions":
        record = CorruptionRecord.load(folder / "corruptions.json")
        yield corruption_row(folder.parents[1], folder, record, data_name=data_name)
    elif job.command[0] == "diagnose":
        yield from diagnosed(job.made, beside, data_name=data_name)


def row_of_training(run: Path, *, data_name: str | None = None) -> Row:
    """What chose a run's best checkpoint: its accuracy under PGD-10 on held-out training images. Raises UserError where
    a file is missing or broken.
    """
    config, shared = read_config(run), row_of_checkpoint(run, "best", data_name=data_name)
    n = config.data.validation
    k = round(shared["validated"]["robust"] * n)
    return shared | {
        "suite": VALIDATION,
        "attack": "PGD-10",
        "threat": f"{config.threat.norm} {radius(config.threat.eps)}",
        "n": n,
        "k": k,
        "accuracy": k / n,
        "interval": list(wilson(k, n)),
        "evaluated": {
            "metrics": content_checksum({"epochs": read_metrics(run)}),
            "data_name": f"{config.data.name} train, held out",
        },
    }


def diagnosed(path: Path, beside: Path, *, data_name: str | None = None) -> Iterator[Row]:
    """The rows of a diagnosis, with pictures: those are copied into `beside`, the folder of the file of rows. Raises
    UserError as `rows_of_diagnosis`.
    """
    for row in rows_of_diagnosis(path, data_name=data_name):
        yield row
        if row["attack"] == "gradient norms":
            yield row | {"attack": "pictures", "picture": _picture(row, path, beside)}


def _picture(row: Row, diagnosis: Path, beside: Path) -> str:
    """Copy the picture of a network's perturbations, and say where it is, beside the rows."""
    own = row["evaluated"]["place"] == 0
    drawn = diagnosis.with_name("pictures.png" if own else "pictures-baseline.png").read_bytes()
    name = f"pictures/{hashlib.sha256(drawn).hexdigest()[:12]}.png"
    write_atomically(beside / name, drawn)
    return name


def rows_of_diagnosis(path: Path, *, data_name: str | None = None) -> Iterator[Row]:
    """Table 7's attacks and the gradient-norm ratios of each network in a diagnosis; the file lies in the run's folder,
    and a baseline is a run beside it. Raises UserError for a file that was changed.
    """
    content = json.loads(path.read_text())
    checksum = content.pop("checksum", None)
    if checksum != content_checksum(content):
        raise UserError(f"{path} was changed after it was written; diagnose again, or take it as no evidence")
    runs = next(folder for folder in path.absolute().parents if (folder / "config.yaml").is_file()).parent
    threat = content["threat"]
    for place, network in enumerate(content["networks"]):
        shared = row_of_checkpoint(runs / network["name"], "best", data_name=data_name) | {
            "suite": INSIDE,
            "n": content["data"]["n"],
            "evaluated": {
                "model": network["checksum"],
                "data": content["data"]["checksum"],
                "diagnosis": checksum,
                "place": place,
            },
        }
        seventh = network["table 7"]
        for cell in seventh["cells"]:
            if cell["factor"] == 1:
                yield shared | {
                    "attack": f"PGD-{cell['steps']}" + ", FN in the attack" * cell["FN"],
                    "threat": f"{seventh['norm']} {radius(seventh['eps'])}",
                    "k": cell["k"],
                    "accuracy": cell["k"] / cell["n"],
                    "interval": list(wilson(cell["k"], cell["n"])),
                    "settings": {key: seventh[key] for key in ("step size", "start")},
                }
        yield shared | {
            "attack": "gradient norms",
            "threat": f"{threat['norm']} {radius(threat['eps'])}",
            "gradients": network["gradients"]["as judged"],
        }


# FOLDED checking: Recompute rows of results from the evidence that made them, where it is at hand.

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
