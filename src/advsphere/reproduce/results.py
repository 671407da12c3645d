"""Stored results: one JSON line for each measurement of a run, with the settings of the run.

A line has these entries: `kind`, `run` (the run's settings and provenance), `evidence` (the checksum of the ledger or
file behind the measurement), `document` (the output of `Evaluation.to_dict` or `CorruptionRecord.to_dict`, or the
measurement of another kind), for a diagnosis `picture`, and `checksum`, over all others. Older lines lack the checksum,
and older documents have null for numbers that were not stored then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from advsphere.corruption.result import CorruptionRecord
from advsphere.errors import UserError
from advsphere.evaluation.results import Evaluation
from advsphere.files import canonical, content_checksum, content_errors, write_atomically
from advsphere.threat import radius

Kind = Literal["evaluation", "corruptions", "diagnosis", "training"]


@dataclass(frozen=True, kw_only=True)
class StoredResult:
    """One measurement of a run.

    Attributes:
        kind: The kind of measurement.
        run: Settings and provenance of the run: recipe, overrides, network, objective, seed and more.
        evidence: The checksum of the ledger, record, diagnosis or metrics behind the measurement.
        document: The measurement as it was stored.
        picture: For a diagnosis, the path of the image of perturbations, relative to the file of results.
    """

    kind: Kind
    run: Mapping[str, Any]
    evidence: str
    document: Mapping[str, Any]
    picture: str | None = None

    @cached_property
    def evaluation(self) -> Evaluation:
        """The stored evaluation, of kind "evaluation"."""
        return Evaluation.from_dict(self.document)

    @cached_property
    def corruptions(self) -> CorruptionRecord:
        """The stored record, of kind "corruptions"."""
        return CorruptionRecord.from_dict(self.document)

    @property
    def suite(self) -> str:
        """The suite of attacks, or the kind of another measurement."""
        return str(self.document["identity"]["suite"]["name"]) if self.kind == "evaluation" else self.kind

    @property
    def n(self) -> int:
        """Number of images."""
        if self.kind == "evaluation":
            return int(self.document["clean"]["n"])
        if self.kind == "corruptions":
            return len(self.document["cells"][0]["outcomes"])
        return int(self.document["n"])

    @property
    def threat(self) -> str:
        """The threat model in words, or the source of the corrupted images."""
        if self.kind == "corruptions":
            source = self.document["identity"]["corruptions"]
            return f"{source['kind']}, {source.get('table') or source.get('folder')}"
        of = self.document["identity"] if self.kind == "evaluation" else self.document
        return threat_in_words(of["threat"])

    @property
    def key(self) -> str:
        """A key that is equal for two results if the later replaces the earlier."""
        run = [self.run[name] for name in ("recipe", "overrides", "seed", "checkpoint", "data")]
        return canonical([self.kind, self.suite, self.threat, self.n, *run])

    @property
    def label(self) -> str:
        """The run and the measurement, for messages."""
        changed = "".join(f", {change['path']} = {change['new']}" for change in self.run["overrides"])
        return f"{self.run['recipe']}{changed}: {self.suite}, {self.run['checkpoint']}, n = {self.n}"


def threat_in_words(threat: Mapping[str, Any]) -> str:
    """ "linf 8/255"."""
    return f"{threat['norm']} {radius(threat['eps'])}"


def read(path: Path) -> list[StoredResult]:
    """The results of a file; none if it does not exist. Raises UserError for a line that is not a result."""
    results = []
    for number, text in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        with content_errors(f"{path}, line {number}"):
            line = json.loads(text)
            as_written = _fits(line)
            line.pop("checksum", None)
            result = StoredResult(**line)
            known = result.kind in get_args(Kind) and bool(result.key and result.label)
        if not (known and as_written and _fits(result.document)):
            raise UserError(f"{path}, line {number} was changed after it was written; remove the line")
        results.append(result)
    return results


def _fits(content: Mapping[str, Any]) -> bool:
    """Whether a checksum, if there is one, is that of the content."""
    return content.get("checksum") in (None, content_checksum(content))


def add(path: Path, results: Sequence[StoredResult]) -> None:
    """Add results to a file; a result of the same run and measurement is replaced."""
    kept = {result.key: result for result in (*read(path), *results)}
    write_atomically(path, "".join(json.dumps(_line(result)) + "\n" for result in kept.values()).encode())


def _line(result: StoredResult) -> dict[str, Any]:
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    line = {name: value for name, value in values.items() if name != "picture" or value}
    return line | {"checksum": content_checksum(line)}


def replace_between(text: str, content: str, *, begin: str = "<!-- results -->", end: str = "<!-- /results -->") -> str:
    """Replace the text between two markers of a page. Raises UserError if the page lacks them."""
    before, found, rest = text.partition(begin)
    _, also, after = rest.partition(end)
    if not (found and also):
        raise UserError(f"the page has no place for a table; add the lines {begin} and {end} to it")
    return f"{before}{begin}\n{content}\n{end}{after}"


def write_between(page: Path, content: str, **markers: str) -> None:
    """`replace_between` in a page's file."""
    write_atomically(page, replace_between(page.read_text(), content, **markers).encode())
