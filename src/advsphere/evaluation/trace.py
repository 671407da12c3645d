"""The history of one example in a ledger: the outcome of every attack on it. Also finds notable examples."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advsphere.classifier import frozen
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation.checks import loaded
from advsphere.evaluation.display import plain_console
from advsphere.evaluation.judge import exact_float32
from advsphere.evaluation.ledger import CLEAN, Cell, Ledger
from advsphere.evaluation.majority import as_judged
from advsphere.evaluation.recorded import another_model, judge_again, require_whole, specs_of, threat_of
from advsphere.evaluation.specs import AttackSpec, in_words
from advsphere.files import some
from advsphere.losses import margin
from advsphere.threat import ThreatModel, radius

Outcome = Literal["fooled", "resisted", "invalid", "not_run", "not_sampled", "not_reached"]
"""As `Status`. `not_reached`: the time budget ended, or the evaluation was interrupted."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attack on the example. `prediction` and `distance` are as in a `Cell`.

    If the attack was skipped, `before` names the earlier attack that fooled the example, or is "clean" if the clean
    image is misclassified. `stored` says whether the ledger has the adversarial image.
    """

    attack: str
    settings: Mapping[str, Any]
    outcome: Outcome
    prediction: int | None = None
    distance: float | None = None
    before: str | None = None
    stored: bool = False


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One example: its label, the prediction of the clean image, every attack in order, and its file if it has one."""

    example: int
    label: int
    prediction: int
    classes: tuple[str, ...]
    threat: ThreatModel
    seed: int
    attempts: tuple[Attempt, ...]
    file: str | None = None

    @property
    def nearest(self) -> Attempt | None:
        """The attack that fools it with the smallest distance; the first of those that agree to four digits."""
        fooled = [a for a in self.attempts if a.outcome == "fooled" and a.distance is not None]
        return min(fooled, key=lambda a: float(f"{a.distance:.4g}"), default=None)

    def attempt(self, attack: str) -> Attempt:
        """The attempt of an attack. Raises UserError with the nearest name if there is none."""
        found = find_name(attack, [a.attack for a in self.attempts])
        return next(a for a in self.attempts if a.attack == found)

    def name(self, number: int | None) -> str:
        """The name of a class; None and -1 stand for NaN logits."""
        if number is None or number < 0:
            return "NaN"
        return self.classes[number] if number < len(self.classes) else f"class {number}"

    def words(self, attempt: Attempt) -> str:
        if attempt.outcome == "resisted":
            return f"resisted: {self.name(attempt.prediction)} is outside the ball" if attempt.stored else "resisted"
        left = "pixel range" if attempt.settings.get("minimal") else "ball"
        return {
            "fooled": f"fooled: {self.name(attempt.prediction)}",
            "invalid": f"left the {left}, so it counts as resisted",
            "not_reached": "not reached: out of time, or interrupted",
            "not_sampled": "not in the random sample of this attack",
            "not_run": f"skipped: already fooled by {attempt.before}",
            "clean": "skipped: misclassified anyway",
        }[attempt.outcome if attempt.before != CLEAN else "clean"]

    @property
    def title(self) -> str:
        """The example, its label and the clean prediction."""
        wrong = self.prediction != self.label
        said = f"misclassified as {self.name(self.prediction)} without an attack" if wrong else "classified correctly"
        file = "" if self.file is None else f" ({self.file})"
        return f"example {self.example}{file}: {self.name(self.label)}, {said}"

    @property
    def summary(self) -> str:
        """The attack that found the nearest adversarial image."""
        if self.prediction != self.label:
            return "misclassified without an attack"
        nearest = self.nearest
        if nearest is not None:
            return f"nearest: {nearest.attack}, {self.name(nearest.prediction)} at {nearest.distance:.4g}"
        unfinished = any(a.outcome == "not_reached" for a in self.attempts)
        return "no attack fooled it" + (" so far" if unfinished else "") + "; images that resisted are not kept"

    def table(self, *, width: int = 100) -> str:
        """All attempts as text for a terminal of this many columns."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("attack", ratio=4)
        table.add_column("outcome", ratio=3)
        table.add_column("distance", justify="right", no_wrap=True)
        for attempt in self.attempts:
            settings = Padding(Text(in_words(attempt.settings, self.threat.norm)), (0, 0, 0, 2))
            shown = attempt.stored or attempt.outcome == "invalid"
            distance = f"{attempt.distance:.4g}" if shown and attempt.distance is not None else ""
            table.add_row(Group(Text(attempt.attack), settings), Text(self.words(attempt)), distance)
        console = plain_console(width)
        ball = f"{self.threat.norm}, eps = {radius(self.threat.eps)} ({self.threat.eps:.4g})"
        how = f"random numbers: seed {self.seed}, example {self.example}, in any batch"
        with console.capture() as printed:
            console.print(f"{self.title}\n{ball}; {how}\n")
            console.print(table, f"\n{self.summary}")
        return "\n".join(line.rstrip() for line in printed.get().splitlines())

    def __str__(self) -> str:
        return self.table()


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The recorded outcome of an attack on one example, and that of running it again, with its `x_adv` (C, H, W)."""

    then: Attempt
    now: Attempt
    x_adv: Tensor
    forwards: int

    @property
    def same(self) -> bool | None:
        """Whether outcome and predicted class are the same; None if the recorded attack was not run."""
        if self.then.outcome in ("not_run", "not_sampled", "not_reached"):
            return None
        return (self.then.outcome, self.then.prediction) == (self.now.outcome, self.now.prediction)


def trace_example(book: Ledger, example: int, classes: Sequence[str] = (), files: Sequence[str] | None = None) -> Trace:
    """Look up one example, also in an unfinished evaluation. Raises UserError if there is no such example, or if its
    clean image was not predicted yet.
    """
    require_whole(book)
    labels = book.labels
    if not 0 <= example < len(labels):
        raise UserError(f"there is no example {example}; the evaluation has {len(labels)}, numbered from 0")
    cells = {name: _cell(book, name, example) for name in (CLEAN, *book.attacks)}
    clean = cells[CLEAN]
    if clean is None or clean.prediction is None:
        raise UserError(f"example {example} was not predicted yet; run the same evaluation again to complete it")
    attempts = []
    for name, settings in book.attacks.items():
        earlier = (CLEAN, *settings.get("after", []))
        before = next((b for b in earlier if (c := cells.get(b)) is not None and c.status == "fooled"), None)
        attempts.append(_attempt(name, settings, cells[name], labels[example], before))
    return Trace(
        example=example,
        label=labels[example],
        prediction=clean.prediction,
        classes=tuple(classes),
        threat=threat_of(book),
        seed=book.identity["seed"],
        attempts=tuple(attempts),
        file=None if files is None else files[example],
    )


def replay(
    book: Ledger,
    model: nn.Module,
    images: Images,
    attack: str,
    example: int,
    *,
    suite: Sequence[AttackSpec] | None = None,
) -> Replay:
    """Attack one example again with the recorded random numbers and settings. The outcome is the same up to rounding,
    because the example is now alone in its batch.

    `suite` holds the attacks if the evaluation was given a list. Raises UserError for an unknown attack or example, a
    misclassified image, another model and other labels.
    """
    trace = trace_example(book, example, images.classes, images.files)
    then = trace.attempt(attack)
    if trace.prediction != trace.label:
        raise UserError(f"{trace.title}; there is nothing to replay")
    model = as_judged(model, book.identity["suite"].get("draws", 0))
    if changed := another_model(book, model):
        raise UserError(f"this is another model than the one that was evaluated: {some(changed)}; replay with that one")
    if images.labels.tolist() != book.labels:
        raise UserError("these are other images than were evaluated; replay with those")
    spec = next(spec for spec in specs_of(book, model, images, suite) if spec.name == attack)
    index = torch.tensor([example])
    with exact_float32():
        verdict = judge_again(book, model, images, spec, index)
    device = verdict.x_adv.device
    (cell,) = verdict.cells(index.to(device), torch.tensor([trace.label], device=device))
    now = _attempt(attack, then.settings, cell, trace.label, None)
    return Replay(then=then, now=now, x_adv=verdict.x_adv[0].cpu(), forwards=verdict.forwards)


def numbers_of(file: str, files: Sequence[str]) -> list[int]:
    """The numbers of the images with this file: its path below the folder of the images, its last part or a longer
    path. Several images may have the same last part.
    """
    file = PurePath(file).as_posix()
    whole = [i for i, known in enumerate(files) if known == file]
    ends = (i for i, known in enumerate(files) if f"/{known}".endswith(f"/{file}") or file.endswith(f"/{known}"))
    return whole or [*ends]


def find_example(example: str, images: Images) -> int:
    """The number of an example that is given by its number or by its file. Raises UserError if there is no such file,
    or if several images have it.
    """
    if re.fullmatch(r"-?\d+", example):
        return int(example)
    if images.files is None:
        raise UserError(f"the images of {images.name} have no file names; give a number instead of {example!r}")
    found = numbers_of(example, images.files)
    if len(found) > 1:
        raise UserError(f"{len(found)} images are called {example}: {some([images.files[i] for i in found])}; name one")
    if not found:
        near = difflib.get_close_matches(example, images.files, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the first one is {images.files[0]}"
        raise UserError(f"no image of {images.name} is in a file {example}; {hint}")
    return found[0]


def find_name(attack: str, names: Sequence[str]) -> str:
    """The attack's name. Raises UserError with the nearest name if it is not among the names."""
    if attack in names:
        return attack
    folded = {name.casefold(): name for name in names}
    near = [n for n in folded if attack.casefold() in n] or difflib.get_close_matches(attack.casefold(), folded, n=1)
    hint = f"did you mean {folded[near[0]]!r}?" if near else f"there are {', '.join(map(repr, names))}"
    raise UserError(f"no attack of this evaluation is called {attack!r}; {hint}")


def _cell(book: Ledger, attack: str, example: int) -> Cell | None:
    return next((cell for cell in book.cells(attack) if cell.example == example), None)


def _attempt(name: str, settings: Mapping[str, Any], cell: Cell | None, label: int, before: str | None) -> Attempt:
    if cell is None:  # an attack that the budget stopped before its first batch has no cell for what it would skip
        return Attempt(attack=name, settings=settings, outcome="not_run" if before else "not_reached", before=before)
    return Attempt(
        attack=name,
        settings=settings,
        outcome=cell.status,
        prediction=cell.prediction,
        distance=cell.distance,
        before=before if cell.status == "not_run" else None,
        stored=cell.prediction not in (None, label),
    )


EACH = 3
"""Examples of each kind that `notable` finds."""
MOST_MARGINS = 500
"""Number of resisting examples whose margin is computed to find those closest to the boundary."""


@dataclass(frozen=True)
class Notable:
    """Examples of one kind, with a remark on each by its number."""

    kind: str
    examples: Mapping[int, str]


def notable(book: Ledger, model: nn.Module, images: Images) -> tuple[Notable, ...]:
    """A few examples of each kind: fooled only by a late attack, by a single attack, or not at all and closest to the
    boundary. If the first attack fooled every example that any attack fooled, some of these are listed. Each example is
    listed once.
    """
    attacks = list(book.attacks)
    status = [{cell.example: cell.status for cell in book.cells(name)} for name in attacks]
    outcomes = {i: [one.get(i, "not_run") for one in status] for i in range(len(book.labels))}
    breaker = {i: found.index("fooled") for i, found in outcomes.items() if "fooled" in found}
    last = max(breaker.values(), default=0)
    late = [i for i in breaker if breaker[i] == last > 0][:EACH]
    tried = [i for i, found in outcomes.items() if found and not {"not_run", "not_sampled"} & {*found}]
    single = [i for i in tried if len(attacks) > 1 and outcomes[i].count("fooled") == 1 and i not in late][:EACH]
    standing = [i for i, found in outcomes.items() if "resisted" in found and i not in breaker]
    margins = _margins(book, model, images, standing[:MOST_MARGINS])
    closest = sorted(margins, key=lambda i: margins[i])[:EACH]
    kinds = {
        "fooled by a late attack, after all earlier ones had failed": late,
        "fooled by a single attack, while every other failed": single,
        "fooled by the first attack": [] if late or single else [*breaker][:EACH],
    }
    groups = [Notable(kind, {i: f"fooled by {attacks[breaker[i]]}" for i in found}) for kind, found in kinds.items()]
    resisting = {i: f"margin of the clean image {margins[i]:.3g}" for i in closest}
    groups.append(Notable("no attack fooled them, and they are closest to the boundary", resisting))
    return tuple(group for group in groups if group.examples)


def _margins(book: Ledger, model: nn.Module, images: Images, examples: Sequence[int]) -> dict[int, float]:
    """The lead of the label's logit on each clean image."""
    found: dict[int, float] = {}
    with exact_float32(), frozen(model) as exact, torch.no_grad():
        for index in torch.tensor(examples).split(book.identity["batch_size"]) if examples else ():
            x, y = loaded(model, images, index)
            found |= dict(zip(index.tolist(), (-margin(exact(x), y)).tolist(), strict=True))
    return found
