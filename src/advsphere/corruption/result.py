"""The record of a model's accuracy under common corruptions, and the numbers computed from it: mCA and mCE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self

from advsphere.analysis.canvas import INK, canvas, quiet
from advsphere.corruption.severity import CORRUPTIONS, SEVERITIES
from advsphere.errors import UserError
from advsphere.evaluation.rows import Outcomes
from advsphere.files import content_checksum, content_errors, differences, read_json, write_atomically
from advsphere.stats import Estimate, mean_over_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "advsphere corruptions 1"
RECORD = "corruptions.json"
"""The file's name."""

_NOISE, _BLUR = (0.886428, 0.894468, 0.922640), (0.819880, 0.826268, 0.785948, 0.798360)
_WEATHER, _DIGITAL = (0.866816, 0.826572, 0.819324, 0.564592), (0.853204, 0.646056, 0.717840, 0.606500)
ALEXNET = dict(zip(CORRUPTIONS, _NOISE + _BLUR + _WEATHER + _DIGITAL, strict=True))
"""AlexNet's error on ImageNet-C, averaged over severities, which defines mCE (Hendrycks and Dietterich 2019)."""


@dataclass(frozen=True, kw_only=True)
class CorruptionCell(Outcomes):
    """A model's predictions on one corrupted set, or on the "clean" one with severity 0.

    An image is correct if it was classified as labelled. `pixels` is the SHA-256 of the images as float32, in order.
    `seconds` is the time to make or read the images and to classify them.
    """

    corruption: str
    severity: int
    outcomes: str = ""
    pixels: str | None = ""
    seconds: float | None = 0.0


@dataclass(frozen=True, kw_only=True)
class CorruptionRecord:
    """A model's accuracy under common corruptions.

    Attributes:
        identity: Everything that the outcomes depend on: checksums of the model and the clean images, and the source of
            the corrupted images.
        clean: The predictions on the clean images.
        cells: One for each corruption and severity measured so far.
        environments: The machines and library versions of the measurement.
        answers: The model's answers to a few fixed images, by `identity.model_answers`; None in old records.
    """

    identity: Mapping[str, Any]
    clean: CorruptionCell = CorruptionCell(corruption="clean", severity=0)
    cells: tuple[CorruptionCell, ...] = ()
    environments: tuple[Mapping[str, Any], ...] = ()
    answers: Mapping[str, Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The corruptions of this record, measured or still to measure."""
        return tuple(self.identity["corruptions"]["names"])

    @property
    def counted(self) -> tuple[str, ...]:
        """The corruptions that count for mCA and mCE: those of the benchmark's 15 in this record."""
        return tuple(name for name in CORRUPTIONS if name in self.names)

    @property
    def complete(self) -> bool:
        """Whether every corruption is measured at every severity."""
        measured = {(cell.corruption, cell.severity) for cell in self.cells}
        return bool(self.clean.outcomes) and measured >= {(name, s) for name in self.names for s in SEVERITIES}

    def cell(self, name: str, severity: int) -> CorruptionCell:
        """The predictions on one corrupted set.

        Args:
            name: The corruption.
            severity: 1 to 5.

        Returns:
            The predictions.

        Raises:
            UserError: If it was not measured.
        """
        for cell in self.cells:
            if (cell.corruption, cell.severity) == (name, severity):
                return cell
        raise UserError(f"{name} {severity} was not measured; run the same command again to complete the record")

    @property
    def mca(self) -> Estimate:
        """The paper's mCA: accuracy averaged over the `counted` corruptions and all severities."""
        if not self.counted:
            raise UserError("this record has none of the benchmark's 15 corruptions, so it has no mCA")
        return mean_over_images(self.by_image())

    def error(self, name: str) -> float:
        """The error under a corruption, averaged over the severities.

        Args:
            name: The corruption.

        Returns:
            1 - accuracy, in [0, 1].
        """
        return 1 - fmean(self.cell(name, s).accuracy for s in SEVERITIES)

    def mce(self, reference: Self | Mapping[str, float]) -> float:
        """Mean corruption error: the mean over `counted` of this model's error divided by the reference's.

        Args:
            reference: Another record of the same images, or errors by corruption, such as ALEXNET.

        Returns:
            The mCE; 1 where both models are equally good.

        Raises:
            UserError: If the record is of other images, or the reference lacks an error above 0 for a corruption.
        """
        if isinstance(reference, CorruptionRecord):
            _check_same(self, reference)
            reference = {name: reference.error(name) for name in self.counted}
        without = [name for name in self.counted if not reference.get(name)]
        if without or not self.counted:
            raise UserError(f"mCE is undefined: the reference has no error for {', '.join(without) or 'anything'}")
        return fmean(self.error(name) / reference[name] for name in self.counted)

    def better_than(self, other: Self) -> Estimate:
        """The paired difference in mCA of two models on the same images.

        Args:
            other: The record of the other model.

        Returns:
            This model's mCA minus the other's, with its interval.

        Raises:
            UserError: If the records are of different images.
        """
        _check_same(self, other)
        return mean_over_images([a - b for a, b in zip(self.by_image(), other.by_image(), strict=True)])

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-able values, with the printed numbers and a checksum over everything."""
        content: dict[str, Any] = {"format": FORMAT, **asdict(self), "complete": self.complete}
        if self.answers is None:
            del content["answers"]
        if self.complete and self.counted:
            content["numbers"] = {
                "clean": self.clean.accuracy,
                "mCA": {"value": self.mca.value, "low": self.mca.low, "high": self.mca.high},
                "mCA over": list(self.counted),
                "accuracy": {n: [self.cell(n, s).accuracy for s in SEVERITIES] for n in self.names},
            }
        return content | {"checksum": content_checksum(content)}

    def save(self, path: Path | str) -> None:
        """Write the record as a JSON file, completely or not at all.

        Args:
            path: The file.

        Raises:
            UserError: If the file can't be written.
        """
        path = Path(path)
        write_atomically(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a saved record and check its numbers against its outcomes.

        Args:
            path: The file.

        Returns:
            The record.

        Raises:
            UserError: If the file is missing, is not a record, or was changed after it was written.
        """
        path = Path(path)
        data = read_json(path, FORMAT)
        with content_errors(path):
            record = cls.from_dict(data)
            same = json.loads(json.dumps(record.to_dict())) == data
            if not all(isinstance(cell.outcomes, str) for cell in (record.clean, *record.cells)):
                raise TypeError("outcomes are no text")
        if not same:
            raise UserError(f"{path} was changed after it was written; measure again")
        return record

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read the values of `to_dict` without checking them.

        Old results have None for the outcomes on clean images, for pixels and for seconds. Such outcomes are read as
        "", which means not measured.

        Args:
            data: The JSON-able values.

        Returns:
            The record.
        """
        clean = data["clean"]
        return cls(
            identity=data["identity"],
            clean=CorruptionCell(**clean | {"outcomes": clean["outcomes"] or ""}),
            cells=tuple(CorruptionCell(**cell) for cell in data["cells"]),
            environments=tuple(data["environments"]),
            answers=data.get("answers"),
        )

    def by_image(self) -> list[float]:
        """For each image, the share of counted corruptions and severities under which it is classified correctly."""
        columns = [self.cell(name, severity).outcomes for name in self.counted for severity in SEVERITIES]
        return [row.count("1") / len(row) for row in zip(*columns, strict=True)]


def _check_same(first: CorruptionRecord, second: CorruptionRecord) -> None:
    for key in ("data", "corruptions"):
        if changed := differences(first.identity[key], second.identity[key], key):
            raise UserError(f"these records can't be compared: {changed[0]}; measure both on the same images")


def corruption_figure(record: CorruptionRecord) -> Figure:
    """A heat map of accuracy in %; the last column is the mean over severities. Raises UserError if incomplete."""
    rows = [[100 * record.cell(name, s).accuracy for s in SEVERITIES] for name in record.names]
    rows = [[*row, sum(row) / len(row)] for row in rows]
    clean = 100 * record.clean.accuracy
    figure, (axes,) = canvas(4.8, 1.2 + 0.28 * len(rows))
    axes.imshow(rows, cmap="Blues", vmin=0, vmax=max(clean, 1e-9), aspect="auto")
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            colour = "white" if value > 0.6 * clean else INK
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
    axes.axvline(len(SEVERITIES) - 0.5, color="white", linewidth=3)
    axes.set_xticks(range(len(SEVERITIES) + 1), [*map(str, SEVERITIES), "mean"])
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in record.names])
    quiet(axes, "severity", "", title=f"accuracy in %, clean {clean:.1f}", grid="")
    return figure
