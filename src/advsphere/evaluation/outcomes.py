"""The outcome of each attack on each image as records, and the adversarial images as tensors, read from a ledger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from advsphere.errors import UserError
from advsphere.evaluation.ledger import CLEAN, Cell, Ledger

Outcome = Literal["robust", "fooled", "not tried"]

COLUMNS = ("image", "file", "label", "clean_prediction", "attack", "outcome", "norm", "prediction")


class AdversarialImages(NamedTuple):
    """Images that fool a model, all inside the ball of the threat model.

    Attributes:
        images: The adversarial images, (N, C, H, W) float32 in [0, 1].
        labels: The class of each clean image, (N,) int64.
        indices: The position of each clean image among those that were evaluated, (N,) int64, ascending.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


def opened(place: Path | bytes | None, checksum: str) -> Ledger:
    """The ledger at a path, or of this content. Raises UserError if it is not the one with the checksum."""
    if place is None:
        raise UserError(
            "this evaluation was read without its ledger, which has the outcomes and the adversarial images; read the "
            "ledger: Evaluation.of(Ledger.read(PATH))"
        )
    book = Ledger.of_content(place) if isinstance(place, bytes) else Ledger.read(place)
    if book.checksum() != checksum:
        book.close()
        raise UserError(f"{place!s} has changed since this evaluation; read it again: Evaluation.of(Ledger.read(PATH))")
    return book


def records(book: Ledger) -> list[dict[str, Any]]:
    """A record with the `COLUMNS` for each image and attack, in the order of the images, then of the attacks."""
    labels = book.labels
    files: Sequence[str | None] = book.files or [None] * len(labels)
    clean = {cell.example: cell.prediction for cell in book.cells(CLEAN)}
    cells = {name: {cell.example: cell for cell in book.cells(name)} for name in book.attacks}
    return [
        dict(zip(COLUMNS, (i, files[i], label, clean[i], name, *_found(of.get(i), label)), strict=True))
        for i, label in enumerate(labels)
        for name, of in cells.items()
    ]


def _found(cell: Cell | None, label: int) -> tuple[Outcome, float | None, int | None]:
    """(outcome, norm, prediction). There is a norm if the attack changed the class, or left the ball."""
    if cell is None or cell.status not in ("fooled", "resisted", "invalid"):
        return "not tried", None, None
    outcome: Outcome = "fooled" if cell.status == "fooled" else "robust"
    return outcome, None if cell.prediction == label else cell.distance, cell.prediction


def adversarial(book: Ledger, attack: str | None) -> AdversarialImages:
    """The images with which an attack fooled the model; of all attacks, the one nearest to the clean image."""
    nearest: dict[int, tuple[float, str]] = {}
    for name in book.attacks if attack is None else [attack]:
        for cell in book.cells(name):
            found = float(f"{cell.distance or 0.0:.4g}"), name  # of those that agree to four digits, the first
            if cell.status == "fooled" and (cell.example not in nearest or found[0] < nearest[cell.example][0]):
                nearest[cell.example] = found
    indices = sorted(nearest)
    images = [book.adversarial(nearest[i][1], i) for i in indices]
    if lost := [i for i, x in zip(indices, images, strict=True) if x is None]:
        raise UserError(f"the ledger has lost the adversarial image of {nearest[lost[0]][1]} on image {lost[0]}")
    kept = [x for x in images if x is not None]
    labels = book.labels
    return AdversarialImages(
        torch.stack(kept) if kept else torch.empty((0, *book.identity["data"]["shape"])),
        torch.tensor([labels[i] for i in indices], dtype=torch.int64),
        torch.tensor(indices, dtype=torch.int64),
    )
