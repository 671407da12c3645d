"""Accuracy under common corruptions: measured, written down image by image, and summed up as mCA and mCE.

Nothing is attacked here, so there is no ledger: a record holds a character for each image under each corruption and
severity, and a checksum of the pixels that the model saw. Every number is computed from these.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from advsphere.classifier import frozen
from advsphere.corruption import SEVERITIES, Corrupted
from advsphere.corruption.result import CorruptionCell, CorruptionRecord
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation.checks import device_of, preflight
from advsphere.evaluation.engine import Progress
from advsphere.evaluation.judge import exact_float32, predict
from advsphere.files import differences
from advsphere.identity import data_checksum, model_checksum
from advsphere.provenance import environment

OnProgress = Callable[[Progress], None]


def corruption_accuracy(
    model: nn.Module,
    images: Images,
    corrupted: Corrupted,
    *,
    record: Path,
    batch_size: int = 250,
    on_progress: OnProgress | None = None,
) -> CorruptionRecord:
    """Classify the clean images and each corrupted set, in float32 and eval mode.

    images: the clean ones, with the model's classes. record: a JSON file that is written after each corruption and
    severity; where it is there already, only what it lacks is measured. on_progress: told after each batch, under the
    corruption's name.

    Raises UserError for a model, images or labels that `preflight` refuses, and for a record of another model, other
    images, or corruptions from elsewhere; and where one severity has more images than another.
    """
    preflight(model, images, batch_size=batch_size)
    done = _begin(model, images, corrupted, record, batch_size)
    with exact_float32():
        if not done.clean.outcomes:
            done = done.put(_measure(model, images, "clean", 0, batch_size, on_progress))
            done.save(record)
        for name in corrupted.names:
            for severity in SEVERITIES:
                if not done.has(name, severity):
                    sets = corrupted.load(name, severity)
                    _check_whole(sets, name, severity, done)
                    done = done.put(_measure(model, sets, name, severity, batch_size, on_progress))
                    done.save(record)
    return done


def recheck(
    model: nn.Module, corrupted: Corrupted, record: CorruptionRecord, *, images: int = 50, batch_size: int = 250
) -> list[str]:
    """Predict the first images of every corrupted set again; one line for each set whose outcomes are not the record's.

    images: how many of each. The pixels' checksum is compared where all of them are asked for. Raises UserError where
    the model is another than the record's.
    """
    if model_checksum(model) != record.identity["model"]["checksum"]:
        raise UserError("this is not the model that the record is of: its weights have another checksum")
    wrong = []
    with exact_float32():
        for cell in record.cells:
            again = _measure(
                model,
                corrupted.load(cell.corruption, cell.severity).first(images),
                cell.corruption,
                cell.severity,
                batch_size,
                None,
            )
            if again.outcomes != cell.outcomes[:images]:
                wrong.append(f"{cell.corruption} {cell.severity}: other outcomes")
            elif len(again.outcomes) == len(cell.outcomes) and again.pixels != cell.pixels:
                wrong.append(f"{cell.corruption} {cell.severity}: other pixels")
    return wrong


def _begin(model: nn.Module, images: Images, corrupted: Corrupted, record: Path, batch_size: int) -> CorruptionRecord:
    """The record so far, which is one without outcomes where there is none."""
    device = device_of(model)
    identity = {
        "model": {"type": type(model).__name__, "checksum": model_checksum(model)},
        "data": {
            "name": images.name,
            "n": len(images),
            "shape": list(images.shape),
            "checksum": data_checksum(images, batch_size),
        },
        "corruptions": {"names": list(corrupted.names), **corrupted.source},
        "batch_size": batch_size,
    }
    here = environment(device)
    if not record.exists():
        return CorruptionRecord(identity=identity, environments=(here,))
    begun = CorruptionRecord.load(record)
    if changed := differences(begun.identity, identity):
        raise UserError(f"{record} is of something else ({changed[0]}); name another folder, or remove it")
    return begun if begun.complete else begun.in_environment(here)


def _check_whole(images: Images, name: str, severity: int, done: CorruptionRecord) -> None:
    if done.cells and len(images) != done.cells[0].n:
        first = done.cells[0]
        raise UserError(
            f"{name} {severity} has {len(images)} images, {first.corruption} {first.severity} has {first.n}: were all "
            "of them downloaded? get them again"
        )


def _measure(
    model: nn.Module, images: Images, name: str, severity: int, batch_size: int, on_progress: OnProgress | None
) -> CorruptionCell:
    device, digest, began = device_of(model), hashlib.sha256(), time.perf_counter()
    outcomes: list[str] = []
    with frozen(model) as exact:
        for index in torch.arange(len(images)).split(batch_size):
            x, y = images.batch(index)
            digest.update(x.cpu().contiguous().numpy().tobytes())
            wrong, _ = predict(exact, x.to(device), y.to(device))
            outcomes += ["01"[not w] for w in wrong.tolist()]
            if on_progress is not None:
                on_progress(
                    Progress(
                        attack=name if name == "clean" else f"{name} {severity}",
                        done=len(outcomes),
                        total=len(images),
                        robust=outcomes.count("1"),
                        seconds=time.perf_counter() - began,
                        images=len(outcomes),
                    )
                )
    return CorruptionCell(
        corruption=name,
        severity=severity,
        outcomes="".join(outcomes),
        pixels=digest.hexdigest(),
        seconds=time.perf_counter() - began,
    )
