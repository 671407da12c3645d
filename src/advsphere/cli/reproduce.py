"""`advsphere reproduce TABLE`: train and attack the networks of a table, and print each cell beside the paper's."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from advsphere.cli.arguments import parse
from advsphere.cli.printing import terminal
from advsphere.errors import UserError
from advsphere.files import require_writable
from advsphere.reproduce import pages, results, running
from advsphere.reproduce.budgets import BUDGETS
from advsphere.reproduce.collecting import collect
from advsphere.reproduce.jobs import Job
from advsphere.reproduce.plan import Places, Plan, plan
from advsphere.reproduce.running import Start
from advsphere.reproduce.tables import TABLES, table


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train and attack the networks of a table of the paper, and print each cell beside the paper's.

    In a minute:  advsphere reproduce table3 --budget smoke

    On a few cores:  advsphere reproduce table3 --budget cpu --jobs 4

    Everything:  advsphere reproduce all --budget gpu

    The plan is printed first. Interrupt the command at any time; the same command continues. Runs that two tables share
    are trained once.
    """

    tables: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[TABLE ...]")]
    """The tables: survival, table2 to table7, gradients, perturbations, ablation, all, or package.module:object."""
    budget: Literal["smoke", "cpu", "gpu", "full"] = "smoke"
    """The cost: networks, epochs, seeds and images, the same for both arms of each pair.
    - smoke: the digits, a minute; shows only that everything works.
    - cpu: small networks on CIFAR-10, an hour or two per table on four cores.
    - gpu: PreActResNet-18, about half an hour per table on one GPU.
    - full: the paper's own recipes and networks.
    """
    jobs: int = 1
    """Number of jobs that run at once, each on one thread."""
    on: Literal["here", "ray"] = "here"
    """Where the jobs run: on this machine, or as tasks of a Ray cluster that shares this folder (pip install
    'advsphere[ray]')."""
    address: str | None = None
    """Address of the Ray cluster; without it a local one is started."""
    runs: Path = Path("runs")
    """The folder of the runs."""
    images: Path | None = None
    """The folder of Table 4's images; by default tiny-imagenet-40, or imagenet with --budget full, in
    $ADVSPHERE_DATA."""
    weight_decay: tuple[float, ...] | None = None
    """Use only these of the budget's weight decays, 5e-4 and 2e-4. With the first, every seed of every method is
    trained and attacked. With the next, one seed of each method is trained and evaluated on held-out training images;
    if it is better there, all seeds of the method and of its partner without HE are trained and attacked too."""
    seeds: tuple[int, ...] | None = None
    """Run only these seeds."""
    methods: tuple[str, ...] | None = None
    """Run only these methods, e.g. FastAT FastAT+HE."""
    rows: Path | None = None
    """The file of stored results; by default results/BUDGET.jsonl, or for smoke results/smoke.jsonl in the folder of
    the runs. `advsphere results results --pages DIR` makes pages from it."""
    only: Literal["plan", "rows"] | None = None
    """plan: print the plan and stop. rows: store and print finished measurements, without training or attacking."""


def main(arguments: list[str]) -> int:
    """Print the plan, run it, and print the tables."""
    options = parse(Options, arguments, prog="advsphere reproduce")
    console = terminal(file=sys.stdout, soft_wrap=True)  # also while a job's output goes to its log
    if not options.tables:
        raise UserError(f"name a table: {', '.join(TABLES)}; or all")
    names = tuple(TABLES) if "all" in options.tables else options.tables
    rows = _checked(options)
    found = _planned(options, names)
    failures: list[Job] = []
    while options.only != "rows":
        _show(found, console)
        if options.only == "plan":
            return 0
        failures = _run(found, options, console)
        found = _planned(options, names)  # validation may have chosen more runs to measure
        if failures or not found.open:
            break
    collect(found, rows)
    measured = results.read(rows)
    for name in names:
        text, _ = pages.page(table(name), {rows: measured})
        show(text, console)
    for job in failures:
        console.print(f"failed: {job.name}: see {running.log_of(job, options.runs / 'logs')}", style="red")
    left = len(found.open)
    if left:
        console.print(f"{left} of {len(found.jobs)} jobs are not done; run the same command again to continue")
    console.print(f"results: {rows}")
    return 1 if failures else 0


def _checked(options: Options) -> Path:
    """The file of results. Raises UserError for invalid options."""
    for name in ("weight_decay", "seeds", "methods"):
        if getattr(options, name) == ():
            raise UserError(f"--{name.replace('_', '-')} is empty; give at least one value, or omit it for all")
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; it must be at least 1")
    smoke = options.runs / "results" / "smoke.jsonl"
    rows = options.rows or (smoke if options.budget == "smoke" else Path("results") / f"{options.budget}.jsonl")
    if rows.is_dir():
        raise UserError(f"--rows must be a file, but {rows} is a folder")
    for folder in (options.runs, rows.parent) if options.only != "plan" else ():
        require_writable(folder)
    return rows


def _planned(options: Options, names: Sequence[str]) -> Plan:
    return plan(
        [table(name) for name in names],
        BUDGETS[options.budget],
        Places(runs=options.runs, images=options.images),
        weight_decays=options.weight_decay,
        seeds=options.seeds,
        methods=options.methods,
    )


def show(text: str, console: Console) -> None:
    """Print a page of Markdown on a terminal, with its tables drawn."""
    for is_table, lines in groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        if not is_table:
            console.print("\n".join(line for line in lines if not line.startswith("!")))
            continue
        head, _, *body = ([cell.replace("<br>", "\n").replace("*", "") for cell in _cells(line)] for line in lines)
        grid = Grid(*head, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_lines=False)
        for cells in body:
            grid.add_row(*cells)
        width = terminal(width=10_000).measure(grid).maximum  # a narrow terminal breaks lines but loses nothing
        terminal(width=width).print(grid)


def _cells(line: str) -> list[str]:
    return line.strip("|").strip().split(" | ")


def _show(found: Plan, console: Console) -> None:
    """Print the number of jobs of each kind, and how many are done."""
    console.print(
        Text(", ".join(t.name for t in found.tables), "bold"),
        f", budget {found.budget.name}: {found.budget.scale}",
        sep="",
    )
    grid = Grid(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("", "jobs", "done"):
        grid.add_column(heading, justify="right" if heading else "left")
    for kind in dict.fromkeys(job.name.split()[0] for job in found.jobs):
        own = [job for job in found.jobs if job.name.startswith(f"{kind} ")]
        grid.add_row(kind, str(len(own)), str(sum(job.done for job in own)))
    console.print(grid)
    console.print(f"runs: {found.places.runs}")


def _run(found: Plan, options: Options, console: Console) -> list[Job]:
    """Run every open job, with a line for each that ends; returns the failed jobs."""
    logs = options.runs / "logs"
    executor: AbstractContextManager[Start]
    if options.on == "ray":
        executor = running.on_ray(logs, options.address)
    elif found.budget.together and options.jobs == 1:
        executor = running.inside(importlib.import_module("advsphere.cli").main, logs)
    else:
        executor = running.here(options.jobs, logs)
    left = len(found.open)

    def ended(job: Job, done: bool) -> None:
        nonlocal left
        left -= done
        console.print(f"{'done' if done else 'FAILED'}: {job.name}; {left} left")

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the jobs are stopped too
    with executor as start:
        return running.run(found.jobs, start, at_once=options.jobs, on_end=ended)
