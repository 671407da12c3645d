"""The record of a model's accuracy under corruption, and the numbers that are read off it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from advsphere.corruption import CORRUPTIONS, SEVERITIES
from advsphere.errors import UserError
from advsphere.files import content_checksum, differences, read_json, write_atomically
from advsphere.stats import Mean, wilson

FORMAT = "advsphere corruptions 1"
RECORD = "corruptions.json"
"""The file's name."""

_NOISE, _BLUR = (0.886428, 0.894468, 0.922640), (0.819880, 0.826268, 0.785948, 0.798360)
_WEATHER, _DIGITAL = (0.866816, 0.826572, 0.819324, 0.564592), (0.853204, 0.646056, 0.717840, 0.606500)
ALEXNET = dict(zip(CORRUPTIONS, _NOISE + _BLUR + _WEATHER + _DIGITAL, strict=True))
"""AlexNet's error on ImageNet-C, averaged over severities: what mCE was defined with (Hendrycks and Dietterich 2019).
"""


@dataclass(frozen=True, kw_only=True)
class CorruptionCell:
    """A model on one corrupted set. outcomes: a character for each image, "1" if it was classified as labelled, else
    "0". pixels: SHA-256 of the images as float32, in order. seconds: of making or reading them, and of classifying.
    """

    corruption: str
    severity: int
    outcomes: str = ""
    pixels: str = ""
    seconds: float = 0.0

    @property
    def n(self) -> int:
        return len(self.outcomes)

    @property
    def k(self) -> int:
        return self.outcomes.count("1")

    @property
    def accuracy(self) -> float:
        return self.k / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, for the sample of images alone."""
        return wilson(self.k, self.n)


@dataclass(frozen=True, kw_only=True)
class CorruptionRecord:
    """What a model makes of corrupted images.

    identity: all that the outcome depends on: checksums of model and clean images, where the corrupted ones come from.
    clean: on the images as they are. cells: one for each corruption and severity that is done. environments: where it
    was run.
    """

    identity: Mapping[str, Any]
    clean: CorruptionCell = CorruptionCell(corruption="clean", severity=0)
    cells: tuple[CorruptionCell, ...] = ()
    environments: tuple[Mapping[str, Any], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The corruptions that are, or are to be, measured."""
        return tuple(self.identity["corruptions"]["names"])

    @property
    def counted(self) -> tuple[str, ...]:
        """Those of the 15 that enter mCA and mCE: all that there are."""
        return tuple(name for name in CORRUPTIONS if name in self.names)

    @property
    def complete(self) -> bool:
        return bool(self.clean.outcomes) and all(self.has(name, s) for name in self.names for s in SEVERITIES)

    def has(self, name: str, severity: int) -> bool:
        return any(cell.corruption == name and cell.severity == severity for cell in self.cells)

    def cell(self, name: str, severity: int) -> CorruptionCell:
        """One of them. Raises UserError where it was not measured."""
        for cell in self.cells:
            if cell.corruption == name and cell.severity == severity:
                return cell
        raise UserError(f"{name} {severity} was not measured; run the same command again to complete the record")

    def mean(self, names: Sequence[str]) -> Mean:
        """Accuracy averaged over these corruptions and all severities. Raises UserError where one was not measured."""
        return Mean.of(self._means(names))

    @property
    def mca(self) -> Mean:
        """The paper's mCA: accuracy averaged over `counted` and all severities."""
        if not self.counted:
            raise UserError("mCA is over the 15 corruptions of the benchmark, of which this record has none")
        return self.mean(self.counted)

    def error(self, name: str) -> float:
        """1 - accuracy, averaged over the severities."""
        return 1 - fmean(self.cell(name, s).accuracy for s in SEVERITIES)

    def mce(self, reference: Self | Mapping[str, float]) -> float:
        """Mean corruption error: the mean over `counted` of this model's error over the reference's.

        reference: another record of the same images, or errors by corruption, such as ALEXNET. Raises UserError for
        records of other images, and where the reference lacks a corruption or makes no error under one.
        """
        if isinstance(reference, CorruptionRecord):
            _check_same(self, reference)
            reference = {name: reference.error(name) for name in self.counted}
        without = [name for name in self.counted if not reference.get(name)]
        if without or not self.counted:
            raise UserError(
                f"mCE has no meaning here: the reference has no error for {', '.join(without) or 'anything'}"
            )
        return fmean(self.error(name) / reference[name] for name in self.counted)

    def better_than(self, other: Self) -> Mean:
        """The difference of two models' mCA on the same images, paired. Raises UserError where the images differ."""
        _check_same(self, other)
        pairs = zip(self._means(self.counted), other._means(self.counted), strict=True)
        return Mean.of([a - b for a, b in pairs])

    def put(self, cell: CorruptionCell) -> Self:
        """The record with one more."""
        return replace(self, clean=cell) if cell.corruption == "clean" else replace(self, cells=(*self.cells, cell))

    def in_environment(self, here: Mapping[str, Any]) -> Self:
        """The record, going on here."""
        known = any(not differences(there, here) for there in self.environments)
        return self if known else replace(self, environments=(*self.environments, here))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the printed numbers and a checksum over all of it."""
        content: dict[str, Any] = {"format": FORMAT, **asdict(self), "complete": self.complete}
        if self.complete and self.counted:
            content["numbers"] = {
                "clean": self.clean.accuracy,
                "mCA": asdict(self.mca),
                "mCA over": list(self.counted),
                "accuracy": {n: [self.cell(n, s).accuracy for s in SEVERITIES] for n in self.names},
            }
        return content | {"checksum": content_checksum(content)}

    def save(self, path: Path) -> None:
        """Write the JSON file, whole or not at all. Raises UserError where that can't be done."""
        write_atomically(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """A saved record. Raises UserError for a file that is missing, of another kind, or changed since; the numbers
        in it are computed again from the outcomes, and have to be the same.
        """
        data = read_json(path, FORMAT)
        record = cls(
            identity=data["identity"],
            clean=CorruptionCell(**data["clean"]),
            cells=tuple(CorruptionCell(**cell) for cell in data["cells"]),
            environments=tuple(data["environments"]),
        )
        if json.loads(json.dumps(record.to_dict())) != data:
            raise UserError(f"{path} was changed after it was written; measure again, or take it as no evidence")
        return record

    def _means(self, names: Sequence[str]) -> list[float]:
        """For each image, the share of these corruptions and severities under which it is classified as labelled."""
        columns = [self.cell(name, severity).outcomes for name in names for severity in SEVERITIES]
        return [row.count("1") / len(row) for row in zip(*columns, strict=True)]


def _check_same(first: CorruptionRecord, second: CorruptionRecord) -> None:
    for key in ("data", "corruptions"):
        if changed := differences(first.identity[key], second.identity[key], key):
            raise UserError(f"these records can't be compared: {changed[0]}; measure both on the same images")
