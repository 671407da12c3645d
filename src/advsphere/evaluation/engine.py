"""The evaluation itself: every attack on every image, judged, and written down batch by batch."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from advsphere.attacks import Guides
from advsphere.classifier import frozen, low_precision, split
from advsphere.data import Images
from advsphere.distributed import World
from advsphere.errors import UserError
from advsphere.evaluation.checks import device_of, images_of, preflight
from advsphere.evaluation.judge import OutOfTime, exact_float32, judge_attack, predict
from advsphere.evaluation.ledger import CLEAN, Cell, Cost, Ledger
from advsphere.evaluation.masking import PROBES, SAMPLE, sample
from advsphere.evaluation.results import WORST, Evaluation
from advsphere.evaluation.rows import Finding
from advsphere.evaluation.shared import assign_batches, own_part, usual_batch_size, whole
from advsphere.evaluation.specs import AttackSpec, describe
from advsphere.evaluation.suites import Effort, SuiteContext, anytime
from advsphere.evaluation.suites import suite as suite_of
from advsphere.identity import data_checksum, model_checksum
from advsphere.provenance import environment
from advsphere.rng import Rng, permutation
from advsphere.stats import wilson
from advsphere.threat import ThreatModel

# FOLDED progress: How far a long evaluation has come, and a bar that shows it.


@dataclass(frozen=True, kw_only=True)
class Progress:
    """After each batch. attack: what is running. done, total: images of this attack. robust: how many of the done ones
    still are. seconds, images: what this run of the program spent on the attack, and on how many images.
    """

    attack: str
    done: int
    total: int
    robust: int
    seconds: float
    images: int

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        """Accuracy so far with its interval, and the speed."""
        if not self.done:
            return ""
        low, high = wilson(self.robust, self.done)
        accuracy = f"{100 * self.robust / self.done:5.1f} % ({100 * low:.1f} - {100 * high:.1f})"
        return f"{accuracy}  {self.images_per_second:.3g} images/s"


OnProgress = Callable[[Progress], None]
Find = Callable[[Tensor, Tensor, Tensor], tuple[list[Cell], int]]
"""(numbers of the examples, x, y) -> (their cells, forwards)."""

Precision = Literal["auto", "float32", "bfloat16"]

_PRECISIONS: dict[Precision, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}
MOST_GUIDES, MOST_GUIDE_VALUES = 1000, 2**26
"""Images, and numbers in them, among which the guides of the feature attack are drawn: 445 at 224 pixels, 256 MiB."""


def evaluate(
    model: nn.Module,
    images: Images | Tensor,
    labels: Tensor | None = None,
    *,
    threat: ThreatModel,
    suite: str | Sequence[AttackSpec] = "quick",
    seed: int = 0,
    batch_size: int | None = None,
    ledger: Path | None = None,
    effort: Effort = Effort(),
    budget: float | None = None,
    head: str | None = None,
    precision: Precision = "auto",
    on_progress: OnProgress | None = None,
    world: World = World(),
) -> Evaluation:
    """Attack a model on images and say what is left of its accuracy: an upper bound of its robust accuracy.

    model: pixels in [0, 1] -> logits, with its input normalisation inside; it is put into eval mode and given back as
    it was. images: an `advsphere.data` set, or an (N, C, H, W) tensor in [0, 1] with `labels` (N,) int64. suite: a name
    (`SUITES`), or attacks of one's own. seed: of the attacks' random starts. batch_size: the unit of work, and part of
    what makes two runs the same bit for bit; by default 250, fewer of more than 74 pixels a side. ledger: where to
    write every outcome; an evaluation that was interrupted goes on from there; None keeps it in memory. effort: of a
    named suite. budget: seconds that the attacks may take; they try only what those before them left, and what is not
    reached counts as robust, so the result is the tightest upper bound that the time allows; the same call again goes
    on for as long. A few seconds more go into the signs of gradient masking. head: the last linear layer's name, where
    it can't be found. precision: of the search, "auto" being bfloat16 where the machine computes in it; what is found
    always has to fool the model in float32. on_progress: told after each batch of this process. world: the processes
    that share the work, each of which calls this with the same arguments and gets the same result; they take whole
    batches, need a ledger's path that all of them see, and come to the ledger that one alone would. Each has the whole
    budget; seconds are added up.

    Raises UserError for what `preflight` refuses, an unknown suite, and a ledger that holds another evaluation.
    """
    images, device = images_of(images, labels), device_of(model)
    if batch_size is None:
        batch_size = usual_batch_size(images.shape)
    if threat.eps == 0:
        raise UserError("eps is 0, so there is nothing to attack; give a radius, such as 8/255")
    if threat.norm == "linf" and threat.eps > threat.bounds[1] - threat.bounds[0]:
        raise UserError(f"eps is {threat.eps:g}, more than there is between black and white; did you mean eps / 255?")
    if budget is not None:
        effort = replace(effort, cascade=True)
    case, notes = case_of(model, images, threat, effort, head)
    specs = _specs(suite, case)
    with exact_float32():
        checked = preflight(model, images, batch_size=batch_size, attacks=specs) if world.first else ()
        findings = (*world.from_first(checked), *notes)
        dtype, found = _search(model, images, precision)
        findings += found
        identity = {
            "model": {"type": type(model).__name__, "checksum": model_checksum(model), "scale": case.scale},
            "data": {
                "name": images.name,
                "checksum": world.from_first(data_checksum(images, batch_size) if world.first else ""),
                "n": len(images),
                "shape": list(images.shape),
            },
            "threat": describe(threat),
            "suite": {"name": suite, "head": head, **asdict(effort)} if isinstance(suite, str) else {"name": "own"},
            "attacks": {spec.name: spec.settings for spec in specs},
            "seed": seed,
            "batch_size": batch_size,
            "search": str(dtype or torch.float32).removeprefix("torch."),
        }
        begin = partial(
            Ledger.create_or_resume,
            identity=identity,
            labels=images.labels.tolist(),
            environment=environment(device),
        )
        work = partial(_Work, model, images, threat, specs, seed, batch_size, dtype, on_progress, world)
        if world.size > 1:
            with own_part(ledger, begin, world) as book:
                work(book).run(budget)
        result = None
        if world.first:
            with whole(ledger, begin) as book:
                if world.size == 1:
                    work(book).run(budget)
                work(book).probe()
                result = Evaluation.of(book, findings)
        return cast(Evaluation, world.from_first(result))


def case_of(
    model: nn.Module, images: Images, threat: ThreatModel, effort: Effort, head: str | None
) -> tuple[SuiteContext, list[Finding]]:
    """What a suite may know of a model and its images; with a note for a network without a linear head that could be
    told, unless `head` names it, which raises UserError where that is wrong.
    """
    try:
        parts = split(model, head)
    except UserError as error:
        if head is not None:
            raise
        return SuiteContext(threat=threat, effort=effort), [
            Finding("head", "ok", f"attacked at scale 1, since {error}")
        ]
    most = min(MOST_GUIDES, MOST_GUIDE_VALUES // math.prod(images.shape))
    chosen = permutation(len(images), seed=0, epoch=0, purpose="guides")[:most].sort().values
    guides = Guides(*(part.to(device_of(model)) for part in images.batch(chosen)))
    return SuiteContext(threat=threat, scale=parts.scale, head=parts.head, guides=guides, effort=effort), []


@dataclass(frozen=True)
class _Work:
    """What this process does of an evaluation, and the ledger that it writes down what came out in."""

    model: nn.Module
    images: Images
    threat: ThreatModel
    specs: Sequence[AttackSpec]
    seed: int
    batch_size: int
    dtype: torch.dtype | None
    on_progress: OnProgress | None
    world: World
    ledger: Ledger

    def run(self, budget: float | None) -> None:
        """Its batches of every attack, one attack after the other, as far as the budget goes."""
        batches = list(torch.arange(len(self.images)).split(self.batch_size))
        finished = [self.ledger.done(name) for name in (CLEAN, *self.ledger.attacks)]
        own = {batch: batches[batch] for batch in assign_batches(len(batches), finished, self.world)}
        self._clean(own)
        deadline = math.inf if budget is None else time.monotonic() + budget
        with contextlib.suppress(OutOfTime):
            for spec in self.specs:
                self._attack(spec, own, deadline)

    def _clean(self, own: Mapping[int, Tensor]) -> None:
        with frozen(self.model) as exact:

            def cells(index: Tensor, x: Tensor, y: Tensor) -> tuple[list[Cell], int]:
                wrong, classes = predict(exact, x, y)
                rows = zip(index.tolist(), wrong.tolist(), classes.tolist(), strict=True)
                return [Cell(i, "fooled" if w else "resisted", c, 0.0) for i, w, c in rows], len(x)

            self._each(CLEAN, own, cells)

    def _attack(self, spec: AttackSpec, own: Mapping[int, Tensor], deadline: float) -> None:
        standing = torch.tensor([robust == "1" for robust in self.ledger.outcomes(spec.name)])

        def cells(index: Tensor, x: Tensor, y: Tensor) -> tuple[list[Cell], int]:
            skipped = [Cell(i, "not_run") for i in index[~standing[index]].tolist()]
            at = standing[index].to(x.device)
            if not at.any():
                return skipped, 0
            ids, x, y = index.to(x.device)[at], x[at], y[at]
            rng = Rng(self.seed, ids)
            verdict = judge_attack(self.model, spec, self.threat, x, y, rng, dtype=self.dtype, deadline=deadline)
            return skipped + verdict.cells(ids, y), verdict.forwards

        self._each(spec.name, own, cells)

    def probe(self) -> None:
        """Measure what the signs of gradient masking need, once; the attacks' deadline does not cut it short."""
        missing = [name for name in PROBES if name not in self.ledger.probes]
        if not missing:
            return
        index = sample(self.ledger.outcomes(CLEAN), seed=self.seed, most=min(SAMPLE, self.batch_size))
        x, y = (t.to(device_of(self.model)) for t in self.images.batch(index))
        with frozen(self.model) as exact:
            for name in missing:
                self.ledger.record_probe(name, PROBES[name](exact, self.threat, x, y))

    def _each(self, name: str, own: Mapping[int, Tensor], cells: Find) -> None:
        done, device = self.ledger.done(name), device_of(self.model)
        counts = Counter(c.status for c in self.ledger.cells(name) if c.example // self.batch_size in own)
        seconds, images, total = 0.0, 0, sum(map(len, own.values()))
        for batch, index in own.items():
            if batch not in done:
                began = time.perf_counter()
                x, y = (t.to(device) for t in self.images.batch(index))
                found, forwards = cells(index, x, y)
                took = time.perf_counter() - began
                self.ledger.record(name, batch, found, Cost(took, forwards))
                seconds, images = seconds + took, images + len(index)
                counts.update(cell.status for cell in found)
            if self.on_progress is not None:
                self.on_progress(
                    Progress(
                        attack=name,
                        done=counts.total(),
                        total=total,
                        robust=counts["resisted"] + counts["invalid"],
                        seconds=seconds,
                        images=images,
                    )
                )


def _search(model: nn.Module, images: Images, precision: Precision) -> tuple[torch.dtype | None, tuple[Finding, ...]]:
    """What to search in. "auto" falls back to float32 for a model that can't run in bfloat16, such as one that hands
    its activations to NumPy; asked for by name, that is a UserError.
    """
    device = device_of(model)
    dtype = low_precision(device) if precision == "auto" else _PRECISIONS[precision]
    if dtype is None:
        return None, ()
    x = images.batch(torch.arange(1))[0].to(device)
    try:
        with frozen(model, dtype=dtype, fold=True) as view, torch.no_grad():
            usable = bool(view(x).isfinite().all())
        why = "its logits are not finite"
    except (RuntimeError, TypeError, ValueError) as error:
        usable, why = False, str(error)
    if usable:
        return dtype, ()
    if precision != "auto":
        raise UserError(f"the model can't run in {precision} ({why}); search in float32 (--precision float32)")
    return None, (Finding("precision", "ok", f"searched in float32, for the model can't run in bfloat16: {why}"),)


def _specs(suite: str | Sequence[AttackSpec], case: SuiteContext) -> tuple[AttackSpec, ...]:
    if isinstance(suite, str):
        specs = suite_of(suite, case)
    elif case.effort != Effort(cascade=case.effort.cascade):
        raise UserError("effort is for named suites; give each attack of your own its AttackSpec(..., restarts=n)")
    else:
        specs = anytime(suite, case.threat) if case.effort.cascade else tuple(suite)
    names = [spec.name for spec in specs]
    taken = [n for n in {*names} if names.count(n) > 1 or n in (CLEAN, WORST)]
    if taken:
        raise UserError(f"the name {taken[0]!r} is used twice or reserved; give each attack a name of its own")
    for i, spec in enumerate(specs):
        bound = spec.attack.keywords.get("threat", case.threat) if isinstance(spec.attack, partial) else case.threat
        if bound != case.threat:  # a smaller ball would flatter the model without a sign
            raise UserError(
                f"{spec.name} is bound to {bound}, but this evaluation is of {case.threat}; bind the same one"
            )
        if unknown := [name for name in spec.after if name not in names[:i]]:
            raise UserError(f"{spec.name} comes after {unknown[0]!r}, which is not among the attacks before it")
    return specs
