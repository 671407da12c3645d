"""The result of an evaluation: accuracy under each attack, computed from a ledger, and its evidence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from advsphere.errors import UserError, needs
from advsphere.evaluation import display, outcomes
from advsphere.evaluation.consistency import require_consistent
from advsphere.evaluation.ledger import CLEAN, Ledger
from advsphere.evaluation.masking import overfitted, refuted, signs
from advsphere.evaluation.rows import Finding, Row, Sign, Strongest, apart_from, found_alone, row_of, unreached
from advsphere.evaluation.sampling import Bound, Sampling
from advsphere.files import content_checksum, content_errors, differences, read_json, write_atomically
from advsphere.threat import ThreatModel
from advsphere.typed import typed

if TYPE_CHECKING:
    from pandas import DataFrame

WORST = "worst case"
"""Name of the row of the worst case over all attacks."""

FORMAT = "advsphere evaluation 3"
LEDGER = "ledger.sqlite"
"""The name of the ledger beside a saved evaluation."""


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
        bound: What the attacks that ran on a sample would still take; None without a certainty, and until the sample is
            complete.
        ledger_file: The file of the ledger, or its content if it was kept in memory; None if there is none.
    """

    clean: Row
    attacks: tuple[Row, ...]
    worst: Row
    identity: Mapping[str, Any]
    environments: tuple[Mapping[str, Any], ...]
    ledger: str
    findings: tuple[Finding, ...] | None
    signs: tuple[Sign, ...] | None
    bound: Bound | None = None
    ledger_file: Path | bytes | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        """One line: model, threat model, number of images, clean and robust accuracy with its interval."""
        return display.line(self)

    def _repr_html_(self) -> str:
        return display.notebook(self)

    @classmethod
    def of(cls, ledger: Ledger, findings: Sequence[Finding] = ()) -> Self:
        """Derive every number from a ledger.

        Args:
            ledger: The outcomes of each attack on each example.
            findings: Findings of preflight.

        Returns:
            The evaluation.

        Raises:
            UserError: If the ledger lacks predictions on clean images, or its values are not those of an evaluation.
        """
        with content_errors(ledger.path or "the ledger"):
            return cls._of(ledger, findings)._checked()

    @classmethod
    def _of(cls, ledger: Ledger, findings: Sequence[Finding]) -> Self:
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
            bound=Sampling(ledger).bound(),
            ledger_file=ledger.content() if ledger.path is None else ledger.path.absolute(),
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
            says = f"{sign.check}, so what these attacks leave is no robust accuracy; {sign.advice}"
            flags.insert(0, f"{display.NO_VERDICT}: {says}")
        flags += [f"{self.bound}; {self.passes:.0f} forwards an image in all"] if self.bound else []
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
    def collapsed(self) -> str | None:
        """A sentence if the network resists one large step and little else, as after catastrophic overfitting."""
        return overfitted(self.clean, self.attacks)

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
    def passes(self) -> float:
        """Forwards of the search for each image, over all attacks."""
        return (self.worst.forwards or 0) / self.worst.n

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
        if self.bound is not None:
            content["bound"] = self.bound.to_dict()
        return content | {"checksum": content_checksum(content)}

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], source: object = "this evaluation", ledger_file: Path | str | None = None
    ) -> Self:
        """Read the data that `to_dict` returned.

        Args:
            data: The JSON data.
            source: Origin of the data, for the error message.
            ledger_file: The file of its ledger, if there is one.

        Returns:
            The evaluation.

        Raises:
            UserError: If the data was changed after it was written, contradicts itself, or is not that of an
                evaluation.
        """
        if data.get("checksum") != content_checksum(data):
            raise UserError(f"{source} was changed after it was written, so it is no evidence; evaluate again")

        def row(d: Mapping[str, Any]) -> Row:
            return Row(**{k: d[k] for k in Row.__dataclass_fields__})

        with content_errors(source):
            read = cls(
                clean=row(data["clean"]),
                attacks=tuple(row(d) for d in data["attacks"]),
                worst=row(data["worst"]),
                identity=data["identity"],
                environments=tuple(data["environments"]),
                ledger=data["ledger"],
                findings=None if data["findings"] is None else tuple(Finding(**f) for f in data["findings"]),
                signs=None if data["signs"] is None else tuple(Sign(**s) for s in data["signs"]),
                bound=Bound.from_dict(data["bound"]) if "bound" in data else None,
                ledger_file=None if ledger_file is None else Path(ledger_file),
            )._checked()
            require_consistent(read, data)
        return read

    def _checked(self) -> Self:
        """Itself. Raises an error unless all numbers and sentences can be printed."""
        threat = self.identity["threat"]
        ThreatModel(norm=threat["norm"], eps=threat["eps"])
        texts = [text for one in self.findings or () for text in (one.check, one.status, one.detail)]
        texts += [text for one in self.signs or () for text in (one.check, one.status, one.detail, one.advice)]
        if not all(isinstance(text, str) for text in (self.ledger, *texts)):
            raise TypeError("a sentence is no text")
        for row in self.rows:
            row.check()
            if row.n != self.clean.n:
                raise ValueError(f"{row.name!r} has {row.n} outcomes, {self.clean.name!r} has {self.clean.n}")
        self.to_dict()
        return self

    @typed
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
    @typed
    def load(cls, path: Path | str) -> Self:
        """Read a saved evaluation, with the ledger if there is a "ledger.sqlite" beside it.

        Args:
            path: The file.

        Returns:
            The evaluation.

        Raises:
            UserError: If the file is missing, of another kind, or was changed after it was written.
        """
        path = Path(path)
        beside = path.absolute().with_name(LEDGER)
        return cls.from_dict(read_json(path, FORMAT), path, beside if beside.is_file() else None)

    def table(self, *, width: int = 100) -> str:
        """The rows as text for a terminal.

        Args:
            width: Characters per line.

        Returns:
            The table, and below it the strongest attack, flags and signs of gradient masking.
        """
        return display.text(self, width)

    def records(self) -> list[dict[str, Any]]:
        """The outcome of each attack on each image.

        Returns:
            A dictionary for each image and attack, in the order of the images, then of the attacks. "image" is the
            position of the image from 0, "file" its file name or None, "label" its class and "clean_prediction" the
            class that the model predicts without an attack. "attack" is the name of the attack, and "outcome" is
            "fooled", "robust" or "not tried": the image is misclassified without an attack, an earlier attack of the
            cascade fooled it, or the time was over. "norm" is the norm of the perturbation, in the norm of the threat
            model, and "prediction" the class of the perturbed image. Both are None if the attack was not tried. "norm"
            is also None if the attack did not change the class. It is above eps, and the outcome "robust", if the
            attack only found an image outside the ball. A prediction of -1 stands for logits with NaN.

        Raises:
            UserError: If the ledger is not at hand, damaged, or has changed since this evaluation.
        """
        with outcomes.opened(self.ledger_file, self.ledger) as book:
            return outcomes.records(book)

    def to_pandas(self) -> DataFrame:
        """The records as a data frame with one row for each image and attack, for further analysis.

        Returns:
            The columns are those of `records`. A missing norm is NaN, a missing prediction <NA>.

        Raises:
            UserError: If pandas is not installed, and as `records`.
        """
        needs("pandas", "pandas")
        import pandas

        frame = pandas.DataFrame(self.records(), columns=[*outcomes.COLUMNS])
        return frame.astype({"norm": "float64", "prediction": "Int64"})

    def adversarial(self, attack: str | None = None) -> outcomes.AdversarialImages:
        """The adversarial images, as they are stored in the ledger. Each is in the ball and fools the model.

        Args:
            attack: The attack that found them. By default the image that any attack found nearest to the clean image.

        Returns:
            The images (N, C, H, W) in [0, 1], their labels (N,) and their positions (N,), of the images that are
            fooled. Those that are misclassified without an attack are not among them.

        Raises:
            UserError: If there is no such attack, and as `records`.
        """
        if attack is not None and self.row(attack) not in self.attacks:
            raise UserError(f"{attack!r} is no attack; there are {', '.join(row.name for row in self.attacks)}")
        with outcomes.opened(self.ledger_file, self.ledger) as book:
            return outcomes.adversarial(book, attack)
