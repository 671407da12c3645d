"""How many images to attack at once, so that a time budget keeps what was found and every call makes progress."""

from __future__ import annotations

import math
import time

from torch import Tensor

from advsphere.evaluation.ledger import CLEAN, Ledger
from advsphere.evaluation.specs import AttackSpec, core

UNKNOWN = 1000
"""Forwards of an image that an attack without settings is taken to need, before it was timed."""

_FACTORS = ("steps", "queries", "rounds", "targets", "tries", "starts", "restarts")
"""Settings whose product is about the number of forwards."""

_GRADIENT = 3
"""Cost of a forward with its backward, in forwards."""


class Pace:
    """The time of one call, and the size of the next part of a batch.

    Without a budget a part is the whole batch. With one, it is as large as half of the time that is left should
    allow, from the seconds of a forward and the forwards of an image in the ledger. The last parts are
    therefore small, and only the one that the deadline ends is lost. Random numbers are addressed by example, so the
    parts change results by rounding only.

    Attributes:
        deadline: In `time.monotonic()` seconds.
        moved: Whether this call has attacked an image to the end.
    """

    def __init__(self, budget: float | None) -> None:
        self.deadline = math.inf if budget is None else time.monotonic() + budget
        self.moved = False

    def part(self, ledger: Ledger, spec: AttackSpec, standing: Tensor) -> int:
        """The number of images in the next part.

        Args:
            ledger: The outcomes so far.
            spec: The attack.
            standing: (B,) bool: the images that it has to attack; the others cost nothing.

        Returns:
            A number of the first images, with at least one to attack.
        """
        seconds = _per_forward(ledger) * _forwards(ledger, spec)
        left = self.deadline - time.monotonic()
        if math.isinf(left) or not seconds:
            return len(standing)
        return leading(standing, max(1, int(left / 2 / seconds)))


def _per_forward(ledger: Ledger) -> float:
    """Seconds of a forward with its backward, in the attack that used the device best."""
    costs = [ledger.cost(name) for name in ledger.attacks]
    timed = [cost.seconds / cost.forwards for cost in costs if cost.forwards]
    clean = ledger.cost(CLEAN)
    return min(timed, default=_GRADIENT * clean.seconds / clean.forwards if clean.forwards else 0.0)


def _forwards(ledger: Ledger, spec: AttackSpec) -> float:
    """Forwards of an image, as recorded, or from the settings before the first part."""
    counts = ledger.counts(spec.name)
    if tried := sum(counts.values()) - counts.get("not_run", 0):
        return ledger.cost(spec.name).forwards / tried
    settings = core(spec.settings) | {"restarts": spec.restarts}
    known = [settings[name] for name in _FACTORS if isinstance(settings.get(name), int)]
    return math.prod(known) if len(known) > 1 else UNKNOWN * spec.restarts


def leading(standing: Tensor, count: int) -> int:
    """How many images from the first on have at most `count` that stand, (B,) bool."""
    return int((standing.cumsum(0) <= count).sum())
