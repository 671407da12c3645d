"""`advsphere evaluate`: attack a run or a model of one's own, and print what is left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from advsphere.cli.arguments import DURATION, parse
from advsphere.cli.progress import progress_bar
from advsphere.distributed import World, joined, leave
from advsphere.evaluation import Effort, Evaluation, evaluate
from advsphere.evaluation.engine import Precision
from advsphere.runs import train as experiment
from advsphere.runs.config import Config
from advsphere.runs.target import EvaluationTarget
from advsphere.threat import Norm, ThreatModel


@dataclass(frozen=True, kw_only=True)
class Options:
    """Attack a network and print an upper bound of its robust accuracy, with intervals.

    A run:  advsphere evaluate runs/digits-pgd-at-he --suite paper

    Yours:  advsphere evaluate --model mypackage.nets:build --weights net.safetensors --data photos --image-size 64

    Everything is written down: a ledger with each outcome and each adversarial image, and evaluation.json with each
    number. Interrupt it at any time; the same command goes on. Then `advsphere verify` checks it.

    Several processes share the images, and come to the same ledger:

    torchrun --nproc-per-node 4 -m advsphere evaluate runs/digits-pgd-at-he
    """

    subject: Annotated[EvaluationTarget, tyro.conf.arg(name="")] = EvaluationTarget()
    suite: str = "quick"
    """Which attacks.
    - quick: FGSM, PGD-20, PGD-100, margin PGD-100.
    - paper: PGD-50 at s = 1 and at s, margin PGD-50.
    - autoattack: APGD-CE, APGD-T, FAB-T, Square.
    - table2, table4, table6: the columns of the paper's tables.
    - survival: what `advsphere compare` needs.
    - adaptive: for bounded cosine heads: the scale swept, angles, features.
    """
    effort: Annotated[Effort, tyro.conf.arg(name="")] = Effort()
    budget: Annotated[float | None, DURATION] = None
    """How long the attacks may take, e.g. 10m, 90s or 2h: the tightest upper bound that the time allows. The same
    command again goes on for as long."""
    norm: Norm | None = None
    """The run's own by default; linf for a model of yours."""
    eps: float | None = None
    """Radius in pixel units, e.g. 8/255; the run's own by default, 8/255 for a model of yours."""
    seed: int = 0
    """Of the attacks' random starts."""
    batch_size: int | None = None
    """Of each attack, and the unit of work; by default 250, fewer of more than 74 pixels a side."""
    precision: Precision = "auto"
    """Of the search; auto is bfloat16 where the machine has it. What is found is always checked in float32."""
    head: str | None = None
    """The last linear layer's name, where it can't be told; a run knows its own."""
    out: Path | None = None
    """Where to write; by default a folder in the run's, or runs/own for a model of yours."""


def main(arguments: list[str]) -> int:
    """Parse, evaluate, print the table and where the evidence lies."""
    with joined() as world:
        options = parse(Options, arguments or ["--help"], prog="advsphere evaluate")
        console = Console(highlight=False)
        if world.size > 1:
            console.print(f"{world.size} processes share the images; the bars are of the first one's", soft_wrap=True)
        evaluation, folder = evaluated(options, world)
        console.print(evaluation.table(width=console.width), markup=False, soft_wrap=True)
        console.print(f"evidence: {folder}; check it with: advsphere verify {folder}", soft_wrap=True)
    leave(0)
    return 0


def evaluated(options: Options, world: World = World()) -> tuple[Evaluation, Path]:
    """The evaluation and the folder in which it is kept; what is there already is not done again."""
    subject = options.subject
    config = None if subject.run is None else experiment.read_config(subject.run)
    threat = _threat(options, config)
    model, images = subject.load()
    folder = options.out or _folder(options, threat)
    if world.first:
        folder.mkdir(parents=True, exist_ok=True)
        subject.save(folder)
    with progress_bar() as on_progress:
        evaluation = evaluate(
            model,
            images,
            threat=threat,
            suite=options.suite,
            seed=options.seed,
            batch_size=options.batch_size,
            ledger=folder / "ledger.sqlite",
            effort=options.effort,
            budget=options.budget,
            head=options.head or (None if config is None else experiment.head_name(config)),
            precision=options.precision,
            on_progress=on_progress,
            world=world,
        )
    if world.first:
        evaluation.save(folder / "evaluation.json")
    return evaluation, folder


def _threat(options: Options, config: Config | None) -> ThreatModel:
    own = ThreatModel(norm="linf", eps=8 / 255) if config is None else config.threat
    return ThreatModel(
        norm=options.norm or own.norm, eps=own.eps if options.eps is None else options.eps, bounds=own.bounds
    )


def _folder(options: Options, threat: ThreatModel) -> Path:
    """A folder for each question, so that another question does not meet the ledger of this one."""
    subject, usual = options.subject, Effort()
    name = f"{options.suite}-{subject.checkpoint}-{threat.norm}-{threat.eps:.4g}"
    name += "" if subject.n is None else f"-n{subject.n}"
    for field in ("restarts", "steps", "guides"):
        value = getattr(options.effort, field)
        name += "" if value == getattr(usual, field) else f"-{field}{value}"
    name += "-cascade" if options.effort.cascade or options.budget is not None else ""
    return (Path("runs/own") if subject.run is None else subject.run / "evaluations") / name
