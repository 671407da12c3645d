"""`advsphere results`: keep measured rows in a file, and make tables from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from advsphere.cli.arguments import parse
from advsphere.errors import UserError
from advsphere.files import write_atomically
from advsphere.reproduce import pages, results
from advsphere.reproduce.collecting import INSIDE, VALIDATION, Status, check, diagnosed
from advsphere.reproduce.results import corruption_markdown


@dataclass(frozen=True, kw_only=True)
class Options:
    """Print the table of a file of measured rows, after adding the rows of some runs' evaluations to it.

    Keep rows:  advsphere results results/mine.jsonl runs/digits-pgd-at runs/digits-pgd-at-he

    Write the pages of the paper's tables:  advsphere results results --pages docs/results

    Recompute:  advsphere results results runs --check
    """

    file: Annotated[Path, tyro.conf.Positional]
    """JSON lines, one for each run and attack; or a folder of such files."""
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Runs whose finished evaluations and diagnoses are added, or single evaluations; a measurement that the file has
    already is replaced. With --check: where the evidence is looked for.
    """
    data_name: str | None = None
    """What the images are called in the rows; the data set's name by default."""
    checkpoint: Literal["best", "last"] | None = None
    """Show the rows of these checkpoints alone."""
    suite: str | None = None
    """Show the rows of this suite alone."""
    into: Path | None = None
    """A page to write the table into, between the lines <!-- results --> and <!-- /results -->; with --pages, what the
    objectives say together."""
    pages: Path | None = None
    """A folder to write a page for each of the paper's tables into, with its figures."""
    check: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Recompute the rows whose ledgers are below the runs, and name those whose are not."""


def main(arguments: list[str]) -> int:
    """Add rows, print the table, write it into a page; or write all pages; or check the rows."""
    options = parse(Options, arguments or ["--help"], prog="advsphere results")
    for run in options.runs:
        if not run.is_dir():
            raise UserError(f"there is no folder {run}; name a run, or with --check a folder of runs")
    if options.into is not None:
        results.replace_between(_page(options.into), "")  # before anything is written
    if options.check:
        return _check(options)
    if options.pages is not None:
        if options.runs:
            raise UserError("--pages is of the rows that are there; add those of runs first, in a call without it")
        rows_of = {file: results.read(file) for file in _files(options.file)}
        written = pages.write(rows_of, options.pages, options.into)
        print("\n".join(map(str, written)))
        return 0
    if options.file.is_dir():
        raise UserError(f"{options.file} is a folder; name a file of it, or say --pages or --check")
    added = [row for place in options.runs for row in _rows(place, options)]
    if added:
        results.add(options.file, added)
    rows = [row for file in _files(options.file) for row in results.read(file)]
    shown = [row for row in rows if options.checkpoint in (None, row["checkpoint"])]
    shown = [row for row in shown if options.suite in (None, row["suite"])]
    attacked = [row for row in shown if row["suite"] not in ("corruptions", INSIDE, VALIDATION)]
    corrupted = [row for row in shown if row["suite"] == "corruptions"]
    kinds = ((results.markdown, attacked), (corruption_markdown, corrupted))
    table = "\n\n".join(make(part) for make, part in kinds if part)
    print(table)
    if options.into is not None:
        page = results.replace_between(_page(options.into), table)
        write_atomically(options.into, page.encode())
    return 0


def _rows(place: Path, options: Options) -> list[results.Row]:
    """Of all finished evaluations and diagnoses of a run, or of one evaluation. Raises UserError where there is none,
    and where two measured the same with other settings.
    """
    if (place / "evaluation.json").is_file():
        return results.rows_of(place.absolute().parents[1], place, data_name=options.data_name)
    found = sorted(path.parent for path in place.glob("evaluations/*/evaluation.json"))
    if not found:
        raise UserError(f"{place} holds no finished evaluation; `advsphere evaluate {place}` makes one")
    rows, seen = list[results.Row](), dict[tuple[str, ...], Path]()
    for evaluation in found:
        own = results.rows_of(place, evaluation, data_name=options.data_name)
        other = seen.setdefault(results.measurement(own[0]), evaluation)
        if other != evaluation:
            raise UserError(
                f"{other} and {evaluation} are of one suite on as many images, with other settings; name the one that "
                f"counts: advsphere results {options.file} {evaluation}"
            )
        rows += own
    for diagnosis in sorted(place.glob("diagnosis/**/diagnosis.json")):
        rows += diagnosed(diagnosis, options.file.parent, data_name=options.data_name)
    return rows


def _page(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise UserError(f"could not read {path}: {error.strerror}; --into is a page that is there") from error


def _files(place: Path) -> list[Path]:
    """The file, or those of the folder."""
    found = sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
    if not (found and all(file.is_file() for file in found)):
        raise UserError(f"there is no file {place}; name runs whose rows are to be put into it")
    return found


def _check(options: Options) -> int:
    """Print what became of each row; 1 if one is wrong."""
    found = [one for file in _files(options.file) for one in check(results.read(file), options.runs)]
    for one in found:
        print(f"{one.status}: {one.of}, {one.rows} rows{f': {one.detail}' if one.detail else ''}")
    counts = {status: sum(one.rows for one in found if one.status == status) for status in get_args(Status)}
    print(", ".join(f"{count} rows {status}" for status, count in counts.items()))
    return 1 if counts["WRONG"] else 0
