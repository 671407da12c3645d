"""From finished jobs to rows of results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from advsphere import results
from advsphere.corruption_table import corruption_row
from advsphere.errors import UserError
from advsphere.evaluation import radius, wilson
from advsphere.evaluation.corruption_record import CorruptionRecord
from advsphere.evaluation.records import content_checksum
from advsphere.experiment import read_config
from advsphere.files import write_atomically
from advsphere.reproduce.jobs import Job
from advsphere.reproduce.plan import Plan
from advsphere.results import Row, row_of_checkpoint
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
