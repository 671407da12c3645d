"""`advsphere show`: show one example and every attack on it."""

from __future__ import annotations

import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from advsphere.analysis.perturbations import stored_strips, strip, strip_figure
from advsphere.cli.arguments import parse
from advsphere.cli.printing import terminal
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation import Ledger
from advsphere.evaluation.recorded import trained_on
from advsphere.evaluation.results import LEDGER
from advsphere.evaluation.trace import (
    Replay,
    Trace,
    find_example,
    find_name,
    notable,
    numbers_of,
    replay,
    trace_example,
)
from advsphere.files import write_atomically
from advsphere.runs.target import EvaluationTarget, evaluations


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show one example: every attack on it, the outcomes, a picture, and the command that attacks it again. Without
    EXAMPLE, list a few notable examples.

    advsphere show runs/first

    advsphere show runs/first 17

    advsphere show runs/first 17 --replay PGD-20

    advsphere show runs/photos cat/001.jpg
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The folder of an evaluation, or of a run with all its evaluations."""
    example: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[EXAMPLE]")] = None
    """The number of a test image, from 0, or the name of its file."""
    replay: str | None = None
    """Attack the example again with this attack and the same random numbers, and compare the outcomes."""
    out: Path | None = None
    """The picture's path; by default beside the evaluation."""


def main(arguments: list[str]) -> int:
    """Print the outcomes and the paths of the pictures; returns 1 if a replay had a different outcome."""
    options = parse(Options, arguments, prog="advsphere show")
    if options.example is None and (options.replay is not None or options.out is not None):
        raise UserError("--replay and --out are for one example; give its number after the folder")
    folders = _chosen(options)
    console = terminal(soft_wrap=True)
    same = True
    for folder in folders:
        if len(folders) > 1:
            console.print(f"\n{folder}", style="bold")
        with Ledger.read(folder / LEDGER) as book:
            model, images = EvaluationTarget.read(folder).load()
            if images.labels.tolist() != book.labels:
                raise UserError(
                    f"the images of {images.name} have changed since the evaluation in {folder}; restore them"
                )
            if options.example is None:
                _list(console, folder, book, model, images)
                continue
            trace = trace_example(book, find_example(options.example, images), images.classes, images.files)
            if options.replay is None:
                _tell(console, folder, book, trace, images, options.out)
            else:
                found = replay(book, model, images, options.replay, trace.example)
                _compare(console, folder, found, trace, images, options.out)
                same = same and found.same is not False
    return 0 if same else 1


def _list(console: Console, folder: Path, book: Ledger, model: nn.Module, images: Images) -> None:
    k, n = book.worst_case()
    console.print(f"{n} examples, numbered from 0; no attack fooled {k} of them")
    if changed := trained_on(book, model, folder):
        console.print(f"! {changed}")
        return
    for group in notable(book, model, images):
        console.print(f"\n{group.kind}", style="bold")
        for example, note in group.examples.items():
            trace = trace_example(book, example, images.classes)
            file = "" if images.files is None else f"{images.files[example]}, "
            console.print(f"  {_command(folder, example)}   {file}{trace.name(trace.label)}; {note}")


def _tell(console: Console, folder: Path, book: Ledger, trace: Trace, images: Images, out: Path | None) -> None:
    console.print(trace.table(width=console.width))
    path = out or folder / f"example-{trace.example}.png"
    _draw(path, strip_figure(trace, images, stored_strips(book, trace, images)))
    console.print(f"picture: {path}")
    tried = [a.attack for a in trace.attempts if a.outcome in ("fooled", "resisted", "invalid")]
    if tried:
        attack = tried[-1] if trace.nearest is None else trace.nearest.attack
        console.print(f"attack it again: {_command(folder, trace.example, attack)}")


def _compare(console: Console, folder: Path, found: Replay, trace: Trace, images: Images, out: Path | None) -> None:
    attack = found.then.attack
    console.print(trace.title, style="bold")
    console.print(f"{attack}, with the recorded random numbers: seed {trace.seed}, example {trace.example}")
    for when, attempt in {"recorded": found.then, "now": found.now}.items():
        distance = "" if attempt.distance is None else f", at a distance of {attempt.distance:.4g}"
        console.print(f"  {when + ':':<10} {trace.words(attempt)}{distance}")
    verdicts = {True: "the same outcome", False: "a DIFFERENT outcome", None: "no recorded outcome to compare with"}
    console.print(verdicts[found.same], style="bold")
    path = out or folder / f"example-{trace.example}-{re.sub('[^A-Za-z0-9]+', '-', attack).strip('-')}.png"
    _draw(path, strip_figure(trace, images, {f"{attack}, again": strip(trace, images, found.now, found.x_adv)}))
    console.print(f"picture: {path}")


def _draw(path: Path, figure: Figure) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150, metadata={"Software": None})
    write_atomically(path, drawn.getvalue())


def _command(folder: Path, example: int, attack: str | None = None) -> str:
    """The command that shows an example, or replays an attack on it."""
    again = [] if attack is None else ["--replay", attack]
    return shlex.join(["advsphere", "show", str(folder), str(example), *again])


def _chosen(options: Options) -> list[Path]:
    """All evaluations that have the example, including unfinished ones. A replay and --out need exactly one."""
    folder = options.folder
    found = evaluations(folder, LEDGER)
    if not found:
        raise UserError(f"{folder} holds no evaluation; `advsphere evaluate {folder}` makes one")
    if options.example is None or len(found) == 1:
        return found
    attacks: dict[Path, list[str]] = {}
    for path in found:
        with Ledger.read(path / LEDGER) as book:
            if _holds(book, options.example):
                attacks[path] = list(book.attacks)
    if options.replay is not None and attacks:
        name = find_name(options.replay, list(dict.fromkeys(name for names in attacks.values() for name in names)))
        attacks = {path: names for path, names in attacks.items() if name in names}
    if len(attacks) > 1 and (options.replay is not None or options.out is not None):
        raise UserError(f"{folder} has {len(attacks)} such evaluations; name one: {', '.join(map(str, attacks))}")
    return list(attacks) or found[:1]  # the caller reports that there is no such example


def _holds(book: Ledger, example: str) -> bool:
    """Whether an evaluation has the example, as far as its ledger knows; those of earlier versions know no files."""
    if example.isdecimal():
        return int(example) < len(book.labels)
    return book.files is None or bool(numbers_of(example, book.files))
