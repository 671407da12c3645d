"""Measure accuracy under common corruptions.

There are no attacks, so there is no ledger. A record holds one character for each image under each corruption and
severity, and a checksum of the model's input pixels. Every number is computed from these.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from advsphere.classifier import frozen
from advsphere.corruption.generate import Corrupted
from advsphere.corruption.result import CorruptionCell, CorruptionRecord
from advsphere.corruption.severity import SEVERITIES
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation.checks import device_of, preflight
from advsphere.evaluation.judge import exact_float32, predict
from advsphere.evaluation.progress import Progress
from advsphere.files import differences
from advsphere.identity import answer_alike, data_checksum, model_answers, model_checksum, model_record, unknowns
from advsphere.provenance import environment


def corruption_accuracy(
    model: nn.Module,
    images: Images,
    corrupted: Corrupted,
    *,
    record: Path | str,
    batch_size: int = 250,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> CorruptionRecord:
    """Classify the clean images and each corrupted set, in float32 and eval mode.

    Args:
        model: Takes (B, C, H, W) pixels in [0, 1] and returns (B, K) logits.
        images: The clean images, with the model's classes.
        corrupted: The corrupted sets of these images.
        record: A JSON file, written after each corruption and severity. If it exists, only missing sets are measured.
        batch_size: Images in a batch.
        on_progress: Called after each batch with the progress under the corruption's name.

    Returns:
        The complete record.

    Raises:
        UserError: If `preflight` fails; if the record is of another model, of other images or of corruptions from
            another source; or if the severities differ in their number of images.
    """
    record = Path(record)
    preflight(model, images, batch_size=batch_size)
    done = _begin(model, images, corrupted, record, batch_size)
    with exact_float32():
        if not done.clean.outcomes:
            done = replace(done, clean=_measure(model, images, "clean", 0, batch_size, on_progress))
            done.save(record)
        measured = {(cell.corruption, cell.severity) for cell in done.cells}
        for name in corrupted.names:
            for severity in SEVERITIES:
                if (name, severity) in measured:
                    continue
                some = corrupted.load(name, severity)
                if done.cells and len(some) != done.cells[0].n:
                    first = done.cells[0]
                    raise UserError(
                        f"{name} {severity} has {len(some)} images, {first.corruption} {first.severity} has {first.n}: "
                        "the download may be incomplete; get them again"
                    )
                cell = _measure(model, some, name, severity, batch_size, on_progress)
                done = replace(done, cells=(*done.cells, cell))
                done.save(record)
    return done


def recheck(model: nn.Module, corrupted: Corrupted, record: CorruptionRecord, *, images: int = 50) -> list[str]:
    """Predict the first `images` of every corrupted set again. Returns a line for each set that differs.

    If all images of a set are predicted, the checksum of their pixels is also compared. Raises UserError for another
    model.
    """
    if model_checksum(model) != record.identity["model"]["checksum"]:
        raise UserError("this is not the model of the record: its weights have another checksum")
    wrong = []
    with exact_float32():
        for cell in record.cells:
            title = f"{cell.corruption} {cell.severity}"
            some = corrupted.load(cell.corruption, cell.severity).first(images)
            again = _measure(model, some, cell.corruption, cell.severity)
            if again.outcomes != cell.outcomes[:images]:
                wrong.append(f"{title}: other outcomes")
            elif len(again.outcomes) == len(cell.outcomes) and again.pixels != cell.pixels:
                wrong.append(f"{title}: other pixels")
    return wrong


def _begin(model: nn.Module, images: Images, corrupted: Corrupted, record: Path, batch_size: int) -> CorruptionRecord:
    """The record so far, or a new one without outcomes."""
    identity = {
        "model": model_record(model),
        "data": {
            "name": images.name,
            "n": len(images),
            "shape": list(images.shape),
            "checksum": data_checksum(images, batch_size),
        },
        "corruptions": {"names": list(corrupted.names), **corrupted.source},
        "batch_size": batch_size,
    }
    here, answers = environment(device_of(model)), model_answers(model, images.shape)
    if not record.exists():
        return CorruptionRecord(identity=identity, environments=(here,), answers=answers)
    begun = CorruptionRecord.load(record)
    changed = [str(change) for change in differences(begun.identity, identity)]
    changed += [f"it can't be known whether the model is the same: {reason}" for reason in unknowns(identity)]
    if begun.answers is not None and not answer_alike(begun.answers, answers):
        changed.append("the model answers differently on the same images")
    if changed:
        raise UserError(f"{record} is of another evaluation ({changed[0]}); name another folder, or remove it")
    known = begun.complete or any(not differences(there, here) for there in begun.environments)
    return begun if known else replace(begun, environments=(*begun.environments, here))


def _measure(
    model: nn.Module,
    images: Images,
    name: str,
    severity: int,
    batch_size: int = 250,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> CorruptionCell:
    device, digest, began = device_of(model), hashlib.sha256(), time.perf_counter()
    outcomes, title = "", name if name == "clean" else f"{name} {severity}"
    with frozen(model) as exact:
        for index in torch.arange(len(images)).split(batch_size):
            x, y = images.batch(index)
            digest.update(x.cpu().contiguous().numpy().tobytes())
            right = predict(exact, x.to(device)) == y.to(device)
            outcomes += "".join("01"[r] for r in right.tolist())
            done, robust, seconds = len(outcomes), outcomes.count("1"), time.perf_counter() - began
            on_progress(
                Progress(attack=title, done=done, total=len(images), robust=robust, seconds=seconds, images=done)
            )
    return CorruptionCell(
        corruption=name,
        severity=severity,
        outcomes=outcomes,
        pixels=digest.hexdigest(),
        seconds=time.perf_counter() - began,
    )
