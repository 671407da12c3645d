"""`advsphere verify`: check stored evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from advsphere.cli.arguments import parse
from advsphere.cli.printing import terminal
from advsphere.errors import UserError
from advsphere.evaluation import verify
from advsphere.evaluation.results import LEDGER
from advsphere.runs.target import EvaluationTarget, evaluations


@dataclass(frozen=True, kw_only=True)
class Options:
    """Check an evaluation: recompute every printed number from the ledger, look for an outcome of every attack on every
    image, classify every stored adversarial image again, repeat the checks before the attacks, and attack a random 5 %
    (at least 20) of the resisting examples again. docs/guarantees.md says what this proves.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The folder of an evaluation, or of a run with all its evaluations."""
    share: float = 0.05
    """Share of the resisting examples to attack again."""
    seed: int | None = None
    """Seed that selects these examples; by default it is drawn anew and printed."""


def main(arguments: list[str]) -> int:
    """Print each finding when it is made; returns 1 if an evaluation did not pass."""
    options = parse(Options, arguments, prog="advsphere verify")
    console = terminal(soft_wrap=True)
    passed = True
    for folder in _finished(options.folder):
        model, images = EvaluationTarget.read(folder).load()
        console.print(f"{folder}")
        with console.status("checking"):
            result = verify(
                folder / "evaluation.json",
                folder / LEDGER,
                model,
                images,
                share=options.share,
                seed=options.seed,
                on_finding=lambda finding: console.print(str(finding)),
            )
        console.print("verified" if result.passed else "NOT verified")
        passed = passed and result.passed
    return 0 if passed else 1


def _finished(folder: Path) -> list[Path]:
    found = evaluations(folder)
    if not found and evaluations(folder, LEDGER):
        raise UserError(f"no evaluation in {folder} is finished; run the same `advsphere evaluate` again to continue")
    if not found:
        raise UserError(f"{folder} holds no finished evaluation; `advsphere evaluate {folder}` makes one")
    return found
