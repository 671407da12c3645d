"""`advsphere results`: keep measured rows in a file, and make tables from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from advsphere import results
from advsphere.cli.arguments import parse
from advsphere.errors import UserError
from advsphere.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Options:
    """Print the table of a file of measured rows, after adding the rows of some runs' evaluations to it.

    advsphere results results/mine.jsonl runs/digits-pgd-at runs/digits-pgd-at-he
    """

    file: Annotated[Path, tyro.conf.Positional]
    """JSON lines, one for each run and attack."""
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Runs whose finished evaluations are added; a measurement that the file has already is replaced."""
    data_name: str | None = None
    """What the images are called in the rows; the data set's name by default."""
    checkpoint: Literal["best", "last"] | None = None
    """Show the rows of these checkpoints alone."""
    suite: str | None = None
    """Show the rows of this suite alone."""
    into: Path | None = None
    """A page to write the table into, between the lines <!-- results --> and <!-- /results -->."""


def main(arguments: list[str]) -> int:
    """Add rows, print the table, write it into a page."""
    options = parse(Options, arguments or ["--help"], prog="advsphere results")
    for run in options.runs:
        found = sorted(path.parent for path in run.glob("evaluations/*/evaluation.json"))
        if not found:
            raise UserError(f"{run} holds no finished evaluation; `advsphere evaluate {run}` makes one")
        for evaluation in found:
            results.add(options.file, results.rows_of(run, evaluation, data_name=options.data_name))
    if not options.file.exists():
        raise UserError(f"there is no file {options.file}; name runs whose rows are to be put into it")
    rows = results.read(options.file)
    shown = [row for row in rows if options.checkpoint in (None, row["checkpoint"])]
    table = results.markdown([row for row in shown if options.suite in (None, row["suite"])])
    print(table)
    if options.into is not None:
        page = results.replace_between(options.into.read_text(), table)
        write_atomically(options.into, page.encode())
    return 0
