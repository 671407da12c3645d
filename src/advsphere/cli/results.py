"""`advsphere results`: store the measurements of runs in a file, and make tables from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from advsphere.cli.arguments import parse
from advsphere.errors import UserError
from advsphere.files import write_atomically
from advsphere.reproduce import pages, results
from advsphere.reproduce.check import Status, check
from advsphere.reproduce.collecting import diagnosed, evaluated
from advsphere.reproduce.listing import listing
from advsphere.reproduce.results import StoredResult
from advsphere.reproduce.tables import table as find_table


@dataclass(frozen=True, kw_only=True)
class Options:
    """Add the evaluations of runs to a file of stored results, and print its tables.

    Store:  advsphere results results/mine.jsonl runs/digits-pgd-at runs/digits-pgd-at-he

    Write the pages of the paper's tables:  advsphere results results --pages docs/results

    Recompute:  advsphere results results runs --check
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A file of JSON lines, one for each measurement of a run, or a folder of such files."""
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN ...]")] = ()
    """Runs whose finished evaluations and diagnoses are added, or single evaluations. A result that is already in the
    file is replaced. With --check: folders to search for the ledgers.
    """
    data_name: str | None = None
    """Name of the images in the results; by default the data set's name."""
    checkpoint: Literal["best", "last"] | None = None
    """Show only results of these checkpoints."""
    suite: str | None = None
    """Show only results of this suite."""
    into: Path | None = None
    """An existing page to write the tables into, between the lines <!-- results --> and <!-- /results -->. With --pages
    it gets the table of all objectives."""
    pages: Path | None = None
    """A folder for the pages of the paper's tables, with their figures."""
    table: tuple[str, ...] = ()
    """With --pages: further, user-defined tables to write, as package.module:object."""
    check: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check that numbers follow from outcomes and that each checkpoint has one model; recompute the results whose
    ledgers are found in the runs' folders, and list the others."""


def main(arguments: list[str]) -> int:
    """Add results and print the tables, or write all pages, or check the results."""
    options = parse(Options, arguments, prog="advsphere results")
    for run in options.runs:
        if not run.is_dir():
            raise UserError(f"there is no folder {run}; name a run, or with --check a folder of runs")
    if options.into is not None:
        results.replace_between(_page(options.into), "")  # before anything is written
    if options.check:
        return _check(options)
    if options.pages is not None:
        if options.runs:
            raise UserError("--pages shows stored results only; first add the runs in a call without it")
        stored = {file: results.read(file) for file in _files(options.file)}
        print("\n".join(map(str, pages.write(stored, options.pages, options.into, [*map(find_table, options.table)]))))
        return 0
    if options.file.is_dir():
        raise UserError(f"{options.file} is a folder; name one of its files, or use --pages or --check")
    added = [one for place in options.runs for one in _measured(place, options)]
    if added:
        results.add(options.file, added)
    shown = [
        one
        for file in _files(options.file)
        for one in results.read(file)
        if options.checkpoint in (None, one.run["checkpoint"]) and options.suite in (None, one.suite)
    ]
    table = listing(shown)
    print(table)
    if options.into is not None:
        write_atomically(options.into, results.replace_between(_page(options.into), table).encode())
    return 0


def _measured(place: Path, options: Options) -> Iterator[StoredResult]:
    """All finished evaluations and diagnoses of a run, or one evaluation.

    Raises UserError if there is none, or if two have the same suite and number of images but different settings.
    """
    if (place / "evaluation.json").is_file():
        yield evaluated(place, data_name=options.data_name)
        return
    found = sorted(path.parent for path in place.glob("evaluations/*/evaluation.json"))
    if not found:
        raise UserError(f"{place} holds no finished evaluation; `advsphere evaluate {place}` makes one")
    seen: dict[str, Path] = {}
    for evaluation in found:
        one = evaluated(evaluation, data_name=options.data_name)
        other = seen.setdefault(one.key, evaluation)
        if other != evaluation:
            raise UserError(
                f"{other} and {evaluation} have the same suite and number of images, but different settings; name the "
                f"one to store: advsphere results {options.file} {evaluation}"
            )
        yield one
    for diagnosis in sorted(place.glob("diagnosis/**/diagnosis.json")):
        yield from diagnosed(diagnosis, options.file.parent, data_name=options.data_name)


def _page(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise UserError(f"could not read {path}: {error.strerror}; --into needs an existing page") from error


def _files(place: Path) -> list[Path]:
    """The file, or the files in the folder."""
    found = sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
    if not (found and all(file.is_file() for file in found)):
        raise UserError(f"there is no file {place}; name runs to store their results in it")
    return found


def _check(options: Options) -> int:
    """Print the status of each result; returns 1 if one is wrong."""
    found = check([one for file in _files(options.file) for one in results.read(file)], options.runs)
    for one in found:
        print(f"{one.status}: {one.label}{f': {one.detail}' if one.detail else ''}")
    counts = {status: sum(one.status == status for one in found) for status in get_args(Status)}
    print(", ".join(f"{count} results {status}" for status, count in counts.items()))
    return 1 if counts["WRONG"] else 0
