"""Collect stored results from the folders of finished jobs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from advsphere.analysis.diagnosis import FORMAT as DIAGNOSIS
from advsphere.corruption.result import RECORD, CorruptionRecord
from advsphere.errors import UserError
from advsphere.evaluation.results import Evaluation
from advsphere.files import content_checksum, read_json, write_atomically
from advsphere.recipes import recipe
from advsphere.reproduce import results
from advsphere.reproduce.plan import Plan
from advsphere.reproduce.results import StoredResult
from advsphere.runs.config import Config, differences
from advsphere.runs.folder import held_out, read_config, read_provenance
from advsphere.training import load_checkpoint, read_metrics


def collect(found: Plan, file: Path) -> None:
    """Add the results of every finished job of a plan to a file of results, and copy pictures beside it."""
    stored: list[StoredResult] = []
    for job in found.jobs:
        if job.done:
            data = "imagenet" if job.config.data.name == "imagefolder" else "cifar10"
            stored += _results(job.command[0], job.made.parent, file.parent, found.budget.data_name[data])
    results.add(file, stored)


def _results(command: str, folder: Path, beside: Path, data_name: str) -> Iterator[StoredResult]:
    if command == "evaluate":
        yield evaluated(folder, data_name=data_name)
    elif command == "train":
        yield trained(folder, data_name=data_name)
    elif command == "corruptions":
        yield corrupted(folder, data_name=data_name)
    elif command == "diagnose":
        yield from diagnosed(folder / "diagnosis.json", beside, data_name=data_name)


def run_block(run: Path, checkpoint: str, *, data_name: str | None = None) -> dict[str, Any]:
    """The description of a run that is stored with each of its results.

    `paper` and `source` are None, because our networks are in none of the paper's tables. Raises UserError if a file of
    the run is missing or damaged.
    """
    config = read_config(run)
    provenance = read_provenance(run)
    epochs = read_metrics(run)
    chosen = epochs[-1] if checkpoint == "last" else load_checkpoint(run / "best.safetensors")[1]["metrics"]
    return {
        "recipe": config.recipe,
        "overrides": _overrides(config),
        "network": config.model.name,
        "objective": type(config.objective).__name__,
        "scale": config.sphere.scale if config.sphere else None,
        "margin": config.sphere.margin if config.sphere else None,
        "weight_decay": config.training.weight_decay,
        "epochs": config.training.epochs,
        "seed": config.training.seed,
        "checkpoint": checkpoint,
        "data": data_name or config.data.name,
        "trained": provenance | {"seconds": round(epochs[-1]["seconds"], 1)},
        "validated": {name: chosen.get(name) for name in ("epoch", "clean", "robust")},
        "paper": None,
        "source": None,
    }


def _overrides(config: Config) -> list[dict[str, Any]]:
    """The changes to the recipe; empty if the recipe no longer exists."""
    try:
        return [change._asdict() for change in differences(recipe(config.recipe), config)]
    except UserError:
        return []


def evaluated(folder: Path, *, data_name: str | None = None) -> StoredResult:
    """The evaluation in a folder `evaluations/NAME` of a run. Raises UserError if a file is missing or damaged."""
    result = Evaluation.load(folder / "evaluation.json")
    run = run_block(folder.absolute().parents[1], _checkpoint(folder), data_name=data_name)
    return StoredResult(kind="evaluation", run=run, evidence=result.ledger, document=result.to_dict())


def corrupted(folder: Path, *, data_name: str | None = None) -> StoredResult:
    """The record in a folder `corruptions/NAME` of a run.

    Raises UserError if a file is missing or damaged, or the record is not complete.
    """
    record = CorruptionRecord.load(folder / RECORD)
    if not (record.complete and record.counted):
        raise UserError(
            f"{folder / RECORD} lacks corruptions of the benchmark; run the same command again to finish it"
        )
    document = record.to_dict()
    run = run_block(folder.absolute().parents[1], _checkpoint(folder), data_name=data_name)
    return StoredResult(kind="corruptions", run=run, evidence=document["checksum"], document=document)


def _checkpoint(folder: Path) -> str:
    return str(json.loads((folder / "subject.json").read_text())["checkpoint"])


def trained(run: Path, *, data_name: str | None = None) -> StoredResult:
    """The PGD-10 accuracy on held-out training images by which a run's best checkpoint was chosen."""
    config, block = read_config(run), run_block(run, "best", data_name=data_name)
    n = held_out(run)
    document = {
        "attack": "PGD-10",
        "threat": {"norm": config.threat.norm, "eps": config.threat.eps},
        "data": f"{config.data.name} train, held out",
        "n": n,
        "k": round(block["validated"]["robust"] * n),
    }
    evidence = content_checksum({"epochs": read_metrics(run)})
    return StoredResult(kind="training", run=block, evidence=evidence, document=document)


def diagnosed(path: Path, beside: Path, *, data_name: str | None = None) -> Iterator[StoredResult]:
    """A result for each network of a diagnosis. Its picture is copied into `beside`, the folder of the results' file.

    The diagnosis lies in the run's folder, and a baseline is a run beside that. Raises UserError if the file was
    changed.
    """
    content = read_json(path, DIAGNOSIS)
    if content["checksum"] != content_checksum(content):
        raise UserError(f"{path} was changed after it was written; run `advsphere diagnose` again, or delete it")
    runs = next(folder for folder in path.absolute().parents if (folder / "config.yaml").is_file()).parent
    for place, network in enumerate(content["networks"]):
        picture = path.with_name("pictures.png" if place == 0 else "pictures-baseline.png").read_bytes()
        name = f"pictures/{hashlib.sha256(picture).hexdigest()[:12]}.png"
        write_atomically(beside / name, picture)
        run = run_block(runs / network["name"], "best", data_name=data_name)
        document = shown_of_diagnosis(content, place)
        yield StoredResult(kind="diagnosis", run=run, evidence=content["checksum"], document=document, picture=name)


def shown_of_diagnosis(content: dict[str, Any], place: int) -> dict[str, Any]:
    """The parts of a diagnosis that the pages show for one of its networks: Table 7 and gradient norms."""
    network = content["networks"][place]
    seventh = network["table 7"]
    cells = [
        {name: cell[name] for name in ("steps", "FN", "k", "n")} for cell in seventh["cells"] if cell["factor"] == 1
    ]
    return {
        "model": network["checksum"],
        "data": content["data"]["checksum"],
        "place": place,
        "n": content["data"]["n"],
        "threat": {name: content["threat"][name] for name in ("norm", "eps")},
        "table 7": {name: seventh[name] for name in ("norm", "eps", "step size", "start")} | {"cells": cells},
        "gradients": network["gradients"]["as judged"],
    }
