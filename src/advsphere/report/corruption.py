"""The section on common corruptions: no adversary, but what weather, cameras and codecs do to images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from advsphere.errors import UserError
from advsphere.evaluation.corruption_record import ALEXNET, CorruptionRecord
from advsphere.report import numbers
from advsphere.report.judged import Judged
from advsphere.report.rendering import render
from advsphere.report.sections import EN_DASH, Cell, Section

DEEPEST = 45
"""Per cent of colour in a field as accurate as without corruption; the numbers in it stay legible on dark and light."""


class Field(NamedTuple):
    """Of a heat map: an accuracy, and how much of the colour is in its tint, in per cent."""

    number: str
    tint: int


def corruptions(models: Sequence[Judged]) -> Section | None:
    """mCA with its interval, paired differences to the first model, and for each model accuracy at each severity."""
    known = {model.name: model.corruption for model in models if model.corruption is not None}
    if not known:
        return None
    first = next(iter(known.values()))
    rows = [(name, *_cells(record), _difference(record, first)) for name, record in known.items()]
    html = render(
        "corruptions",
        rows=rows,
        maps=[(name, _map(record)) for name, record in known.items()],
        severities=_severities(first),
        n=first.clean.n,
        counted=[name.replace("_", " ") for name in first.counted],
        all_of_them=first.counted == tuple(ALEXNET),
        source=_source(first),
    )
    return Section("corruptions", "Accuracy under common corruptions", html)


def _cells(record: CorruptionRecord) -> tuple[Cell, Cell]:
    clean, mca = record.clean, record.mca
    return (
        Cell(numbers.percent(clean.accuracy), numbers.limits(clean.interval, EN_DASH)),
        Cell(numbers.percent(mca.value), numbers.limits((mca.low, mca.high), EN_DASH)),
    )


def _difference(record: CorruptionRecord, first: CorruptionRecord) -> Cell | None:
    """In mCA, in points; None for the first itself, and empty where they are of different sets."""
    if record is first:
        return None
    try:
        d = record.better_than(first)
    except UserError:
        return Cell()
    told = ", cannot tell" if d.cannot_tell else ""
    return Cell(numbers.points(d.value), f"{numbers.points(d.low)} to {numbers.points(d.high)}{told}")


def _map(record: CorruptionRecord) -> list[tuple[str, bool, list[Field]]]:
    """For each corruption its name, whether mCA counts it, and a field for each severity and for their mean."""
    top = max(record.clean.accuracy, 1e-9)
    rows = []
    for name in record.names:
        shares = [*(record.cell(name, severity).accuracy for severity in _severities(record)), 1 - record.error(name)]
        fields = [Field(numbers.percent(share), round(DEEPEST * min(1.0, share / top))) for share in shares]
        rows.append((name.replace("_", " "), name in record.counted, fields))
    return rows


def _severities(record: CorruptionRecord) -> list[int]:
    return sorted({cell.severity for cell in record.cells})


def _source(record: CorruptionRecord) -> str:
    source = record.identity["corruptions"]
    if source["kind"] != "generated":
        return f"read from {source['folder']}"
    frost = "" if source["frost"] != "procedural" else ", frost with textures made of noise"
    return f"generated with the strengths of {source['table']}{frost}"
