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
from advsphere.comparison.confounders import confounders, divided_otherwise, trained_elsewhere
from advsphere.comparison.gain import Gain, Survival, survival
from advsphere.evaluation import Effort, Evaluation, Precision
from advsphere.files import write_atomically
from advsphere.runs.folder import ranks, read_config
from advsphere.runs.target import EvaluationTarget
from advsphere.threat import radius


@dataclass(frozen=True, kw_only=True)
class Options:
    """Attack a baseline and a method in the same way, and say how much of the method's gain survives.

    Two checkpoints:  advsphere compare runs/pgd-at runs/pgd-at-he --n 1000

    Three seeds each:  advsphere compare runs/a0,runs/a1,runs/a2 runs/b0,runs/b1,runs/b2

    Both are attacked by cross-entropy at s = 1 (as the paper's official code evaluates) and at their own s, by margin,
    DLR, targets, features, black-box search and AutoAttack. For each the paired difference with its interval; then the
    share of the gain under PGD that is left in the worst case, and a verdict: survives, partly, does not survive,
    cannot tell. One checkpoint in an arm tells of these checkpoints; three seeds in each tell of the method.

    Every evaluation is kept in its run's folder and goes on where it was interrupted; `advsphere verify` checks it.
    """

    baseline: Annotated[str, tyro.conf.Positional]
    """A run's folder, or several of different seeds, with commas between them."""
    method: Annotated[str, tyro.conf.Positional]
    """Likewise."""
    suite: str = "survival"
    """Another suite of `advsphere evaluate`, if it has a PGD attack."""
    pgd: str | None = None
    """The attack whose gain is to survive; by default PGD on cross-entropy at s = 1."""
    n: int | None = None
    """As many test images, as `advsphere evaluate` takes them; all by default."""
    eps: float | None = None
    """Radius in pixel units, e.g. 8/255; the baseline's own by default."""
    checkpoint: Literal["best", "last"] = "best"
    """Which of the runs' checkpoints."""
    effort: Annotated[Effort, tyro.conf.arg(name="")] = Effort()
    batch_size: int | None = None
    precision: Precision = "auto"
    """Of the search; auto is bfloat16 where the machine has it."""
    data: Path | None = None
    """Where the images lie now."""
    out: Path | None = None
    """Where to write comparison.json; by default compared/ in the method's first run."""


def main(arguments: list[str]) -> int:
    """Evaluate what is not evaluated yet, print the table and the verdict, and keep them."""
    options = parse(Options, arguments or ["--help"], prog="advsphere compare")
    console = Console(highlight=False, markup=False)
    arms = {name: [Path(p) for p in getattr(options, name).split(",")] for name in ("baseline", "method")}
    configs = {name: [read_config(run) for run in runs] for name, runs in arms.items()}
    eps = configs["baseline"][0].threat.eps if options.eps is None else options.eps
    found: dict[str, list[tuple[Evaluation, Path]]] = {"baseline": [], "method": []}
    for name, runs in arms.items():
        for run in runs:
            console.print(f"{name}: {run}")
            found[name].append(evaluate.evaluated(_question(options, run, eps)))
    result = survival(*([e for e, _ in found[name]] for name in ("baseline", "method")), pgd=options.pgd)
    warnings = confounders(configs["baseline"], configs["method"])
    warnings += divided_otherwise(*([ranks(run) for run in runs] for runs in arms.values()))
    for name in arms:
        warnings += trained_elsewhere(name, configs[name][0], eps)
    console.print(_table(result, radius(eps), configs["baseline"][0].threat.norm))
    for line in _lines(result, warnings):
        console.print(line, soft_wrap=True)
    path = (options.out or arms["method"][0] / "compared") / "comparison.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    evidence = {name: [{"folder": str(f), "ledger": e.ledger} for e, f in each] for name, each in found.items()}
    record = {"format": "advsphere comparison 1", **asdict(result), "sentence": result.sentence}
    write_atomically(path, json.dumps(record | {"confounders": warnings, "evidence": evidence}, indent=1).encode())
    console.print(f"kept in {path}; check the evidence with: advsphere verify RUN", soft_wrap=True)
    return 0


def _question(options: Options, run: Path, eps: float) -> evaluate.Options:
    """What `advsphere evaluate` would be asked for this run."""
    return evaluate.Options(
        subject=EvaluationTarget(run=run, checkpoint=options.checkpoint, n=options.n, data=options.data),
        suite=options.suite,
        effort=options.effort,
        eps=eps,
        batch_size=options.batch_size,
        precision=options.precision,
    )


def _table(result: Survival, eps: str, norm: str) -> Table:
    """Both arms under each attack, and their difference."""
    title = f"accuracy in % on {result.n} test images, {norm}, eps = {eps}; differences in points, 95 % intervals"
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", "baseline", "method", "difference", ""):
        table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
    for gain in result.gains:
        last = gain is result.gains[-1]
        table.add_row(
            gain.name,
            f"{100 * gain.baseline:.1f}",
            f"{100 * gain.method:.1f}",
            f"{100 * gain.difference:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})",
            _remark(gain),
            style="bold" if last else None,
            end_section=gain is result.gains[-2],
        )
    return table


def _remark(gain: Gain) -> str:
    return "" if gain.clear else "cannot tell"


def _lines(result: Survival, warnings: list[str]) -> list[str]:
    """The verdict, whom it is about, what may confound it, and how to learn more."""
    of = "the method" if result.of_the_method else "these checkpoints; the method takes three seeds in each arm"
    lines = [f"{result.verdict.upper()}. {result.sentence}", f"This is about {of}."]
    lines += [f"! differs between the arms: {warning}" for warning in warnings]
    more = f"{result.n_for_a_point:,} images would give the worst case's difference an interval of +- 1 point"
    return [*lines, f"{more}; here are {result.n:,}."]
