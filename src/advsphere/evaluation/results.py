"""The result of an evaluation: accuracy under each attack, computed from a ledger, and its evidence."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from advsphere.errors import UserError
from advsphere.evaluation.ledger import CLEAN, Ledger
from advsphere.evaluation.masking import refuted, signs
from advsphere.evaluation.rows import Finding, Row, Sign, apart_from, found_alone, row_of, unreached
from advsphere.files import content_checksum, differences, read_json, write_atomically
from advsphere.stats import PairedDifference, paired
from advsphere.threat import radius

WORST = "worst case"
"""Name of the row of the worst case over all attacks."""

NO_VERDICT = "not a verdict"
"""Printed instead of an accuracy if a sign of gradient masking shows that the attacks fail on the model."""

FORMAT = "advsphere evaluation 3"


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


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's accuracy under a suite of attacks, and the evidence for it.

    Attributes:
        clean: The row of the clean images.
        attacks: One row for each attack, in the suite's order.
        worst: The worst case: an example counts only if it resisted every attack.
        identity: Everything that the outcomes depend on: checksums of model and data, threat, suite, seed, the
            settings of each attack.
        environments: Versions and hardware of each process that contributed.
        ledger: Checksum of the ledger that the rows were derived from.
        findings: Findings of preflight; None if they were not stored.
        signs: Signs of gradient masking, raised or not; None if they were not stored.
    """

    clean: Row
    attacks: tuple[Row, ...]
    worst: Row
    identity: Mapping[str, Any]
    environments: tuple[Mapping[str, Any], ...]
    ledger: str
    findings: tuple[Finding, ...] | None
    signs: tuple[Sign, ...] | None

    @classmethod
    def of(cls, ledger: Ledger, findings: Sequence[Finding] = ()) -> Self:
        """Derive every number from a ledger.

        Args:
            ledger: The outcomes of each attack on each example.
            findings: Findings of preflight.

        Returns:
            The evaluation.

        Raises:
            UserError: If the ledger lacks predictions on clean images.
        """
        identity = ledger.identity
        attacks = identity["attacks"]
        clean = row_of(ledger, CLEAN, {})
        rows = tuple(row_of(ledger, name, settings) for name, settings in attacks.items())
        if clean.unreached:
            raise UserError(f"{clean.unreached} of {clean.n} clean images are missing; run the same evaluation again")
        worst = Row(
            name=WORST,
            outcomes=ledger.outcomes(),
            settings={},
            invalid=sum(row.invalid or 0 for row in rows),
            unreached=unreached(ledger, ledger.outcomes(), list(attacks)),
            median=None,
            seconds=sum(row.seconds for row in (clean, *rows)),
            forwards=sum(row.forwards or 0 for row in (clean, *rows)),
        )
        return cls(
            clean=clean,
            attacks=rows,
            worst=worst,
            identity=identity,
            environments=tuple(ledger.environments),
            ledger=ledger.checksum(),
            findings=tuple(findings),
            signs=signs(rows, ledger.probes, identity["model"]["scale"]),
        )

    @property
    def rows(self) -> tuple[Row, ...]:
        """The clean row, each attack, and the worst case."""
        return (self.clean, *self.attacks, self.worst)

    def row(self, name: str) -> Row:
        """The row of an attack.

        Args:
            name: The attack's name, "clean" or "worst case".

        Returns:
            The row.

        Raises:
            UserError: If there is no such row; the message lists the names.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise UserError(f"there is no row {name!r}; there are {', '.join(r.name for r in self.rows)}")

    @property
    def flags(self) -> tuple[str, ...]:
        """Warnings that a reader must know before relying on the numbers."""
        flags = [f.detail for f in self.findings or () if f.status == "noted"]
        if sign := self.refuted(self.worst):
            flags.insert(
                0, f"{NO_VERDICT}: {sign.check}, so what these attacks leave is no robust accuracy; {sign.advice}"
            )
        for row in self.attacks:
            if row.invalid:
                flags.append(f"{row.name}: {row.invalid} results left the ball or the pixel range; counted as resisted")
            if row.unreached and row.ran:
                flags.append(f"{row.name}: {row.unreached} images not reached in time; counted as resisted")
        if late := [row.name for row in self.attacks if not row.ran]:
            flags.append(f"not run, because the time was over: {', '.join(late)}")
        for other in self.environments[1:]:
            changed = differences(self.environments[0], other)
            flags.append(f"continued in another environment: {'; '.join(map(str, changed))}")
        if self.findings is None or self.signs is None:
            flags.append("the findings of preflight and the signs of gradient masking were not stored")
        return tuple(flags)

    @property
    def raised(self) -> tuple[Sign, ...]:
        """The signs of gradient masking that were raised."""
        return tuple(sign for sign in self.signs or () if sign.status == "raised")

    def refuted(self, row: Row) -> Sign | None:
        """The sign that shows that a row's number is no robust accuracy, because its attack fails on this model.

        Args:
            row: A row of this evaluation.

        Returns:
            The first such sign; None if the number stands.
        """
        if row is self.clean:
            return None
        return refuted(None if row is self.worst else row, self.attacks, self.raised)

    @property
    def looked_for(self) -> str:
        """A sentence that names the signs of gradient masking that are absent, and those this suite can't judge."""
        absent, unjudged = (
            ", ".join(s.check for s in self.signs or () if s.status == status) for status in ("absent", "unjudged")
        )
        sentence = f"signs of gradient masking looked for and not found: {absent or 'none'}"
        return sentence + (f"; not judged by these attacks: {unjudged}" if unjudged else "")

    @property
    def strongest(self) -> Strongest | None:
        """The attack that leaves the fewest examples correct; None if no attack fooled the model."""
        least = min((row.k for row in self.attacks), default=self.clean.k)
        if least == self.clean.k:
            return None
        best = [row for row in self.attacks if row.k == least]
        best = [row for row in best if not {*row.after} & {other.name for other in best}]
        others = [row for row in apart_from(self.attacks, best) if row not in best]
        tried = len(others) + len(best) == len(self.attacks)
        alone = found_alone(best, [self.clean, *others]) if tried else None
        return Strongest(tuple(row.name for row in best), least, self.clean.n, alone)

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as JSON data with a checksum over its content."""
        best = self.strongest
        content = {
            "format": FORMAT,
            "note": "accuracy under attack is an upper bound of robust accuracy",
            "clean": self.clean.to_dict(),
            "attacks": [row.to_dict() for row in self.attacks],
            "worst": self.worst.to_dict(),
            "strongest": None if best is None else best._asdict() | {"names": list(best.names)},
            "flags": list(self.flags),
            "signs": None if self.signs is None else [asdict(sign) for sign in self.signs],
            "identity": self.identity,
            "environments": list(self.environments),
            "ledger": self.ledger,
            "findings": None if self.findings is None else [asdict(f) for f in self.findings],
        }
        return content | {"checksum": content_checksum(content)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: object = "this evaluation") -> Self:
        """Read the data that `to_dict` returned.

        Args:
            data: The JSON data.
            source: Origin of the data, for the error message.

        Returns:
            The evaluation.

        Raises:
            UserError: If the data was changed after it was written.
        """
        if data.get("checksum") != content_checksum(data):
            raise UserError(f"{source} was changed after it was written, so it is no evidence; evaluate again")

        def row(d: Mapping[str, Any]) -> Row:
            return Row(**{k: d[k] for k in Row.__dataclass_fields__})

        return cls(
            clean=row(data["clean"]),
            attacks=tuple(row(d) for d in data["attacks"]),
            worst=row(data["worst"]),
            identity=data["identity"],
            environments=tuple(data["environments"]),
            ledger=data["ledger"],
            findings=None if data["findings"] is None else tuple(Finding(**f) for f in data["findings"]),
            signs=None if data["signs"] is None else tuple(Sign(**s) for s in data["signs"]),
        )

    def save(self, path: Path | str) -> None:
        """Write the JSON file, whole or not at all.

        Args:
            path: The file.

        Raises:
            UserError: If the file can't be written.
        """
        path = Path(path)
        write_atomically(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a saved evaluation.

        Args:
            path: The file.

        Returns:
            The evaluation.

        Raises:
            UserError: If the file is missing, of another kind, or was changed after it was written.
        """
        path = Path(path)
        return cls.from_dict(read_json(path, FORMAT), path)

    def table(self, *, width: int = 100) -> str:
        """The rows as text for a terminal.

        Args:
            width: Characters per line.

        Returns:
            The table, and below it the strongest attack, flags and signs of gradient masking.
        """
        from rich.console import Console
        from rich.table import Table

        threat = self.identity["threat"]
        says = (
            "robust accuracy, an upper bound" if self.refuted(self.worst) is None else "no verdict on robust accuracy"
        )
        title = f"{says}: {threat['norm']}, eps = {radius(threat['eps'])}"
        table = Table(title=title, title_justify="left", caption_justify="left")
        medians = any(row.median is not None for row in self.rows)
        for heading in ("", "accuracy", "95 % interval", "k / n", *["median norm"] * medians, "seconds"):
            table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=heading != "")
        for row in self.rows:
            low, high = row.interval
            interval = f"{100 * low:.1f} - {100 * high:.1f}"
            median = ["" if row.median is None else f"{row.median:.3g}"] * medians
            found = [NO_VERDICT, ""] if self.refuted(row) else [f"{100 * row.accuracy:.1f} %", interval]
            cells = [*found, f"{row.k} / {row.n}", *median, f"{row.seconds:.1f}"]
            if not row.ran:
                cells = ["not run", *[""] * (len(cells) - 1)]
            table.add_row(row.name, *cells, style="bold" if row is self.worst else None)
        out = io.StringIO()
        console = Console(file=out, width=width, highlight=False, markup=False)
        console.print(table)
        below = [] if self.strongest is None else [f"strongest: {self.strongest}"]
        below += [f"! {flag}" for flag in self.flags]
        for sign in self.raised:
            below += [f"! sign of gradient masking: {sign.check}", f"    {sign.detail}", f"    -> {sign.advice}"]
        for line in (*below, self.looked_for):
            wrapped = textwrap.wrap(line, width, subsequent_indent="    ", break_on_hyphens=False)
            console.print("\n".join(wrapped), soft_wrap=True)
        return out.getvalue()


def compare(first: Evaluation, second: Evaluation, name: str = WORST) -> PairedDifference:
    """Compare two models on the same images.

    Args:
        first: An evaluation.
        second: Another one, of the same images under the same threat.
        name: The row to compare.

    Returns:
        The paired difference, first model minus second.

    Raises:
        UserError: If images or threat differ, or one of them lacks the row.
    """
    for key in ("data", "threat"):
        if changed := differences(first.identity[key], second.identity[key], key):
            raise UserError(f"these evaluations can't be compared: {changed[0]}; evaluate both in the same way")
    a, b = ([c == "1" for c in one.row(name).outcomes] for one in (first, second))
    return paired(a, b)
