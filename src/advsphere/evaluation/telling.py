"""Which examples of an evaluation teach something when looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from advsphere.classifier import frozen
from advsphere.data import Images
from advsphere.evaluation.judge import exact_float32
from advsphere.evaluation.ledger import CLEAN, Ledger
from advsphere.evaluation.preflight import device_of
from advsphere.losses import margin

MOST_LOOKED_AT = 500
"""Examples whose margin is computed for a list; the first that resisted."""


@dataclass(frozen=True)
class Telling:
    """Examples of one kind: what they have in common, and what is to be known of each, by its number."""

    kind: str
    examples: Mapping[int, str]


def telling(book: Ledger, model: nn.Module, images: Images, *, most: int = 3) -> tuple[Telling, ...]:
    """A few examples of each kind that the ledger has: found by a late attack alone, fooled by one attack out of all
    that tried it, and resisting all with the smallest margin.

    model, images: those that were evaluated. An example is listed once.
    """
    late, alone = _late(book), _alone(book)
    alone = {i: name for i, name in alone.items() if i not in list(late)[:most]}
    kinds = {
        "only a late attack found these: all before it had failed": late,
        "one attack fooled these, and every other failed": alone,
        "these resisted every attack, and are the closest to the boundary": _close(book, model, images, most),
    }
    return tuple(Telling(kind, dict(list(found.items())[:most])) for kind, found in kinds.items() if found)


def _late(book: Ledger) -> dict[int, str]:
    """The finds of the last attack that found what none before it had; none if that is the first one."""
    known: set[int] = set()
    late: dict[int, str] = {}
    for position, name in enumerate(book.attacks):
        new = _fooled(book, name) - known
        if new and position:
            late = {i: f"found by {name}" for i in sorted(new)}
        known |= new
    return late


def _alone(book: Ledger) -> dict[int, str]:
    """Examples that all attacks tried, at least two, and just one fooled."""
    tried: dict[int, list[str]] = {}
    by: dict[int, list[str]] = {}
    for name in book.attacks:
        for cell in book.cells(name):
            if cell.status != "not_run":
                tried.setdefault(cell.example, []).append(name)
            if cell.status == "fooled":
                by.setdefault(cell.example, []).append(name)
    everything = max(2, len(book.attacks))
    return {i: f"fooled by {by[i][0]}" for i in sorted(by) if len(by[i]) == 1 and len(tried[i]) == everything}


def _close(book: Ledger, model: nn.Module, images: Images, most: int) -> dict[int, str]:
    """Examples that every attack tried and none fooled, by the lead of the right logit over the next on the clean
    image.
    """
    resisted = set(range(len(book.labels))) - _fooled(book, CLEAN)
    for name in book.attacks:
        resisted &= {c.example for c in book.cells(name) if c.status in ("resisted", "invalid")}
    lead: dict[int, float] = {}
    with exact_float32(), frozen(model) as exact, torch.no_grad():
        some = torch.tensor(sorted(resisted)[:MOST_LOOKED_AT], dtype=torch.int64)
        for index in some.split(book.identity["batch_size"]) if len(some) else ():
            x, y = (part.to(device_of(model)) for part in images.batch(index))
            lead |= dict(zip(index.tolist(), (-margin(exact(x), y)).tolist(), strict=True))
    return {i: f"its logit leads by {lead[i]:.3g}" for i in sorted(lead, key=lambda i: lead[i])[:most]}


def _fooled(book: Ledger, name: str) -> set[int]:
    return {cell.example for cell in book.cells(name) if cell.status == "fooled"}
