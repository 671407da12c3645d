"""`advsphere compare`: attack a baseline and a method in the same way, and say how much of the gain survives."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from advsphere.cli import evaluate
from advsphere.cli.arguments import parse
from advsphere.cli.printing import program, terminal
from advsphere.comparison.confounders import (
    confounders,
    divided_otherwise,
    remedied,
    sampled_otherwise,
    trained_elsewhere,
)
from advsphere.comparison.gain import Gains, measure_gains
from advsphere.errors import UserError
from advsphere.evaluation import Effort, Evaluation
from advsphere.evaluation.engine import Certainty, Precision
from advsphere.evaluation.specs import kind_of
from advsphere.files import require_writable, write_atomically
from advsphere.report.rendering import points, span
from advsphere.runs.folder import ranks, read_collapses, read_config
from advsphere.runs.target import EvaluationTarget
from advsphere.threat import radius


@dataclass(frozen=True, kw_only=True)
class Options:
    """Attack a baseline and a method in the same way, and say how much of the method's gain survives.

    Two checkpoints:  advsphere compare runs/pgd-at runs/pgd-at-he --n 1000

    Three seeds each:  advsphere compare runs/a0,runs/a1,runs/a2 runs/b0,runs/b1,runs/b2

    The attacks are PGD on cross-entropy at s = 1 (as in the paper's official code) and at the head's own s, PGD on the
    margin, attacks on DLR, target classes and features, a black-box search, and AutoAttack. For each attack on all
    images the command prints the paired difference with its interval. The verdict (such as "some survives") says what
    the interval of the share shows that remains in the worst case of the gain under PGD. With one or two seeds per arm,
    conclusions hold for these checkpoints only; three seeds in each arm allow conclusions about the method.

    Every evaluation is kept in its run's folder. The same command continues after an interruption, and `advsphere
    verify` checks the evaluations.
    """

    baseline: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BASELINE")]
    """The folder of a run, or several seeds joined by commas."""
    method: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="METHOD")]
    """The folder of a run, or several seeds joined by commas."""
    suite: str = "survival"
    """Any suite of `advsphere evaluate` that has a PGD attack."""
    pgd: str | None = None
    """The attack whose gain is tested; by default PGD on cross-entropy at s = 1."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """The number of test images, chosen as by `advsphere evaluate`; all by default."""
    eps: float | None = None
    """Radius in pixel units, e.g. 8/255; by default the baseline's."""
    checkpoint: Literal["best", "last"] = "best"
    """The checkpoint of each run to evaluate."""
    effort: Annotated[Effort, tyro.conf.arg(name="")] = Effort()
    certainty: Annotated[Certainty | Literal["none"], tyro.conf.arg(metavar="POINTS|paired|usual|none")] = "paired"
    """Run attacks that hardly find more (features, Square, the rest of AutoAttack) on a random sample of the images
    that the others left, until they would take at most so many points more (95 %); e.g. 0.5. Intervals and verdict
    hold whatever they would take. 0 runs them on all that the others left, none runs every attack on all images.
    paired is a tenth of half the 95 % interval at this number of images, usual a fifth. Where a run already has an
    evaluation by every attack on all images, that one is taken."""
    batch_size: int | None = None
    """Images per batch of each attack; by default as in `advsphere evaluate`."""
    precision: Precision = "auto"
    """Precision of the attacks' search; auto is bfloat16 where the machine supports it."""
    data: Path | None = None
    """The folder of the images, if they have been moved."""
    out: Path | None = None
    """The folder for comparison.json; by default compared/ in the method's first run."""


def main(arguments: list[str]) -> int:
    """Run the missing evaluations, print the table and the verdict, and save them."""
    options = parse(Options, arguments, prog="advsphere compare")
    path = compared(options, terminal())
    runs = [*options.baseline.split(","), *options.method.split(",")]
    print(f"saved in {path}; check the evaluations with: {' && '.join(program('verify', run) for run in runs)}")
    return 0


def compared(options: Options, console: Console) -> Path:
    """Evaluate, compare and print; returns the path of comparison.json."""
    arms = {name: [Path(p) for p in getattr(options, name).split(",")] for name in ("baseline", "method")}
    configs = {name: [read_config(run) for run in runs] for name, runs in arms.items()}
    eps = configs["baseline"][0].threat.eps if options.eps is None else options.eps
    path = (options.out or arms["method"][0] / "compared") / "comparison.json"
    require_writable(path.parent)
    named = [run for runs in arms.values() for run in runs]
    if len({run.resolve() for run in named}) < len(named):
        raise UserError("a run is named twice; name different runs, the baseline first and then the method")
    for run in named:
        if not (run / f"{options.checkpoint}.safetensors").is_file():
            raise UserError(f"{run} has no {options.checkpoint}.safetensors; train it further with --resume")
    found: dict[str, list[tuple[Evaluation, Path]]] = {"baseline": [], "method": []}
    for name, runs in arms.items():
        for run in runs:
            console.print(f"{name}: {run}", soft_wrap=True)
            found[name].append(evaluate.evaluated(_evaluation_options(options, run, eps), prefer_all=True))
    result = measure_gains(*([e for e, _ in found[name]] for name in ("baseline", "method")), pgd=options.pgd)
    warnings = confounders(configs["baseline"], configs["method"])
    warnings += divided_otherwise(*([ranks(run) for run in runs] for runs in arms.values()))
    certainties = {name: [_certainty(e) for e, _ in each] for name, each in found.items()}
    warnings += sampled_otherwise(*certainties.values())
    for name in arms:
        warnings += trained_elsewhere(name, configs[name][0], eps)
        warnings += [line for run in arms[name] for line in remedied(name, read_collapses(run))]
    console.print(_table(result, radius(eps), configs["baseline"][0].threat.norm))
    kinds = {kind_of(row.settings) for each in found.values() for e, _ in each for row in e.attacks}
    if "black-box" not in kinds:  # what survives gradient ascent alone may be masked
        console.print(f"! suite {options.suite} has no black-box attack; --suite survival tests the gain harder")
    for line in _conclusion(result, warnings):
        console.print(line, soft_wrap=True)
    evidence = {
        name: [{"folder": str(f), "ledger": e.ledger, "certainty": _certainty(e)} for e, f in each]
        for name, each in found.items()
    }
    record = {"format": "advsphere comparison 1", **asdict(result), "sentence": result.sentence}
    write_atomically(path, json.dumps(record | {"confounders": warnings, "evidence": evidence}, indent=1).encode())
    return path


def _certainty(evaluation: Evaluation) -> float | None:
    """The points that its sample leaves open at most; None if every attack ran on all images."""
    certainty: float | None = evaluation.identity["suite"].get("certainty")
    return certainty


def _evaluation_options(options: Options, run: Path, eps: float) -> evaluate.Options:
    """The options of `advsphere evaluate` for one run."""
    return evaluate.Options(
        subject=EvaluationTarget(run=run, checkpoint=options.checkpoint, n=options.n, data=options.data),
        suite=options.suite,
        effort=options.effort,
        eps=eps,
        certainty=None if options.certainty == "none" else options.certainty,
        batch_size=options.batch_size,
        precision=options.precision,
    )


def _table(result: Gains, eps: str, norm: str) -> Table:
    """Both arms under each attack, and their difference."""
    title = f"accuracy in % on {result.n} test images, {norm}, eps = {eps}; differences in points, 95 % intervals"
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(("", "baseline", "method", "difference", "")):
        table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=i > 0)
    for gain in result.gains:
        difference = f"{points(gain.difference)} ({span(gain)})"
        table.add_row(
            gain.name,
            *gain.accuracies,
            difference,
            "" if gain.clear else "cannot tell",
            style="bold" if gain is result.gains[-1] else None,
            end_section=gain is result.gains[-2],
        )
    return table


def _conclusion(result: Gains, warnings: list[str]) -> list[str]:
    """The verdict, its scope, possible confounders, and the number of images for an interval of +- 1 point."""
    needed = result.n_for_a_point
    images = (
        "No number of images gives an interval of +- 1 point in the worst case with these seeds; add seeds."
        if needed is None
        else f"An interval of +- 1 point in the worst case needs about {needed:,} images; there are {result.n:,}."
    )
    return [
        *[result.left_open] * bool(result.sampled),
        f"{result.verdict.upper()}. {result.sentence}",
        result.scope,
        *(f"! differs between the arms: {warning}" for warning in warnings),
        images,
    ]
