"""`advsphere demo`: the whole of it in a minute, on digits that come with the installation."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from advsphere.cli.arguments import parse
from advsphere.errors import UserError
from advsphere.evaluation import CLEAN, SuiteContext, compare, evaluate, suite
from advsphere.evaluation import Progress as AttackProgress
from advsphere.files import write_atomically
from advsphere.recipes import method, recipe
from advsphere.report import Command, ModelReport, report
from advsphere.report import rendering as numbers
from advsphere.report.collect import Evidence, judged, shared_pictures
from advsphere.report.verdict import cautions, undecided, verdicts
from advsphere.runs.build import head_name
from advsphere.runs.config import Config, to_dict
from advsphere.runs.folder import load_run
from advsphere.runs.target import EvaluationTarget
from advsphere.runs.train import train
from advsphere.threat import radius
from advsphere.training import Metrics, Tick, Trainer

# FOLDED demo: The demo: two networks learn the digits under attack, one of them on the hypersphere; both are
# FOLDED demo: attacked, compared,
# FOLDED demo: and reported on.

RECIPES = ("digits-pgd-at", "digits-pgd-at-he")
SUITE = "quick"

_MARK, _FORMAT = "demo.json", "advsphere demo 1"


class Progress(NamedTuple):
    """How far a stage of one model has come: done of total, and what to say of it."""

    model: str
    stage: Literal["train", "attack", "curve", "angles"]
    done: int
    total: int
    note: str = ""


class Arm(NamedTuple):
    """One of the networks. run: its folder. evidence: that lies in it."""

    judged: ModelReport
    run: Path
    evidence: Evidence


@dataclass(frozen=True)
class Demo:
    """What the demo made, the baseline first."""

    arms: tuple[Arm, ...]
    report: Path

    @property
    def judged(self) -> list[ModelReport]:
        return [arm.judged for arm in self.arms]


def demo(
    out: Path, *, configs: Sequence[Config] | None = None, on_progress: Callable[[Progress], None] = lambda _: None
) -> Demo:
    """Train, attack, compare, report: all of it under `out`.

    A demo that was interrupted goes on; one that is finished, or of other settings, begins afresh in the same folder.
    configs: what to train, the baseline first; the digits recipes by default, plain and on the hypersphere. Runs on one
    thread of the processor. Raises UserError where `out` holds something else.
    """
    configs = [recipe(name) for name in RECIPES] if configs is None else configs
    _claim(out, configs)
    with _one_thread():
        arms = [_arm(config, out / config.recipe, on_progress) for config in configs]
    page = out / "report.html"
    pictures = shared_pictures([arm.evidence for arm in arms])
    report([arm.judged for arm in arms], page, pictures=pictures, commands=_commands(out, arms))
    _mark(out, configs, finished=True)
    return Demo(tuple(arms), page)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small leave several threads waiting for each other, many times over on a busy machine; and one
    thread gives the same numbers on any number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _arm(config: Config, run: Path, on_progress: Callable[[Progress], None]) -> Arm:
    """Train one network, attack it, and find out the rest that a report shows."""
    name, threat = method(config), config.threat
    _train(config, run, name, on_progress)
    _, model, images = load_run(run)
    folder = run / "evaluations" / f"{SUITE}-best-{threat.norm}-{threat.eps:.4g}"
    folder.mkdir(parents=True, exist_ok=True)
    attacks = [CLEAN, *(spec.name for spec in suite(SUITE, SuiteContext(threat=threat)))]
    cells = len(attacks) * len(images)

    def attacked(p: AttackProgress) -> None:
        done = attacks.index(p.attack) * p.total + p.done
        on_progress(Progress(name, "attack", done, cells + 1, f"{p.attack}: {100 * p.robust / p.done:.1f} %"))

    def looked(stage: Literal["curve", "angles"], done: int, total: int) -> None:
        notes = {"curve": f"up to eps = {2 * threat.eps:g}", "angles": "clean and under PGD-10"}
        on_progress(Progress(name, stage, done, total, notes[stage]))

    evaluation = evaluate(
        model,
        images,
        threat=threat,
        suite=SUITE,
        ledger=folder / "ledger.sqlite",
        head=head_name(config),
        on_progress=attacked,
    )
    evaluation.save(folder / "evaluation.json")
    left = 100 * evaluation.worst.accuracy
    on_progress(Progress(name, "attack", cells + 1, cells + 1, f"worst case: {left:.1f} %"))
    evidence = Evidence(name=name, folder=folder, evaluation=evaluation, model=model, images=images, run=run)
    return Arm(judged(evidence, looked, most=None), run, evidence)


def _train(config: Config, run: Path, name: str, on_progress: Callable[[Progress], None]) -> None:
    epochs, images, note = config.training.epochs, 0, ""

    def show(done: int) -> None:
        on_progress(Progress(name, "train", done, epochs * images, note))

    def started(trainer: Trainer, _: list[str]) -> None:
        nonlocal images
        images = len(trainer.images)
        show(trainer.cursor.epoch * images)

    def ticked(tick: Tick) -> None:
        show(tick.epoch * images + tick.images)

    def finished(metrics: Metrics) -> None:
        nonlocal note
        note = f"PGD-10, held out: {100 * metrics['robust']:.1f} %"
        show(int(metrics["epoch"]) * images)

    train(config, run, resume=True, on_start=started, on_tick=ticked, on_epoch=finished)


def _commands(out: Path, arms: Sequence[Arm]) -> list[Command]:
    checks = [Command(f"Check every number of {a.judged.name} from its evidence", _verify(a)) for a in arms]
    return [Command("Train, attack and report again", f"advsphere demo --out {out}"), *checks]


def _verify(arm: Arm) -> str:
    return f"advsphere verify {arm.run}"


def _claim(out: Path, configs: Sequence[Config]) -> None:
    """Make the folder this demo's, with what an interrupted one left there."""
    mark = out / _MARK
    if mark.is_file():
        if json.loads(mark.read_text()) == _content(configs, finished=False):
            return
        # The mark says that a demo made this folder, so its runs may go: they are made again in a minute.
        for page in ("report.html", "report.json"):
            (out / page).unlink(missing_ok=True)
        for config in configs:
            shutil.rmtree(out / config.recipe, ignore_errors=True)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something else than a demo; name a new or an empty folder with --out")
    _mark(out, configs, finished=False)


def _mark(out: Path, configs: Sequence[Config], *, finished: bool) -> None:
    write_atomically(out / _MARK, json.dumps(_content(configs, finished=finished), indent=1).encode())


def _content(configs: Sequence[Config], *, finished: bool) -> dict[str, Any]:
    content = {
        "format": _FORMAT,
        "advsphere": version("advsphere"),
        "configs": [to_dict(config) for config in configs],
        "finished": finished,
    }
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


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
        EvaluationTarget(run=arm.run).save(arm.evidence.folder)
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
