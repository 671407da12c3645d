"""The page: its sections in order, in one file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from advsphere.errors import UserError
from advsphere.files import write_atomically
from advsphere.report import evidence, insights, sections
from advsphere.report.collect import Command, ModelReport, Pictures
from advsphere.report.rendering import checksum, render, script, stylesheet
from advsphere.report.robustbench import rows
from advsphere.report.verdict import cautions, verdicts

FORMAT = "advsphere report 1"


def report(
    models: Sequence[ModelReport],
    path: Path,
    *,
    pictures: Pictures | None = None,
    commands: Sequence[Command] = (),
    warnings: Sequence[str] = (),
    data_name: str | None = None,
) -> None:
    """Write a report on one model, or on several that are compared with the first, as one HTML file; beside it, with
    the ending .json, the models' rows as RobustBench keeps them, and the warnings.

    commands: to reproduce it. warnings: sentences to be read with the verdict, e.g. on confounders. data_name: what the
    images are called, if the name that the evaluation knows could mislead. Raises UserError where the models were
    judged on different images or threats, and where a file can't be written.
    """
    html = page(models, pictures=pictures, commands=commands, warnings=warnings, data_name=data_name)
    write_atomically(path, html.encode())
    record = {
        "format": FORMAT,
        "rows": [row for model in models for row in rows(model, data_name)],
        "notes": list(warnings),
    }
    write_atomically(path.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())


def page(
    models: Sequence[ModelReport],
    *,
    pictures: Pictures | None = None,
    commands: Sequence[Command] = (),
    warnings: Sequence[str] = (),
    data_name: str | None = None,
) -> str:
    """The HTML of a report; the same arguments give the same text. Arguments and errors as `report`."""
    names = [model.name for model in models]
    if not models or len({*names}) < len(names):
        raise UserError(f"a report needs models, each with a name of its own; it was given: {', '.join(names) or '-'}")
    data = data_name or models[0].evaluation.identity["data"]["name"]
    parts = [
        sections.seeds(models, data),
        sections.accuracy(models, data),
        evidence.flags(models),
        sections.curves(models),
        insights.corruptions(models),
        insights.classes(models),
        insights.agreement(models),
        insights.angles(models),
        insights.gradients(models),
        insights.pictures(pictures),
        evidence.counts(models),
        evidence.training(models),
        evidence.attacks(models),
        evidence.preflight(models),
        evidence.provenance(models),
        evidence.reproduce(commands),
    ]
    code = script()
    html = render(
        "page",
        style=stylesheet(),
        script=code,
        script_checksum=checksum(code),
        data=data,
        n=models[0].evaluation.worst.n,
        threat=sections.threat_of(models[0]),
        verdicts=verdicts(models),
        cautions=[*cautions(models), *warnings],
        flagged=any(e.flags or e.raised for model in models for e in model.checkpoints.values()),
        sections=[part for part in parts if part is not None],
    )
    return str(html)
