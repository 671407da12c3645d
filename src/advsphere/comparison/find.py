"""Find comparable evaluations of several runs: the same attacks on the same images."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from advsphere.errors import UserError
from advsphere.evaluation import Evaluation
from advsphere.evaluation.suites import rank_of
from advsphere.files import canonical
from advsphere.runs.target import EvaluationTarget, evaluations


class Finished(NamedTuple):
    """A finished evaluation, its folder and its target."""

    folder: Path
    evaluation: Evaluation
    subject: EvaluationTarget

    @property
    def question(self) -> str:
        """Suite, threat and images, which are equal for comparable evaluations. Bounds of samples may differ."""
        identity = self.evaluation.identity
        suite = {key: value for key, value in identity["suite"].items() if key not in ("head", "certainty")}
        attacks = sorted(identity["attacks"]) if suite["name"] == "own" else None
        return canonical([suite, attacks, identity["threat"], identity["data"]["checksum"]])

    @property
    def strength(self) -> tuple[bool, float, int, int]:
        """A sort key: the best checkpoint before the last one, then the suite's rank, the images, and the effort."""
        identity = self.evaluation.identity
        effort = sum(row.forwards or 0 for row in self.evaluation.attacks)
        return self.subject.checkpoint == "best", rank_of(identity["suite"]), self.evaluation.clean.n, effort


def common(
    places: Sequence[Path], suite: str | None, outdated: Mapping[Path, str] = MappingProxyType({})
) -> tuple[list[Finished], list[str]]:
    """Find one evaluation for each place (the folder of a run or of an evaluation), all comparable: the strongest that
    all places have, of the given suite if any. Also returns a note for each evaluation that can't be read, or is in one
    of the outdated folders, which map to their reasons.

    Raises UserError with the command to run if the places have none in common.
    """
    notes: list[str] = []
    found: list[Mapping[str, Finished]] = []
    for place in places:
        finished = _finished(place, notes, outdated)
        known = [one for one in finished if suite in (None, one.evaluation.identity["suite"]["name"])]
        if not known:
            raise UserError(_missing(place, suite, notes))
        # Of two evaluations that answer one question, such as those of both checkpoints, the stronger one is taken.
        found.append({one.question: one for one in sorted(known, key=lambda one: one.strength)})
    shared = set.intersection(*({*questions} for questions in found))
    if not shared:
        raise UserError(
            f"{', '.join(map(str, places))} have no evaluation in common (the same suite, threat and images)"
            f"{_last(notes)}; make one for each, e.g. with `{_command(places[0], suite)}`"
        )
    best = max(shared, key=lambda question: found[0][question].strength)
    return [questions[best] for questions in found], notes


def _finished(place: Path, notes: list[str], outdated: Mapping[Path, str]) -> list[Finished]:
    found = []
    for folder in evaluations(place):
        try:
            if folder in outdated:
                raise UserError(outdated[folder])
            found.append(Finished(folder, Evaluation.load(folder / "evaluation.json"), EvaluationTarget.read(folder)))
        except UserError as error:
            notes.append(f"left out: {error}")
    return found


def _missing(place: Path, suite: str | None, notes: Sequence[str]) -> str:
    if not place.is_dir():
        return f"there is no folder {place}; name the folder of a run, or of an evaluation"
    of = f" of suite {suite}" if suite else ""
    return f"{place} holds no finished evaluation{of}{_last(notes)}; `{_command(place, suite)}` makes one"


def _last(notes: Sequence[str]) -> str:
    return f" ({notes[-1]})" if notes else ""


def _command(place: Path, suite: str | None) -> str:
    return shlex.join(["advsphere", "evaluate", str(place), "--suite", suite or "survival"])
