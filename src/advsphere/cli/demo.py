"""`advsphere demo`: the whole of it in a minute, on digits that come with the installation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from advsphere.cli.arguments import parse
from advsphere.cli.subject import Subject
from advsphere.demo import Demo, Progress, demo
from advsphere.evaluation import compare, radius
from advsphere.report import numbers
from advsphere.report.verdict import cautions, undecided, verdicts

_DOING = {"train": "learns", "attack": "is attacked", "curve": "at rising eps", "angles": "is measured"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train two networks on handwritten digits, attack both, and say whether they can be told apart. About a minute.

    One is trained by PGD-AT (adversarial training), the other by PGD-AT on the hypersphere (HE); all else is equal.
    Both are then attacked on 500 test images by FGSM, PGD-20, PGD-100 and PGD-100 on the margin, at linf eps = 0.2.

    What is printed: accuracy under each attack with its 95 % interval, which is an upper bound of robust accuracy; the
    paired difference of the two with its interval; and one plain sentence on whether the sample can tell them apart.

    What is written, all under --out: a run's folder for each network, a ledger with every outcome and every
    adversarial image, and report.html with curves and pictures. A finished demo is done again from the start, an
    interrupted one goes on.
    """

    out: Path = Path("runs/demo")
    """Where everything is written; a new or empty folder, or one that a demo made."""


def main(arguments: list[str]) -> int:
    """Parse, run the demo, print the table, the verdict and what to do next."""
    options = parse(Options, arguments, prog="advsphere demo")
    console, began = Console(highlight=False, markup=False), time.monotonic()
    console.print(
        "Two networks learn the digits under attack, one of them on the hypersphere; then both are attacked.\n"
    )
    with _shown(console) as show:
        made = demo(options.out, on_progress=show)
    for arm in made.arms:
        Subject(run=arm.run).save(arm.evidence.folder)
    console.print()
    console.print(_table(made))
    for line in _findings(made):
        console.print(line)
    console.print(f"\nDone in {time.monotonic() - began:.0f} s. Next:")
    for line in _next(made):
        console.print(f"  {line}", soft_wrap=True)
    return 0


def _table(made: Demo) -> Table:
    """Both models side by side."""
    first, second = (model.evaluation for model in made.judged)
    threat, n = first.identity["threat"], first.worst.n
    title = f"accuracy on {n} test images, {threat['norm']}, eps = {radius(threat['eps'])}; in %, with 95 % intervals"
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in (*(model.name for model in made.judged), "difference, points"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in first.rows:
        other, difference = second.row(row.name), compare(second, first, row.name)
        table.add_row(
            row.name,
            *(f"{numbers.percent(r.accuracy)} ({numbers.limits(r.interval)})" for r in (row, other)),
            f"{numbers.points(difference.difference)} ({numbers.span(difference)})",
            style="bold" if row is first.worst else None,
            end_section=row is first.attacks[-1],
        )
    return table


def _findings(made: Demo) -> list[str]:
    """The verdict in sentences, and flags if there are any."""
    flags = [
        f"! {model.name}: {flag}"
        for model in made.judged
        for flag in (*model.evaluation.flags, *model.evaluation.raised)
    ]
    (verdict,) = verdicts(made.judged)
    return [*flags, verdict.headline, *filter(None, [undecided(made.judged)]), *cautions(made.judged)]


def _next(made: Demo) -> list[str]:
    """Where to look, and commands to go on with."""
    run = made.arms[-1].run
    return [
        f"read the report    {made.report}",
        f"check the numbers  advsphere verify {run}",
        f"attack otherwise   advsphere evaluate {run} --suite paper",
        "train otherwise    advsphere train digits-trades-he",
    ]


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[Progress], None]]:
    """On a terminal a bar for each stage; elsewhere a line when a stage is over."""
    columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[tuple[str, str], TaskID] = {}
        began = time.monotonic()

        def show(p: Progress) -> None:
            nonlocal began
            key = (p.model, p.stage)
            if key not in tasks:
                tasks[key] = bars.add_task(f"{p.model:<9} {_DOING[p.stage]:<13}", total=p.total, note="")
                began = time.monotonic()
            over = bars.tasks[tasks[key]].finished
            bars.update(tasks[key], completed=p.done, note=p.note)
            if p.done >= p.total and not over and not console.is_terminal:
                console.print(f"{p.model:<9} {_DOING[p.stage]:<13} {time.monotonic() - began:5.1f} s  {p.note}")

        yield show
