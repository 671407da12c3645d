"""The page: its header and all registered sections in order, in one file that loads nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from advsphere.errors import UserError
from advsphere.files import write_atomically
from advsphere.report import accuracy, insights, record  # noqa: F401 (their sections register themselves)
from advsphere.report.collect import ModelReport
from advsphere.report.rendering import asset, render, script_checksum
from advsphere.report.robustbench import rows
from advsphere.report.sections import SECTIONS
from advsphere.report.verdict import cautions, conclusions

FORMAT = "advsphere report 1"


def report(
    models: Sequence[ModelReport],
    path: Path | str,
    *,
    commands: Sequence[tuple[str, str]] = (),
    warnings: Sequence[str] = (),
) -> None:
    """Write a report on one model, or on several models compared with the first, as one HTML file.

    A file of the same name with the ending .json holds the models' rows in the format of RobustBench, and the warnings.

    Args:
        models: The models, each with its own name; the first is the baseline.
        path: The HTML file.
        commands: Pairs of a title and a command, for the section on reproducing the numbers.
        warnings: Sentences that limit the conclusions, e.g. on confounders.

    Raises:
        UserError: If the models were evaluated on different images or threat models, two have the same name, or a file
            can't be written.
    """
    path = Path(path)
    write_atomically(path, page(models, commands=commands, warnings=warnings).encode())
    found = {"format": FORMAT, "rows": [row for model in models for row in rows(model)], "notes": list(warnings)}
    write_atomically(path.with_suffix(".json"), (json.dumps(found, indent=1) + "\n").encode())


def page(
    models: Sequence[ModelReport], *, commands: Sequence[tuple[str, str]] = (), warnings: Sequence[str] = ()
) -> str:
    """The HTML of a report; the same arguments give the same text.

    Args:
        models: As for `report`.
        commands: As for `report`.
        warnings: As for `report`.

    Returns:
        The page.

    Raises:
        UserError: If the models were evaluated on different images or threat models, or two have the same name.
    """
    names = [model.name for model in models]
    if not models or len({*names}) < len(names):
        raise UserError(f"a report needs models with different names; it was given: {', '.join(names) or 'none'}")
    ordered = sorted(SECTIONS.items(), key=lambda item: item[1].order)
    contents = [(id_, section.title, section.function(models)) for id_, section in ordered]
    if commands:
        contents.append(("reproduce", "Reproduce and verify", render("reproduce", commands=commands)))
    code = asset("page.js")
    html = render(
        "page",
        style=asset("style.css"),
        script=code,
        script_checksum=script_checksum(code),
        first=models[0],
        conclusions=conclusions(models),
        cautions=[*cautions(models), *warnings],
        flagged=any(e.flags or e.raised for model in models for e in model.checkpoints.values()),
        sections=[(id_, title, content) for id_, title, content in contents if content is not None],
    )
    return str(html)
