"""`advsphere report`: one page about runs and their evaluations."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from advsphere.cli.arguments import parse
from advsphere.cli.progress import stage_bars
from advsphere.comparison.find import Finished, common
from advsphere.data import load
from advsphere.data.cifar import LAYOUTS
from advsphere.errors import UserError
from advsphere.evaluation import Effort, usual_batch_size
from advsphere.recipes import method, recipe
from advsphere.report import Command, report, verdicts
from advsphere.report.collect import SAMPLE, Another, Evidence, Stage, confounded, judged, names, shared_pictures
from advsphere.report.verdict import cautions
from advsphere.runs.build import head_name
from advsphere.runs.config import flags
from advsphere.runs.folder import read_config
from advsphere.runs.target import EvaluationTarget
from advsphere.threat import radius

# FOLDED commands: The lines to type to get a report's numbers again, to check them, and to go on from them.


def commands(places: Sequence[Sequence[Path]], arms: Sequence[Sequence[Finished]]) -> list[Command]:
    """From training to this page. places: what the report was asked for; each arm is one place, or several seeds."""
    lines = []
    for one in (one for arm in arms for one in arm):
        run = one.subject.run
        if run is not None and (trained := _train(run)) is not None:
            lines.append(Command(f"Train {run.name}", trained))
        lines.append(Command(f"Evaluate {(run or one.folder).name}", _evaluate(one)))
        lines.append(Command("Check its every number from the evidence", _line("verify", one.folder)))
    runs = [[one.subject.run for one in arm if one.subject.run is not None] for arm in arms]
    if len(arms) == 2 and list(map(len, runs)) == list(map(len, arms)):
        compared = _line("compare", *map(_joined, runs))
        lines.append(Command("Compare the two under all attacks of the survival suite", compared))
    lines += [Command(f"Look inside {run.name}", _line("diagnose", run)) for run in runs[-1][:1]]
    suite = arms[0][0].evaluation.identity["suite"]["name"]
    return [*lines, Command("Write this page again", _line("report", *map(_joined, places), "--suite", suite))]


def _joined(seeds: Sequence[Path]) -> str:
    return ",".join(map(str, seeds))


def _train(run: Path) -> str | None:
    """None where a run differs from its recipe in more than a flag can say."""
    config = read_config(run)
    try:
        typed = flags(recipe(config.recipe), config)
    except UserError:
        return None
    return None if typed is None else _line("train", config.recipe, "--out", run, *typed)


def _evaluate(one: Finished) -> str:
    subject, identity = one.subject, one.evaluation.identity
    shape = identity["data"]["shape"]
    given: dict[str, object] = {
        "--checkpoint": subject.checkpoint if subject.checkpoint != "best" else None,
        "--model": subject.model,
        "--weights": subject.weights,
        "--data": subject.data,
        "--image-size": subject.image_size,
        "--mean": subject.mean,
        "--std": subject.std,
        "--n": subject.n,
        "--suite": identity["suite"]["name"],
    }
    usual = Effort()
    for field in ("restarts", "steps", "guides"):
        value = identity["suite"].get(field)
        given[f"--{field}"] = None if value == getattr(usual, field) else value
    given |= {
        "--norm": identity["threat"]["norm"],
        "--eps": radius(identity["threat"]["eps"]),
        "--seed": identity["seed"] or None,
        "--batch-size": identity["batch_size"] if identity["batch_size"] != usual_batch_size(shape) else None,
        "--precision": identity["search"],
        "--head": identity["suite"].get("head") if subject.run is None else None,
        "--out": one.folder,
    }
    words: list[object] = [] if subject.run is None else [subject.run]
    for flag, value in given.items():
        if value is not None:
            words += [flag, *(value if isinstance(value, tuple) else (value,))]
    words += ["--cascade"] if identity["suite"].get("cascade") else []
    return _line("evaluate", *words)


def _line(command: str, *words: object) -> str:
    return shlex.join(["advsphere", command, *map(str, words)])


_DOING: dict[Stage, str] = {"curve": "at rising eps", "angles": "angles"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write one HTML page about a run, or about several that are compared with the first, their baseline.

    One run:  advsphere report runs/pgd-at-he

    A baseline and a method:  advsphere report runs/pgd-at runs/pgd-at-he

    Three seeds of each:  advsphere report runs/a0,runs/a1,runs/a2 runs/b0,runs/b1,runs/b2

    It shows finished evaluations: the strongest that all of the runs have, or the one of --suite. Curves and angles
    that are not there yet are computed, a minute or two for each model, and kept beside the evaluation. The page needs
    no network and is one file, to be read on any screen or printed. Beside it, report.json has the rows of the models
    as RobustBench keeps them.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of runs, or of evaluations; the first is the baseline. Several seeds of one method have commas between
    them; the page looks into the first, and shows what all of them tell."""
    suite: str | None = None
    """Of the evaluations; by default the strongest suite that all have finished."""
    whole: bool = False
    """Curves and angles of all images that were evaluated; of more than 250 a sample of 250 by default."""
    data: Path | None = None
    """Where the images lie now."""
    data_name: str | None = None
    """What the images are called on the page; the data set's name by default."""
    out: Path | None = None
    """The page; by default report.html in the folder of the last run."""


def main(arguments: list[str]) -> int:
    """Gather, compute what is missing, write the page, print the verdict and where the page lies."""
    options = parse(Options, arguments or ["--help"], prog="advsphere report")
    console = Console(highlight=False, markup=False)
    arms = [[Path(place) for place in arm.split(",")] for arm in options.runs]
    every, notes = common([place for arm in arms for place in arm], options.suite)
    rest = iter(every)
    found = [[next(rest) for _ in arm] for arm in arms]
    for note in notes:
        console.print(note, soft_wrap=True)
    evidence = _evidence(found, options.data)
    with stage_bars(console) as show:
        models = [judged(one, _told(show, one.name), most=None if options.whole else SAMPLE) for one in evidence]
    path = options.out or arms[-1][0] / "report.html"
    warnings = [*_of_the_data(every[0].subject.at(options.data)), *confounded(evidence)]
    report(
        models,
        path,
        pictures=shared_pictures(evidence),
        commands=commands(arms, found),
        warnings=warnings,
        data_name=options.data_name,
    )
    for verdict in verdicts(models):
        console.print(verdict.headline, style="bold")
        console.print(verdict.detail)
    for caution in (*cautions(models), *warnings):
        console.print(caution)
    size = path.stat().st_size / 1e6
    console.print(
        f"\n{shlex.quote(str(path))} ({size:.1f} MB); beside it {path.with_suffix('.json').name}", soft_wrap=True
    )
    return 0


def _evidence(arms: Sequence[Sequence[Finished]], data: Path | None) -> list[Evidence]:
    """With models and images, each under its name; of several seeds the first stands for its arm."""
    found = [arm[0] for arm in arms]
    configs = [None if one.subject.run is None else read_config(one.subject.run) for one in found]
    methods = [
        method(config) if config is not None else str(one.subject.model).rpartition(":")[2]
        for one, config in zip(found, configs, strict=True)
    ]
    evidence = []
    called = names(methods, [one.subject.run or one.folder for one in found])
    for arm, name, config in zip(arms, called, configs, strict=True):
        one = arm[0]
        model, images = one.subject.at(data).load()
        head = one.evaluation.identity["suite"].get("head")
        evidence.append(
            Evidence(
                name=name,
                folder=one.folder,
                evaluation=one.evaluation,
                model=model,
                images=images,
                run=one.subject.run,
                checkpoint=one.subject.checkpoint,
                head=head or (None if config is None else head_name(config)),
                others=tuple(Another(_run_of(other), other.evaluation) for other in arm[1:]),
            )
        )
    return evidence


def _run_of(one: Finished) -> Path:
    if one.subject.run is None:
        raise UserError(f"{one.folder} is of no training run, so it has no seed; give it without a comma before it")
    return one.subject.run


def _of_the_data(subject: EvaluationTarget) -> list[str]:
    """A sentence where the images of a run are not what their name says."""
    if subject.run is None:
        return []
    data = read_config(subject.run).data
    if data.name not in LAYOUTS:
        return []
    note = load(data.name, subject.data or data.root).note
    return [f"{note}."] if note else []


def _told(show: Callable[[str, str, int, int], None], name: str) -> Callable[[Stage, int, int], None]:
    return lambda stage, done, total: show(name, _DOING[stage], done, total)
