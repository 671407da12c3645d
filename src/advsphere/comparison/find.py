"""Which finished evaluations of several runs belong together: the same attacks on the same images."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from advsphere.errors import UserError
from advsphere.evaluation import Evaluation
from advsphere.files import canonical
from advsphere.runs.target import EvaluationTarget

STRENGTH = ("own", "quick", "paper", "table4", "adaptive", "table2", "autoattack", "table6", "survival")
"""Suites, the strongest last."""


class Finished(NamedTuple):
    """A finished evaluation, where it lies and what it is of."""

    folder: Path
    evaluation: Evaluation
    subject: EvaluationTarget

    @property
    def question(self) -> str:
        """What was asked: equal for evaluations that can be set side by side."""
        identity = self.evaluation.identity
        suite = {key: value for key, value in identity["suite"].items() if key != "head"}
        return canonical([suite, identity["threat"], identity["data"]["checksum"]])

    @property
    def strength(self) -> tuple[bool, int, int, int]:
        """The best checkpoint before the last one, the stronger suite, more images, more effort."""
        identity = self.evaluation.identity
        effort = sum(row.forwards for row in self.evaluation.attacks)
        suite = STRENGTH.index(identity["suite"]["name"])
        return self.subject.checkpoint == "best", suite, self.evaluation.clean.n, effort


def common(places: Sequence[Path], suite: str | None) -> tuple[list[Finished], list[str]]:
    """One evaluation for each place, all of the same question: the strongest that all have; and a note for each one
    that can't be read. places: folders of runs, or of evaluations. suite: this one alone.

    Raises UserError that names the command to run where there is none.
    """
    notes: list[str] = []
    found: list[Mapping[str, Finished]] = []
    for place in places:
        known = [one for one in _finished(place, notes) if suite in (None, one.evaluation.identity["suite"]["name"])]
        if not known:
            raise UserError(_missing(place, suite, notes))
        # Of one question asked twice, as of both checkpoints, the stronger stands for it.
        found.append({one.question: one for one in sorted(known, key=lambda one: one.strength)})
    shared = set.intersection(*({*questions} for questions in found))
    if not shared:
        raise UserError(
            f"{', '.join(map(str, places))} have no evaluation in common: the same suite, eps and images; "
            f"{_command(places[0], suite)} and so on makes one of each"
        )
    best = max(shared, key=lambda question: found[0][question].strength)
    return [questions[best] for questions in found], notes


def _finished(place: Path, notes: list[str]) -> list[Finished]:
    """All finished evaluations of a run, or the one of the folder."""
    folders = [place] if (place / "evaluation.json").is_file() else [
        path.parent for path in sorted(place.glob("evaluations/*/evaluation.json"))
    ]  # fmt: skip
    found = []
    for folder in folders:
        try:
            found.append(Finished(folder, Evaluation.load(folder / "evaluation.json"), EvaluationTarget.read(folder)))
        except UserError as error:
            notes.append(f"passed over: {error}")
    return found


def _missing(place: Path, suite: str | None, notes: Sequence[str]) -> str:
    if not place.is_dir():
        return f"there is no folder {place}; name the folder of a run, or of an evaluation"
    of = f" of suite {suite}" if suite else ""
    unread = f" ({notes[-1]})" if notes else ""
    return f"{place} holds no finished evaluation{of}{unread}; `{_command(place, suite)}` makes one"


def _command(place: Path, suite: str | None) -> str:
    return shlex.join(["advsphere", "evaluate", str(place), "--suite", suite or "survival"])
