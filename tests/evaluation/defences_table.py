"""The table of the constructed defences: `python -m tests.evaluation.defences_table` writes docs/masked-defences.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from advsphere.data import load_test
from advsphere.errors import UserError
from advsphere.evaluation import Effort, Evaluation, evaluate
from tests.evaluation.defences import CASES, Case

N = 60
SUITES = ("quick", "paper", "adaptive", "black-box", "autoattack")
QUICKEST = ("quick", "paper", "black-box")
NEW = {"false gradients": "F", "planted examples missed": "P", "random search finds more": "R"}
"""The signs of the three probes, and their letters in the table."""
PAGE = Path(__file__).parents[2] / "docs" / "masked-defences.md"

HEAD = f"""# Masked defences

Each row is a network on the digits with a part that makes attacks fail, built in `tests/evaluation/defences.py`.
"Truth" is the accuracy left by images that fool the undefended network (PGD-50 on two losses from two starts) and by
Square with 1,000 queries on the defence; it is an upper bound too. {N} images, linf, eps 0.2, or 0.1 where
the row says half.
`python -m tests.evaluation.defences_table` writes this page, and a slow test checks what it claims.

A cell is the accuracy in the worst case over a suite, the thousands of images that its attacks sent through the
network, and the signs: **F** false gradients, **P** planted examples missed, **R** random search finds more, + any
earlier sign. Bold means that the number is printed as "not a verdict". "refused" means that the suite says why it can't
run, and names one that can. `adaptive` uses 3 guides. Honest rows hide nothing, and raise no sign.
"""


class Outcome(NamedTuple):
    """A defence under a suite; `evaluation` is None if the suite refused the model."""

    suite: str
    evaluation: Evaluation | None


def images(n: int = N) -> tuple[Tensor, Tensor]:
    """The first test images of the digits."""
    return load_test("digits").batch(torch.arange(n))


def outcome(case: Case, suite: str, n: int = N) -> Outcome:
    """Evaluate a defence by a suite."""
    effort = Effort(guides=3) if suite == "adaptive" else Effort(steps=10) if suite == "rand" else Effort()
    try:
        return Outcome(suite, evaluate(case.make(), *images(n), threat=case.threat, suite=suite, effort=effort))
    except UserError as error:
        assert "--suite" in str(error), error
        return Outcome(suite, None)


def flatters(found: Evaluation, truth: float) -> bool:
    """Whether its number is above the truth by more than half the width of its interval, and no sign says so."""
    low, high = found.worst.interval
    return found.worst.accuracy - truth > (high - low) / 2 and not found.raised


def cell(found: Evaluation | None) -> str:
    """A cell of the table."""
    if found is None:
        return "refused"
    raised = {sign.check for sign in found.raised}
    letters = "".join(letter for check, letter in NEW.items() if check in raised) + "+" * bool(raised - NEW.keys())
    number = f"{100 * found.worst.accuracy:.0f}"
    number = f"**{number}**" if found.refuted(found.worst) else number
    return f"{number} ({found.worst.forwards / 1000:.1f}k) {letters}".strip()


def rows(names: Sequence[str], *, whole: bool = True) -> Iterator[str]:
    """The lines of the table, one defence each; unless `whole`, by the suites that take seconds."""
    for name in names:
        case = CASES[name]
        truth = case.truth(*images())
        suites = ("quick", "rand", "black-box") if case.random else SUITES if whole else QUICKEST
        found = dict(outcome(case, suite) for suite in suites)
        for suite, evaluation in found.items():
            if evaluation is not None and flatters(evaluation, truth):
                print(f"{name}, {suite}: no sign, truth {truth:.2f}", file=sys.stderr)
        cells = [cell(found[suite]) if suite in found else "·" for suite in (*SUITES, "rand")]
        yield " | ".join([f"| {name}{' (honest)' * case.honest}", f"{100 * truth:.0f}", *cells]) + " |"


def main(names: Sequence[str]) -> None:
    """Print the lines of some defences, or write the page with all of them."""
    for line in rows(names):
        print(line, flush=True)
    if not names:
        columns = ["defence", "truth, %", *SUITES, "rand"]
        lines = [f"| {' | '.join(columns)} |", "|---|" + "--:|" * (len(columns) - 1), *rows([*CASES])]
        PAGE.write_text(HEAD + "\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
