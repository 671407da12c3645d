"""The result of an evaluation: rows of numbers, each derived from a ledger, with what makes them believable."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from advsphere.errors import UserError
from advsphere.evaluation.findings import Finding
from advsphere.evaluation.intervals import PairedDifference, paired, wilson
from advsphere.evaluation.ledger import CLEAN, Ledger
from advsphere.evaluation.records import content_checksum, differences, read_json
from advsphere.files import write_atomically

WORST = "worst case"

FORMAT = "advsphere evaluation 2"


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

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {"k": self.k, "n": self.n, "accuracy": self.accuracy, "low": low, "high": high} | asdict(self)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What attacks left of a model's accuracy.

    clean, attacks, worst: rows; worst is the worst case for each example over all attacks. identity: all that the
    outcome depends on (model, data, threat, suite, seed, ...). environments: where it was run. ledger: its checksum.
    findings: of preflight.
    """

    clean: Row
    attacks: tuple[Row, ...]
    worst: Row
    identity: Mapping[str, Any]
    environments: tuple[Mapping[str, Any], ...]
    ledger: str
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, ledger: Ledger, findings: Sequence[Finding] = ()) -> Self:
        """Every number from a ledger. Raises UserError where it does not even hold the clean images' predictions."""
        attacks = ledger.identity["attacks"]
        clean, rows = _row(ledger, CLEAN, {}), tuple(_row(ledger, name, settings) for name, settings in attacks.items())
        if clean.unreached:
            raise UserError(f"of {clean.n} clean images {clean.unreached} are missing; run the same evaluation again")
        worst = Row(
            name=WORST,
            outcomes=ledger.outcomes(),
            settings={},
            invalid=sum(row.invalid for row in rows),
            unreached=max((row.unreached for row in rows), default=0),
            median=None,
            seconds=sum(row.seconds for row in (clean, *rows)),
            forwards=sum(row.forwards for row in (clean, *rows)),
        )
        return cls(
            clean=clean,
            attacks=rows,
            worst=worst,
            identity=ledger.identity,
            environments=tuple(ledger.environments),
            ledger=ledger.checksum(),
            findings=tuple(findings),
        )

    @property
    def rows(self) -> tuple[Row, ...]:
        """Clean, each attack, worst case."""
        return (self.clean, *self.attacks, self.worst)

    def row(self, name: str) -> Row:
        """The row of a name. Raises UserError that lists the names."""
        for row in self.rows:
            if row.name == name:
                return row
        raise UserError(f"there is no row {name!r}; there are {', '.join(r.name for r in self.rows)}")

    @property
    def flags(self) -> tuple[str, ...]:
        """What a reader must know before believing the numbers; empty if nothing."""
        flags = [f.detail for f in self.findings if f.status == "noted"]
        for row in self.attacks:
            if row.invalid:
                flags.append(f"{row.name}: {row.invalid} results left the ball or the pixel range; counted as resisted")
            if row.unreached:
                flags.append(f"{row.name}: time was over before {row.unreached} of {row.n} images; counted as resisted")
        for other in self.environments[1:]:
            changed = differences(self.environments[0], other)
            flags.append(f"continued in another environment: {'; '.join(changed)}")
        return tuple(flags)

    @property
    def provenance(self) -> dict[str, Any]:
        """In one flat mapping, for a row of a results file: n, seed, seconds, checksums, versions and hardware."""
        return {
            "n": self.clean.n,
            "seed": self.identity["seed"],
            "seconds": self.worst.seconds,
            "model": self.identity["model"]["checksum"],
            "data": self.identity["data"]["checksum"],
            "data_name": self.identity["data"]["name"],
            "ledger": self.ledger,
            **self.environments[0],
        }

    def to_dict(self) -> dict[str, Any]:
        content = {
            "format": FORMAT,
            "note": "accuracy under attack is an upper bound of robust accuracy",
            "clean": self.clean.to_dict(),
            "attacks": [row.to_dict() for row in self.attacks],
            "worst": self.worst.to_dict(),
            "flags": list(self.flags),
            "identity": self.identity,
            "environments": list(self.environments),
            "ledger": self.ledger,
            "findings": [asdict(f) for f in self.findings],
        }
        return content | {"checksum": content_checksum(content)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Write the JSON file, whole or not at all. Raises UserError where that can't be done."""
        write_atomically(path, self.to_json().encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """A saved evaluation. Raises UserError for a file that is missing, of another kind, or changed since."""
        data = read_json(path, FORMAT)
        if data.get("checksum") != content_checksum(data):
            raise UserError(f"{path} was changed after it was written; evaluate again, or take it as no evidence")

        def row(d: Mapping[str, Any]) -> Row:
            return Row(**{k: d[k] for k in Row.__dataclass_fields__})

        return cls(
            clean=row(data["clean"]),
            attacks=tuple(row(d) for d in data["attacks"]),
            worst=row(data["worst"]),
            identity=data["identity"],
            environments=tuple(data["environments"]),
            ledger=data["ledger"],
            findings=tuple(Finding(**f) for f in data["findings"]),
        )

    def table(self, *, width: int = 100) -> str:
        """The rows as text for a terminal."""
        from rich.console import Console
        from rich.table import Table

        threat = self.identity["threat"]
        title = f"robust accuracy, an upper bound: {threat['norm']}, eps = {radius(threat['eps'])}"
        table = Table(title=title, title_justify="left", caption_justify="left")
        medians = any(row.median is not None for row in self.rows)
        for heading in ("", "accuracy", "95 % interval", "k / n", *["median norm"] * medians, "seconds"):
            table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
        for row in self.rows:
            low, high = row.interval
            interval = f"{100 * low:.1f} - {100 * high:.1f}"
            median = ["" if row.median is None else f"{row.median:.3g}"] * medians
            cells = [f"{100 * row.accuracy:.1f} %", interval, f"{row.k} / {row.n}", *median, f"{row.seconds:.1f}"]
            table.add_row(row.name, *cells, style="bold" if row is self.worst else None)
        out = io.StringIO()
        console = Console(file=out, width=width, highlight=False, markup=False)
        console.print(table)
        for flag in self.flags:
            console.print(f"! {flag}")
        return out.getvalue()


def compare(first: Evaluation, second: Evaluation, name: str = WORST) -> PairedDifference:
    """How much better the first model does on the same images, in one row. Raises UserError where the images or the
    attack differ.
    """
    for key in ("data", "threat"):
        if changed := differences(first.identity[key], second.identity[key], key):
            raise UserError(f"these evaluations can't be compared: {changed[0]}; evaluate both in the same way")
    a, b = ([c == "1" for c in one.row(name).outcomes] for one in (first, second))
    return paired(a, b)


def radius(eps: float) -> str:
    """A radius as people write it: 8/255 where it is a few whole grey levels, else a plain number."""
    steps = eps * 255
    return f"{round(steps)}/255" if 0.5 <= steps < 32.5 and abs(steps - round(steps)) < 1e-6 else f"{eps:g}"


def _row(ledger: Ledger, name: str, settings: Mapping[str, Any]) -> Row:
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


def _median(ledger: Ledger, name: str) -> float | None:
    """The norm that half of the examples exceed or need no more than; None if half of them were not fooled at all."""
    labels = ledger.labels
    tried = [cell for cell in ledger.cells(name) if cell.status in ("fooled", "resisted")]
    norms = sorted(math.inf if c.prediction == labels[c.example] else c.distance or 0.0 for c in tried)
    middle = statistics.median(norms) if norms else math.inf
    return middle if math.isfinite(middle) else None
