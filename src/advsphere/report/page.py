"""The page: its sections in order, in one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from advsphere.errors import UserError
from advsphere.files import write_atomically
from advsphere.report import evidence, sections
from advsphere.report.judged import Command, Judged, Pictures
from advsphere.report.rendering import render, stylesheet
from advsphere.report.verdict import cautions, verdicts


def report(
    models: Sequence[Judged],
    path: Path,
    *,
    pictures: Pictures | None = None,
    commands: Sequence[Command] = (),
) -> None:
    """Write a report on one model, or on several that are compared with the first, as one HTML file.

    Raises UserError where the models were judged on different images or threats, and where the file can't be written.
    """
    write_atomically(path, page(models, pictures=pictures, commands=commands).encode())


def page(models: Sequence[Judged], *, pictures: Pictures | None = None, commands: Sequence[Command] = ()) -> str:
    """The HTML of a report; the same arguments give the same text. Arguments and errors as `report`."""
    names = [model.name for model in models]
    if not models or len({*names}) < len(names):
        raise UserError(f"a report needs models, each with a name of its own; it was given: {', '.join(names) or '-'}")
    parts = [
        sections.accuracy(models),
        evidence.flags(models),
        sections.curves(models),
        sections.pictures(pictures),
        evidence.counts(models),
        evidence.training(models),
        evidence.attacks(models),
        evidence.preflight(models),
        evidence.provenance(models),
        evidence.reproduce(commands),
    ]
    identity = models[0].evaluation.identity
    return render(
        "page",
        style=stylesheet(),
        identity=identity,
        threat=sections.threat_of(models[0]),
        verdicts=verdicts(models),
        cautions=cautions(models),
        sections=[part for part in parts if part is not None],
    )
