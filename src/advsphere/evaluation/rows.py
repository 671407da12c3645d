"""A row of an evaluation: one attack, with the numbers that the ledger has of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from advsphere.evaluation.ledger import Ledger
from advsphere.stats import wilson


@dataclass(frozen=True, kw_only=True)
class Row:
    """Accuracy under one attack: an upper bound of robust accuracy, with a 95 % Wilson interval for the sample alone.

    outcomes: a character for each example, "1" if it is classified as labelled, clean, under the attack and under those
    that it comes after, else "0". invalid: results that left the ball (counted as resisted). unreached: examples that
    the budget did not reach (counted as resisted too). median: of the norms that a minimal-norm attack found, over all
    examples that it tried; None for other attacks, and where it found nothing for half of them. forwards: images sent
    through the model by the search.
    """

    name: str
    outcomes: str
    settings: Mapping[str, Any]
    invalid: int
    unreached: int
    median: float | None
    seconds: float
    forwards: int

    @property
    def k(self) -> int:
        return self.outcomes.count("1")

    @property
    def n(self) -> int:
        return len(self.outcomes)

    @property
    def accuracy(self) -> float:
        return self.k / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.k, self.n)

    @property
    def after(self) -> tuple[str, ...]:
        """The attacks before it whose finds it did not look for again."""
        return tuple(self.settings.get("after", ()))

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {"k": self.k, "n": self.n, "accuracy": self.accuracy, "low": low, "high": high} | asdict(self)


def row_of(ledger: Ledger, name: str, settings: Mapping[str, Any]) -> Row:
    """The row of an attack of the ledger."""
    cost, counts = ledger.cost(name), ledger.counts(name)
    outcomes = ledger.outcomes(name)
    return Row(
        name=name,
        outcomes=outcomes,
        settings=settings,
        invalid=counts.get("invalid", 0),
        unreached=len(outcomes) - sum(counts.values()),
        median=_median(ledger, name) if settings.get("minimal") else None,
        seconds=cost.seconds,
        forwards=cost.forwards,
    )


def found_alone(finders: Sequence[Row], others: Sequence[Row]) -> int:
    """How many examples some of the finders fooled and none of the others, nor the clean image.

    Give at least one other, and none that comes after a finder: it would count the finder's finds as its own.
    """
    columns = zip(*(row.outcomes for row in finders), strict=True)
    rest = zip(*(row.outcomes for row in others), strict=True)
    return sum("0" in found and "0" not in left for found, left in zip(columns, rest, strict=True))


def apart_from(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """Those rows that come after none of the others, and so tell what they find themselves."""
    names = {row.name for row in others}
    return [row for row in rows if not names & {*row.after}]


def _median(ledger: Ledger, name: str) -> float | None:
    """The norm that half of the examples exceed or need no more than; None if half of them were not fooled at all."""
    labels = ledger.labels
    tried = [cell for cell in ledger.cells(name) if cell.status in ("fooled", "resisted")]
    norms = sorted(math.inf if c.prediction == labels[c.example] else c.distance or 0.0 for c in tried)
    middle = statistics.median(norms) if norms else math.inf
    return middle if math.isfinite(middle) else None


@dataclass(frozen=True)
class Finding:
    """check: what was looked at. status: "ok"; "fixed", wrong but put right; "noted", to be known by whoever reads the
    numbers; "failed". detail: a sentence.
    """

    check: str
    status: Literal["ok", "fixed", "noted", "failed"]
    detail: str


@dataclass(frozen=True)
class Sign:
    """A sign of gradient masking that was looked for.

    check: its name. status: "raised"; "absent"; "unjudged", where the suite lacks what it takes to tell. detail: the
    evidence, with n and interval, or what was lacking. advice: what to do about one that was raised, else "".
    """

    check: str
    status: Literal["raised", "absent", "unjudged"]
    detail: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}" + (f"; {self.advice}" if self.advice else "")
