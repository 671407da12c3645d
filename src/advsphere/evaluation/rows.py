"""The parts of an evaluation: rows of attacks, findings of preflight, and signs of gradient masking."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from advsphere.evaluation.ledger import Ledger
from advsphere.stats import Columns, wilson


class Outcomes:
    """What is counted from `outcomes`, which has one character for each example: "1" if it is correct, else "0"."""

    outcomes: str

    @property
    def k(self) -> int:
        """Number of correct examples."""
        return self.outcomes.count("1")

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.outcomes)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(n,): whether each example is correct."""
        return np.frombuffer(self.outcomes.encode(), np.uint8) == ord("1")

    @property
    def accuracy(self) -> float:
        """k / n."""
        return self.k / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy, which covers only the sampling of examples."""
        return wilson(self.k, self.n)


@dataclass(frozen=True, kw_only=True)
class Row(Outcomes):
    """Accuracy under one attack: an upper bound of robust accuracy.

    `invalid`, `unreached` and `forwards` are None in results of earlier versions, which did not store them.

    Attributes:
        name: The attack, or "clean", or "worst case".
        outcomes: One character for each example: "1" if it is classified as labelled on the clean image, under this
            attack and under the earlier attacks in its cascade, else "0".
        settings: The attack's parameters.
        invalid: Results outside the ball or the pixel range; they count as resisted.
        unreached: Examples that the attack had to try and that the time budget did not reach; they count as resisted.
        median: Median norm that a minimal-norm attack needed, over the examples it tried. None for other attacks, and
            if half of the examples were not fooled.
        seconds: Time spent on the attack.
        forwards: Images sent through the model by the search.
    """

    name: str
    outcomes: str
    settings: Mapping[str, Any]
    invalid: int | None
    unreached: int | None
    median: float | None
    seconds: float
    forwards: int | None

    def __repr__(self) -> str:
        low, high = self.interval
        interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
        return f"<Row {self.name}: accuracy {100 * self.accuracy:.1f} %, {interval}, k / n = {self.k} / {self.n}>"

    @property
    def ran(self) -> bool:
        """Whether the attack tried anything before the time budget ended."""
        return not self.unreached or self.unreached < self.k or bool(self.forwards)

    @property
    def after(self) -> tuple[str, ...]:
        """Earlier attacks. Examples that they fooled are skipped, so accuracy is cumulative."""
        return tuple(self.settings.get("after", ()))

    @property
    def sampled(self) -> bool:
        """Whether the attack ran only on a sample of the images that the others left, or on all that they left."""
        return bool(self.settings.get("proof"))

    def check(self) -> None:
        """Raise ValueError unless the values have their types, as in a row that somebody else wrote."""
        numbers = (self.invalid, self.unreached, self.median, self.seconds, self.forwards)
        if not (isinstance(self.name, str) and isinstance(self.outcomes, str) and {*self.outcomes} <= {*"01"}):
            raise ValueError(f"{self.name!r} has other outcomes than 0 and 1")
        if not (self.outcomes and all(type(x) in (int, float, type(None)) for x in numbers)):
            raise ValueError(f"{self.name!r} has no outcomes, or a text for a number")
        if not all(x is None or (math.isfinite(x) and x >= 0) for x in numbers):
            raise ValueError(f"{self.name!r} has a number below 0, or one that is not finite")
        if not all(isinstance(name, str) for name in self.after):
            raise ValueError(f"{self.name!r} comes after {self.after}")

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON data, with its derived numbers."""
        low, high = self.interval
        return {"k": self.k, "n": self.n, "accuracy": self.accuracy, "low": low, "high": high} | asdict(self)


class Strongest(NamedTuple):
    """The attack that leaves the fewest examples correct, or several attacks that tie.

    Attributes:
        names: The attacks.
        k: Examples still correct after them and those before them in the cascade.
        n: All examples.
        alone: Examples that only they fooled; None if later attacks skipped the examples that they fooled.
    """

    names: tuple[str, ...]
    k: int
    n: int
    alone: int | None

    def __str__(self) -> str:
        accuracy = f"accuracy {100 * self.k / self.n:.1f} % under {', '.join(self.names)}"
        if self.alone is None:
            return f"{accuracy}; later attacks skipped the images that it fooled"
        return f"{accuracy}, which alone fooled {self.alone} of the {self.n} images"


def row_of(ledger: Ledger, name: str, settings: Mapping[str, Any]) -> Row:
    cost, counts = ledger.cost(name), ledger.counts(name)
    outcomes = ledger.outcomes(name)
    return Row(
        name=name,
        outcomes=outcomes,
        settings=settings,
        invalid=counts.get("invalid", 0),
        unreached=unreached(ledger, outcomes, [name]),
        median=_median(ledger, name) if settings.get("minimal") else None,
        seconds=cost.seconds,
        forwards=cost.forwards,
    )


def columns_of(rows: Sequence[Row]) -> Columns:
    """The outcomes of several rows of the same examples."""
    return np.array([row.right for row in rows], dtype=float)


def unreached(ledger: Ledger, outcomes: str, attacks: Sequence[str]) -> int:
    """The number of examples that count as robust ("1") although one of the attacks did not reach them."""
    reached = [{cell.example for cell in ledger.cells(name)} for name in attacks]
    return sum(robust == "1" and any(i not in one for one in reached) for i, robust in enumerate(outcomes))


def found_alone(finders: Sequence[Row], others: Sequence[Row]) -> int:
    """Count the examples that only the finders fooled, not the other attacks and not the clean image.

    `others` needs at least one row. None of them may skip the examples that a finder fooled, because its outcomes then
    include the finder's.
    """
    columns = zip(*(row.outcomes for row in finders), strict=True)
    rest = zip(*(row.outcomes for row in others), strict=True)
    return sum("0" in found and "0" not in left for found, left in zip(columns, rest, strict=True))


def apart_from(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """The rows that skip no example because of the others, so that their outcomes are independent of them."""
    names = {row.name for row in others}
    return [row for row in rows if not names & {*row.after}]


def _median(ledger: Ledger, name: str) -> float | None:
    """The median norm over the examples that were tried; None if half of them were not fooled at all."""
    labels = ledger.labels
    tried = [cell for cell in ledger.cells(name) if cell.status in ("fooled", "resisted")]
    norms = sorted(math.inf if c.prediction == labels[c.example] else c.distance or 0.0 for c in tried)
    middle = statistics.median(norms) if norms else math.inf
    return middle if math.isfinite(middle) else None


@dataclass(frozen=True)
class Finding:
    """The result of one check of preflight or verification.

    Attributes:
        check: Name of the check.
        status: "ok"; "fixed", a problem that was corrected; "noted", readers of the numbers must know it; "failed".
        detail: The finding in a sentence.
    """

    check: str
    status: Literal["ok", "fixed", "noted", "failed"]
    detail: str

    def __str__(self) -> str:
        """The line of `advsphere verify`."""
        return f"{self.status:>6}  {self.check}: {self.detail}"


Refuted = Literal["", "gradient attacks", "every attack"]


@dataclass(frozen=True)
class Sign:
    """A sign of gradient masking that was looked for.

    Attributes:
        check: Name of the sign.
        status: "raised"; "absent"; "unjudged", if the suite lacks the attacks to judge it.
        detail: The evidence, with n and interval, or the reason why it is not judged.
        advice: How to respond to a raised sign, else "".
        refutes: The attacks whose numbers are no robust accuracy because of this sign; "" for a mere warning.
    """

    check: str
    status: Literal["raised", "absent", "unjudged"]
    detail: str
    advice: str = ""
    refutes: Refuted = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}" + (f"; {self.advice}" if self.advice else "")
