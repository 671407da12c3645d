"""`advsphere report`: write one page about runs and their evaluations."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from advsphere.bars import stage_bars
from advsphere.cli.arguments import parse
from advsphere.cli.printing import terminal
from advsphere.comparison.find import Finished, common
from advsphere.data import load
from advsphere.data.cifar import LAYOUTS
from advsphere.errors import UserError
from advsphere.evaluation import Effort
from advsphere.evaluation.checks import usual_batch_size
from advsphere.recipes import recipe
from advsphere.report.collect import SAMPLE, ModelReport, OutdatedError, collect, warnings_on
from advsphere.report.document import report
from advsphere.report.sections import load_section
from advsphere.report.verdict import cautions, conclusions
from advsphere.runs.config import flags
from advsphere.runs.folder import read_config
from advsphere.runs.target import EvaluationTarget
from advsphere.threat import radius


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write one HTML page about a run, or about several runs compared with the first, the baseline.

    One run:  advsphere report runs/pgd-at-he

    A baseline and a method:  advsphere report runs/pgd-at runs/pgd-at-he

    Three seeds of each:  advsphere report runs/a0,runs/a1,runs/a2 runs/b0,runs/b1,runs/b2

    The page shows finished evaluations by the strongest suite that all runs have, or by --suite. Curves and angles are
    computed once, in a minute or two for each model, and stored beside the evaluation. The page is one file that needs
    no network. report.json, written beside it, has a row for each model in the format of RobustBench.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Folders of runs or of evaluations; the first is the baseline. Join several seeds of one method by commas; the
    page shows details of the first seed."""
    suite: str | None = None
    """The suite of the evaluations; by default the strongest suite that all have finished."""
    section: tuple[str, ...] = ()
    """User-defined sections of the page, as package.module:function; see docs/extending.md."""
    whole: bool = False
    """Compute curves and angles for all evaluated images; by default for a sample of at most 250."""
    data: Path | None = None
    """The folder of the images, if they have been moved."""
    data_name: str | None = None
    """The name of the images on the page; by default the name of the data set."""
    out: Path | None = None
    """The page's path; by default report.html in the folder of the last run."""


def main(arguments: list[str]) -> int:
    """Write the page; print its conclusions and its path."""
    options = parse(Options, arguments, prog="advsphere report")
    console = terminal()
    models, warnings, path = write(options, console)
    for conclusion in conclusions(models):
        console.print(conclusion.headline, style="bold")
        console.print(conclusion.detail)
    for caution in (*cautions(models), *warnings):
        console.print(caution)
    size, beside = path.stat().st_size / 1e6, path.with_suffix(".json").name
    console.print(f"\n{shlex.quote(str(path))} ({size:.1f} MB); beside it {beside}", soft_wrap=True)
    return 0


def write(options: Options, console: Console) -> tuple[list[ModelReport], list[str], Path]:
    """Find the evaluations, compute the missing parts and write the page; returns (models, warnings, page)."""
    for name in options.section:
        load_section(name)
    arms = [[Path(place) for place in arm.split(",")] for arm in options.runs]
    outdated: dict[Path, str] = {}
    while True:
        every, notes = common([place for arm in arms for place in arm], options.suite, outdated)
        rest = iter(every)
        found = [[next(rest) for _ in arm] for arm in arms]
        try:
            with stage_bars(console) as show:
                models = collect(
                    found,
                    data=options.data,
                    data_name=options.data_name,
                    most=None if options.whole else SAMPLE,
                    on_progress=show,
                )
            break
        except OutdatedError as error:
            outdated[error.folder] = str(error)
    path = options.out or arms[-1][0] / "report.html"
    unread = [f"{note[0].upper()}{note[1:]}." for note in notes]
    warnings = [*unread, *_of_the_data(every[0].subject.at(options.data)), *warnings_on(models)]
    report(models, path, commands=commands(options, found), warnings=warnings)
    return models, warnings, path


def _of_the_data(subject: EvaluationTarget) -> list[str]:
    """A sentence if the files of a run's images differ from the published data set."""
    if subject.run is None:
        return []
    data = read_config(subject.run).data
    note = load(data.name, subject.data or data.root).note if data.name in LAYOUTS else ""
    return [f"{note}."] if note else []


def commands(options: Options, arms: Sequence[Sequence[Finished]]) -> list[tuple[str, str]]:
    """The commands that reproduce this page, each with a title. An arm is one run, or several seeds."""
    lines = []
    for one in (one for arm in arms for one in arm):
        run = one.subject.run
        if run is not None and (trained := _train(run)) is not None:
            lines.append((f"Train {run.name}", trained))
        if one.evaluation.identity["suite"]["name"] != "own":  # attacks that were passed from Python have no flag
            lines.append((f"Evaluate {(run or one.folder).name}", _evaluate(one)))
        lines.append(("Check its numbers", _line("verify", one.folder)))
    runs = [[one.subject.run for one in arm if one.subject.run is not None] for arm in arms]
    if len(arms) == 2 and list(map(len, runs)) == list(map(len, arms)):
        places = [",".join(map(str, arm)) for arm in runs]
        lines.append(("Compare the two under the attacks of the survival suite", _line("compare", *places)))
    lines += [(f"Diagnose {run.name}", _line("diagnose", run)) for run in runs[-1][:1]]
    suite = arms[0][0].evaluation.identity["suite"]["name"]
    sections = ["--section", *options.section] if options.section else []
    return [*lines, ("Write this page again", _line("report", *options.runs, "--suite", suite, *sections))]


def _train(run: Path) -> str | None:
    """The command that trains a run; None if flags can't express how it differs from its recipe."""
    config = read_config(run)
    try:
        typed = flags(recipe(config.recipe), config)
    except UserError:
        return None
    return None if typed is None else _line("train", config.recipe, "--out", run, *typed)


def _evaluate(one: Finished) -> str:
    subject, identity, usual = one.subject, one.evaluation.identity, Effort()
    suite, threat, batch_size = identity["suite"], identity["threat"], identity["batch_size"]
    target = {f.name: getattr(subject, f.name) for f in fields(subject) if getattr(subject, f.name) != f.default}
    run = target.pop("run", None)
    efforts = {name: suite.get(name) for name in ("restarts", "steps", "guides")}
    given = target | {"suite": suite["name"]}
    given |= {name: value for name, value in efforts.items() if value != getattr(usual, name)}
    given |= {
        "certainty": suite.get("certainty"),
        "norm": threat["norm"],
        "eps": radius(threat["eps"]),
        "seed": identity["seed"] or None,
        "batch_size": batch_size if batch_size != usual_batch_size(identity["data"]["shape"]) else None,
        "precision": identity["search"],
        "head": suite.get("head") if run is None else None,
        "out": one.folder,
    }
    words: list[object] = [] if run is None else [run]
    for name, value in given.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else (value,))]
    words += ["--cascade"] if suite.get("cascade") else []
    return _line("evaluate", *words)


def _line(command: str, *words: object) -> str:
    return shlex.join(["advsphere", command, *map(str, words)])
