"""One example's story out of a ledger: every attack that tried it, and what became of it."""

from __future__ import annotations

import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advsphere.classifier import frozen
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation.checks import device_of
from advsphere.evaluation.judge import exact_float32
from advsphere.evaluation.ledger import CLEAN, Cell, Ledger
from advsphere.evaluation.specs import AttackSpec, in_words
from advsphere.evaluation.verification import judge_again, specs_of, threat_of
from advsphere.identity import model_checksum
from advsphere.losses import margin
from advsphere.threat import ThreatModel, radius

Outcome = Literal["fooled", "resisted", "invalid", "not_run", "not_reached"]
"""As `Status`; `not_reached`: the budget was spent before, or the evaluation was interrupted."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attack on the example.

    settings: as recorded. prediction, distance: of what the attack returned, as in a `Cell`. before: of one that was
    not run, which attack had fooled it already ("clean": it is misclassified as it is). stored: the ledger has the
    image; of a resisted one it has none, unless a minimal-norm attack found it outside the ball.
    """

    attack: str
    settings: Mapping[str, Any]
    fate: Outcome
    prediction: int | None = None
    distance: float | None = None
    before: str | None = None
    stored: bool = False


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What became of one example.

    prediction: of the clean image. classes: names; numbers where there are none. attempts: in the ledger's order. seed:
    with `example` the address of every draw.
    """

    example: int
    label: int
    prediction: int
    classes: tuple[str, ...]
    threat: ThreatModel
    seed: int
    attempts: tuple[Attempt, ...]

    @property
    def nearest(self) -> Attempt | None:
        """The attack that fools it with the smallest distance; of those that agree to four digits, the first."""
        fooled = [a for a in self.attempts if a.fate == "fooled" and a.distance is not None]
        return min(fooled, key=lambda a: float(f"{a.distance:.4g}"), default=None)

    def attempt(self, attack: str) -> Attempt:
        """The attempt of that name. Raises UserError, with the nearest name, where there is none."""
        found = find_name(attack, [a.attack for a in self.attempts])
        return next(a for a in self.attempts if a.attack == found)

    def name(self, number: int | None) -> str:
        """A class by its name."""
        if number is None or number < 0:
            return "no number"
        return self.classes[number] if number < len(self.classes) else f"class {number}"

    def fate(self, attempt: Attempt) -> str:
        """What became of it, in a few words."""
        if attempt.fate == "fooled":
            return f"fooled: {self.name(attempt.prediction)}"
        if attempt.fate == "invalid":
            return (
                "left the pixel range" if attempt.settings.get("minimal") else "left the ball, so it counts for nothing"
            )
        if attempt.fate == "not_reached":
            return "not reached: time was over, or interrupted"
        if attempt.fate == "not_run":
            return "not run: misclassified as it is" if attempt.before == CLEAN else f"not run: {attempt.before} had it"
        return f"resisted: {self.name(attempt.prediction)} is outside the ball" if attempt.stored else "resisted"

    @property
    def title(self) -> str:
        """The example, its label and the clean prediction."""
        wrong = self.prediction != self.label
        said = f"but predicted as {self.name(self.prediction)}, so nothing was tried" if wrong else "and predicted so"
        return f"example {self.example}: {self.name(self.label)}, {said}"

    @property
    def summary(self) -> str:
        """Which attack comes nearest, and what there is no image of."""
        if self.prediction != self.label:
            return "misclassified without an attack"
        nearest = self.nearest
        if nearest is not None:
            return f"nearest: {nearest.attack}, {self.name(nearest.prediction)} at {nearest.distance:.4g}"
        unfinished = any(a.fate == "not_reached" for a in self.attempts)
        return "nothing fooled it" + (" so far" if unfinished else "") + "; of what resisted no image is kept"

    def table(self, *, width: int = 100) -> str:
        """The story as text for a terminal."""
        from rich.console import Console, Group
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("attack", ratio=4)
        table.add_column("outcome", ratio=3)
        table.add_column("distance", justify="right", no_wrap=True)
        for attempt in self.attempts:
            words = Text(in_words(attempt.settings, self.threat.norm))
            shown = attempt.stored or attempt.fate == "invalid"
            distance = f"{attempt.distance:.4g}" if shown and attempt.distance is not None else ""
            table.add_row(Group(Text(attempt.attack), Padding(words, (0, 0, 0, 2))), Text(self.fate(attempt)), distance)
        out = io.StringIO()
        console = Console(file=out, width=width, highlight=False, markup=False)
        console.print(self.title)
        console.print(
            f"{self.threat.norm}, eps = {radius(self.threat.eps)} ({self.threat.eps:.4g}); "
            f"draws: seed {self.seed}, example {self.example}, whatever the batch"
        )
        console.print()
        console.print(table)
        console.print()
        console.print(self.summary)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    def __str__(self) -> str:
        return self.table()


@dataclass(frozen=True, kw_only=True)
class Replay:
    """An attack on one example, once more. then, now: what became of it. x_adv: (C, H, W), what it returned now."""

    then: Attempt
    now: Attempt
    x_adv: Tensor
    forwards: int

    @property
    def same(self) -> bool | None:
        """Whether the outcome and the class are the same; None where nothing was tried then."""
        if self.then.fate in ("not_run", "not_reached"):
            return None
        return (self.then.fate, self.then.prediction) == (self.now.fate, self.now.prediction)


def trace_example(book: Ledger, example: int, classes: Sequence[str] = ()) -> Trace:
    """The story of one example, also out of an evaluation that is not finished. Raises UserError where there is no such
    example, or not even its clean image was looked at.
    """
    labels = book.labels
    if not 0 <= example < len(labels):
        raise UserError(f"there is no example {example}; the evaluation has {len(labels)}, numbered from 0")
    cells = {name: _cell(book, name, example) for name in (CLEAN, *book.attacks)}
    clean = cells[CLEAN]
    if clean is None or clean.prediction is None:
        raise UserError(f"example {example} was not looked at yet; run the same evaluation again to complete it")
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
    """Attack one example again with the draws and the settings on record; the same up to rounding, since it is alone in
    its batch now.

    model, images: those that were evaluated. suite: the attacks, if they were of one's own. Raises UserError for an
    unknown attack or example, a misclassified image, and another model or other labels than were evaluated.
    """
    told = trace_example(book, example, images.classes)
    then = told.attempt(attack)
    if told.prediction != told.label:
        raise UserError(f"{told.title}; there is nothing to replay")
    claimed, found = book.identity["model"]["checksum"], model_checksum(model)
    if claimed != found:
        raise UserError(
            f"this is another model ({found[:12]}) than was evaluated ({claimed[:12]}); replay with that one"
        )
    if images.labels.tolist() != book.labels:
        raise UserError("these are other images than were evaluated; replay with those")
    spec = next(spec for spec in specs_of(book, model, images, suite) if spec.name == attack)
    index = torch.tensor([example])
    with exact_float32():
        verdict = judge_again(book, model, images, spec, index)
    (cell,) = verdict.cells(index, torch.tensor([told.label], device=device_of(model)))
    now = _attempt(attack, then.settings, cell, told.label, None)
    return Replay(then=then, now=now, x_adv=verdict.x_adv[0].cpu(), forwards=verdict.forwards)


def find_name(attack: str, names: Sequence[str]) -> str:
    """The name itself. Raises UserError, with the nearest one, where it is not among the names."""
    if attack in names:
        return attack
    folded = {name.casefold(): name for name in names}
    near = [n for n in folded if attack.casefold() in n] or difflib.get_close_matches(attack.casefold(), folded, n=1)
    hint = f"did you mean {folded[near[0]]!r}?" if near else f"there are {', '.join(map(repr, names))}"
    raise UserError(f"no attack of this evaluation is called {attack!r}; {hint}")


def _cell(book: Ledger, attack: str, example: int) -> Cell | None:
    return next((cell for cell in book.cells(attack) if cell.example == example), None)


def _attempt(name: str, settings: Mapping[str, Any], cell: Cell | None, label: int, before: str | None) -> Attempt:
    if cell is None:
        return Attempt(attack=name, settings=settings, fate="not_reached")
    return Attempt(
        attack=name,
        settings=settings,
        fate=cell.status,
        prediction=cell.prediction,
        distance=cell.distance,
        before=before if cell.status == "not_run" else None,
        stored=cell.prediction not in (None, label),
    )


# FOLDED telling: Which examples of an evaluation teach something when looked at.

MOST_LOOKED_AT = 500
"""Examples whose margin is computed for a list; the first that resisted."""


@dataclass(frozen=True)
class Notable:
    """Examples of one kind: what they have in common, and what is to be known of each, by its number."""

    kind: str
    examples: Mapping[int, str]


def notable(book: Ledger, model: nn.Module, images: Images, *, most: int = 3) -> tuple[Notable, ...]:
    """A few examples of each kind that the ledger has: found by a late attack alone, fooled by one attack out of all
    that tried it, and resisting all with the smallest margin.

    model, images: those that were evaluated. An example is listed once.
    """
    late, alone = _late(book), _alone(book)
    alone = {i: name for i, name in alone.items() if i not in list(late)[:most]}
    kinds = {
        "only a late attack found these: all before it had failed": late,
        "one attack fooled these, and every other failed": alone,
        "these resisted every attack, and are the closest to the boundary": _close(book, model, images, most),
    }
    return tuple(Notable(kind, dict(list(found.items())[:most])) for kind, found in kinds.items() if found)


def _late(book: Ledger) -> dict[int, str]:
    """The finds of the last attack that found what none before it had; none if that is the first one."""
    known: set[int] = set()
    late: dict[int, str] = {}
    for position, name in enumerate(book.attacks):
        new = _fooled(book, name) - known
        if new and position:
            late = {i: f"found by {name}" for i in sorted(new)}
        known |= new
    return late


def _alone(book: Ledger) -> dict[int, str]:
    """Examples that all attacks tried, at least two, and just one fooled."""
    tried: dict[int, list[str]] = {}
    by: dict[int, list[str]] = {}
    for name in book.attacks:
        for cell in book.cells(name):
            if cell.status != "not_run":
                tried.setdefault(cell.example, []).append(name)
            if cell.status == "fooled":
                by.setdefault(cell.example, []).append(name)
    everything = max(2, len(book.attacks))
    return {i: f"fooled by {by[i][0]}" for i in sorted(by) if len(by[i]) == 1 and len(tried[i]) == everything}


def _close(book: Ledger, model: nn.Module, images: Images, most: int) -> dict[int, str]:
    """Examples that every attack tried and none fooled, by the lead of the right logit over the next on the clean
    image.
    """
    resisted = set(range(len(book.labels))) - _fooled(book, CLEAN)
    for name in book.attacks:
        resisted &= {c.example for c in book.cells(name) if c.status in ("resisted", "invalid")}
    lead: dict[int, float] = {}
    with exact_float32(), frozen(model) as exact, torch.no_grad():
        some = torch.tensor(sorted(resisted)[:MOST_LOOKED_AT], dtype=torch.int64)
        for index in some.split(book.identity["batch_size"]) if len(some) else ():
            x, y = (part.to(device_of(model)) for part in images.batch(index))
            lead |= dict(zip(index.tolist(), (-margin(exact(x), y)).tolist(), strict=True))
    return {i: f"its logit leads by {lead[i]:.3g}" for i in sorted(lead, key=lambda i: lead[i])[:most]}


def _fooled(book: Ledger, name: str) -> set[int]:
    return {cell.example for cell in book.cells(name) if cell.status == "fooled"}
