"""`advsphere demo`: train two networks on digits that come with the installation, compare them, write the report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from advsphere.cli import compare, report
from advsphere.cli.arguments import parse
from advsphere.cli.printing import program, terminal
from advsphere.recipes import recipe
from advsphere.runs.config import Config
from advsphere.runs.train import train
from advsphere.runs.watching import TrainingProgress

RECIPES = ("digits-pgd-at", "digits-pgd-at-he")
SUITE = "quick"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train two networks on handwritten digits, attack both, and compare them. About a minute.

    One is trained by PGD-AT (adversarial training), the other by PGD-AT with hypersphere embedding (HE); every other
    setting is the same. Both are attacked on 500 test images by FGSM, PGD-20, PGD-100 and PGD-100 on the margin, at
    linf eps = 0.2. The demo runs `advsphere train`, `advsphere compare --suite quick` and `advsphere report`.

    It prints each network's accuracy under each attack (an upper bound of its robust accuracy), the paired difference
    with its 95 % interval, and a verdict. The folder --out then holds both runs, each with its evaluation and ledger,
    and report.html. The same command continues an interrupted demo.
    """

    out: Path = Path("runs/demo")
    """The output folder, which may be that of an earlier demo."""


def main(arguments: list[str]) -> int:
    """Run the demo, and print the next commands."""
    options = parse(Options, arguments, prog="advsphere demo")
    console, began = terminal(), time.monotonic()
    runs, page = demo(options.out, console)
    console.print(f"\nDone in {time.monotonic() - began:.0f} s. Next:")
    for line in (
        f"read the report       {page}",
        f"check the numbers     {program('verify', runs[-1])}",
        f"use stronger attacks  {program('compare', runs[0], runs[-1])}",
        f"train with TRADES     {program('train', 'digits-trades-he')}",
    ):
        console.print(f"  {line}", soft_wrap=True)
    return 0


def demo(out: Path, console: Console, configs: Sequence[Config] | None = None) -> tuple[list[Path], Path]:
    """Train, compare and report in the folder `out`, skipping finished parts. Returns the runs' folders and the page.

    `configs` are the baseline's and the method's, by default `RECIPES`. Raises UserError if a folder holds a run with
    other settings.
    """
    configs = [recipe(name) for name in RECIPES] if configs is None else configs
    runs, page = [out / config.recipe for config in configs], out / "report.html"
    with _one_thread():
        for config, run in zip(configs, runs, strict=True):
            with TrainingProgress(config, terminal()) as progress:
                train(config, run, resume=True, on_start=progress.start, on_tick=progress.tick)
        baseline, method = map(str, runs)
        compare.compared(compare.Options(baseline=baseline, method=method, suite=SUITE), console)
        report.write(report.Options(runs=(baseline, method), suite=SUITE, whole=True, out=page), console)
    return runs, page


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: small networks gain nothing from more, and the numbers are the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
