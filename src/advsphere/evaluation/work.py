"""Run an evaluation: attack batch by batch and record every outcome, in one process or in several.

With several processes, each writes a separate ledger beside the main one, and the main one is merged from them at the
end. After an interruption, the next call merges them first, with any number of processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from advsphere.classifier import frozen
from advsphere.data import Images
from advsphere.distributed import World
from advsphere.errors import UserError
from advsphere.evaluation.checks import loaded
from advsphere.evaluation.judge import OutOfTime, exact_float32, judge_attack, predict
from advsphere.evaluation.ledger import CLEAN, Cell, Cost, Ledger
from advsphere.evaluation.pace import Pace, leading
from advsphere.evaluation.probes import missing, probes_of
from advsphere.evaluation.progress import OnProgress, Progress
from advsphere.evaluation.results import Evaluation
from advsphere.evaluation.rows import Finding
from advsphere.evaluation.sampling import SEARCH, Sampling
from advsphere.evaluation.specs import AttackSpec
from advsphere.files import canonical, file_lock
from advsphere.identity import AnotherModelError
from advsphere.memory import leading_part
from advsphere.rng import Rng
from advsphere.threat import ThreatModel

Find = Callable[[int, Tensor], tuple[list[Cell], int]]
"""(Number of examples to come, numbers of those that memory allows) -> (cells of the first of them, forwards)."""


@dataclass(frozen=True)
class Plan:
    """An evaluation that passed its checks, and its ledger. A `dtype` of None means to search in float32. With `sized`,
    the batch size was chosen for this machine, and gives way to that of an existing ledger.
    """

    model: nn.Module
    images: Images
    threat: ThreatModel
    specs: Sequence[AttackSpec]
    identity: Mapping[str, Any]
    answers: Mapping[str, Any]
    environment: Mapping[str, Any]
    dtype: torch.dtype | None
    budget: float | None
    findings: tuple[Finding, ...]
    world: World
    sized: bool = False
    ledger: Path | None = None

    def claim(self, path: Path | None, *, beside: bool = True) -> Plan:
        """Create the ledger, or open the one to resume. Raises UserError for a ledger of another evaluation.

        With `beside`, a ledger that differs only in the model is kept, and a new file is written beside it.
        """
        if path is None:
            return self
        if self.sized:
            return replace(self, identity=self.world.from_first(self._resized(path)), sized=False).claim(
                path, beside=beside
            )
        free = path
        for free in self._names(path) if self.world.first else ():
            try:
                with file_lock(free):
                    self._begin(free).close()
                break
            except AnotherModelError:
                if not beside:
                    raise
        free, findings = self.world.from_first(free), list(self.findings)
        if free != path:
            detail = f"{path.name} holds an evaluation of another model and was kept; this one is in {free.name}"
            findings.append(Finding("ledger", "noted", detail))
        return replace(self, ledger=free, findings=tuple(findings))

    def run(self, on_progress: OnProgress | None = None) -> Evaluation:
        """Run the attacks within the budget, and compute the result from the ledger.

        What is sampled depends on all outcomes before, so several processes merge their ledgers before each look. A
        part that is still open after it was run has met the end of the budget.
        """
        result, pace, part = None, Pace(self.budget), None
        with ExitStack() as held:
            held.enter_context(exact_float32())
            if self.ledger is not None and self.world.first:
                held.enter_context(file_lock(self.ledger))
            while self.world.size > 1:
                with own_part(self.ledger, self._begin, self.world) as book:
                    if (left := Sampling(book).part()) in (None, part):
                        break
                    part = left
                    _Work(self, book, on_progress).run(part, pace)
            if self.world.first:
                with whole(self.ledger, self._begin) as book:
                    work, sampling = _Work(self, book, on_progress), Sampling(book)
                    while self.world.size == 1 and (left := sampling.part()) not in (None, part):
                        part = left
                        work.run(part, pace)
                    sampling.finish()
                    work.probe()
                    result = Evaluation.of(book, self.findings)
                    book.require_place()
            return cast(Evaluation, self.world.from_first(result))

    def _begin(self, path: Path | None, *, beside: Path | None = None) -> Ledger:
        labels = self.images.labels.tolist()
        known = {"identity": self.identity, "answers": self.answers, "environment": self.environment}
        return Ledger.create_or_resume(path, labels=labels, files=self.images.files, beside=beside, **known)

    def _resized(self, path: Path) -> Mapping[str, Any]:
        """The identity, with the batch size of an existing ledger."""
        if not (self.world.first and path.exists() and path.stat().st_size):
            return self.identity
        with Ledger(path) as book:
            if not book.begun:
                return self.identity
        with Ledger.read(path) as book:
            return {**self.identity, "batch_size": book.identity["batch_size"]}

    def _names(self, path: Path) -> Iterator[Path]:
        """The file itself, then free names beside it."""
        yield path
        own = hashlib.sha256(canonical(self.identity).encode()).hexdigest()[:8]
        for i in itertools.count(1):
            yield path.with_stem(f"{path.stem}-{own}" + (f"-{i}" if i > 1 else ""))


@dataclass(frozen=True)
class _Work:
    """The part of an evaluation that this process does."""

    plan: Plan
    ledger: Ledger
    on_progress: OnProgress | None

    def run(self, part: int, pace: Pace) -> None:
        """Run a part (`Sampling.part`) on this process's batches, one attack after the other, within the budget."""
        sampling = Sampling(self.ledger)
        if part == SEARCH:
            names, batches = sampling.search, dict(enumerate(torch.arange(sampling.n).split(self._batch_size)))
        else:
            chunks = sampling.chunks(part, self._batch_size)
            names, batches = sampling.proofs, {i: torch.tensor(chunk) for i, chunk in chunks.items()}
        finished = [self.ledger.done(name) for name in names]
        own = {batch: batches[batch] for batch in assign_batches(list(batches), finished, self.plan.world)}
        if part == SEARCH:
            self._clean(own)
        with contextlib.suppress(OutOfTime):
            for spec in self.plan.specs:
                if spec.name in names:
                    self._attack(spec, own, pace)

    def probe(self) -> None:
        """Run the missing probes for signs of gradient masking, regardless of the budget."""
        plan, absent = self.plan, missing(self.ledger)
        for name, value in probes_of(self.ledger, plan.model, plan.images, plan.specs, absent):
            self.ledger.record_probe(name, value)

    def _clean(self, own: Mapping[int, Tensor]) -> None:
        with frozen(self.plan.model) as exact:

            def cells(waiting: int, index: Tensor) -> tuple[list[Cell], int]:
                x, y = loaded(self.plan.model, self.plan.images, index)
                rows = zip(index.tolist(), predict(exact, x).tolist(), y.tolist(), strict=True)
                return [Cell(i, "resisted" if c == label else "fooled", c, 0.0) for i, c, label in rows], len(x)

            self._each(CLEAN, own, cells)

    def _attack(self, spec: AttackSpec, own: Mapping[int, Tensor], pace: Pace) -> None:
        standing = torch.tensor([robust == "1" for robust in self.ledger.outcomes(spec.name)])

        def cells(waiting: int, index: Tensor) -> tuple[list[Cell], int]:
            # Where memory ran out, an attack makes no larger batch than it gets.
            room = self._batch_size if len(index) == waiting else 0
            try:
                most = pace.part(self.ledger, spec, standing[index])
                found = self._judged(spec, index[:most], standing, pace.deadline, room)
            except OutOfTime:
                if pace.moved:
                    raise
                # Every call has to make progress, so it attacks one image for as long as that takes.
                found = self._judged(spec, index[: leading(standing[index], 1)], standing, math.inf, room)
            pace.moved |= bool(found[1])
            return found

        self._each(spec.name, own, cells)

    def _judged(
        self, spec: AttackSpec, index: Tensor, standing: Tensor, deadline: float, room: int
    ) -> tuple[list[Cell], int]:
        plan = self.plan
        skipped = [Cell(i, "not_run") for i in index[~standing[index]].tolist()]
        ids = index[standing[index]]
        if not len(ids):
            return skipped, 0
        x, y = loaded(plan.model, plan.images, ids)
        ids = ids.to(x.device)
        rng = Rng(plan.identity["seed"], ids)
        how: dict[str, Any] = {"dtype": plan.dtype, "deadline": deadline, "room": room}
        verdict = judge_attack(plan.model, spec, plan.threat, x, y, rng, **how)
        return skipped + verdict.cells(ids, y), verdict.forwards

    def _each(self, name: str, own: Mapping[int, Tensor], cells: Find) -> None:
        recorded, examples = self.ledger.cells(name), {i for index in own.values() for i in index.tolist()}
        counts = Counter(c.status for c in recorded if c.example in examples)
        known = torch.tensor([c.example for c in recorded], dtype=torch.int64)
        seconds, images, total = 0.0, 0, len(examples)
        for batch, index in own.items():
            rest = index[~torch.isin(index, known)]
            while len(rest):
                began = time.monotonic()
                found, forwards = leading_part(partial(cells, len(rest)), rest)
                took, rest = max(0.0, time.monotonic() - began), rest[len(found) :]
                self.ledger.record(name, batch, found, Cost(took, forwards), more=len(rest) > 0)
                seconds, images = seconds + took, images + len(found)
                counts.update(cell.status for cell in found)
            if self.on_progress is not None:
                count = {"done": counts.total(), "robust": counts["resisted"] + counts["invalid"], "images": images}
                self.on_progress(Progress(attack=name, total=total, seconds=seconds, **count))

    @property
    def _batch_size(self) -> int:
        size: int = self.plan.identity["batch_size"]
        return size


Begin = Callable[..., Ledger]
"""`Ledger.create_or_resume` with all arguments bound except the path and `beside`."""


@contextmanager
def whole(path: Path | None, begin: Begin) -> Iterator[Ledger]:
    """Open the main ledger (None: in memory), merge the partial ledgers beside it, and delete them."""
    with begin(path) as book:
        if path is not None and (parts := sorted(path.parent.glob(_part(path, "*").name))):
            with ExitStack() as stack:
                book.take_over([stack.enter_context(begin(part)) for part in parts])
            for part in parts:
                part.unlink()
        yield book


@contextmanager
def own_part(path: Path | None, begin: Begin, world: World) -> Iterator[Ledger]:
    """Open the partial ledger of this process; reading it also reads the rows of the main one.

    All ranks enter and leave together. Raises UserError if there is no path, and if the ranks have different
    evaluations.
    """
    if path is None:
        raise UserError("several processes need a file for their results; give the ledger a path")
    if world.first:
        with whole(path, begin):
            pass
    world.barrier()
    begin(path).close()
    with begin(_part(path, str(world.rank)), beside=path) as book:
        yield book
    world.barrier()


def _part(path: Path, rank: str) -> Path:
    return path.with_name(f"{path.stem}.rank-{rank}{path.suffix}")


def assign_batches(batches: Sequence[int], done: Iterable[set[int]], world: World) -> list[int]:
    """The batches of this process, in order, given the finished batches of each attack in `done`.

    Batches are sorted by the number of attacks that finished them and dealt out in turn, so that all ranks get about
    the same amount of work.
    """
    finished = [*done]
    order = sorted(batches, key=lambda batch: sum(batch in one for one in finished))
    return sorted(order[world.rank :: world.size])
