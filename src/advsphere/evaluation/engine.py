"""The evaluation itself: every attack on every image, judged, and written down batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from advsphere.classifier import frozen, split
from advsphere.classifier import low_precision as native_low_precision
from advsphere.data import Images
from advsphere.draws import Draws
from advsphere.errors import UserError
from advsphere.evaluation.cells import Cell, Cost
from advsphere.evaluation.checksums import data_checksum, model_checksum
from advsphere.evaluation.findings import Finding
from advsphere.evaluation.judge import exact_float32, predict, strike
from advsphere.evaluation.ledger import CLEAN, Ledger
from advsphere.evaluation.preflight import device_of, images_of, preflight
from advsphere.evaluation.progress import Progress
from advsphere.evaluation.results import WORST, Evaluation
from advsphere.evaluation.specs import AttackSpec, describe
from advsphere.evaluation.suites import suite as suite_of
from advsphere.provenance import environment
from advsphere.threat import ThreatModel

OnProgress = Callable[[Progress], None]


def evaluate(
    model: nn.Module,
    images: Images | Tensor,
    labels: Tensor | None = None,
    *,
    threat: ThreatModel,
    suite: str | Sequence[AttackSpec] = "quick",
    seed: int = 0,
    batch_size: int = 250,
    ledger: Path | None = None,
    restarts: int = 1,
    head: str | None = None,
    low_precision: bool = False,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Attack a model on images and say what is left of its accuracy: an upper bound of its robust accuracy.

    model: pixels in [0, 1] -> logits, with its input normalisation inside; it is put into eval mode and given back as
    it was. images: an `advsphere.data` set, or an (N, C, H, W) tensor in [0, 1] with `labels` (N,) int64. suite: a name
    (`SUITES`), or attacks of one's own. seed: of the attacks' random starts. batch_size: the unit of work, and part of
    what makes two runs the same bit for bit. ledger: where to write every outcome; an evaluation that was interrupted
    goes on from there; None keeps it in memory. restarts: of the attacks with a random start, in a named suite. head:
    the last linear layer's name, where its scale s can't be found. low_precision: search in bfloat16 where the
    machine computes in it; what is found always has to fool the model in float32.

    Raises UserError for what `preflight` refuses, an unknown suite, and a ledger that holds another evaluation.
    """
    images, device = images_of(images, labels), device_of(model)
    if threat.eps > threat.bounds[1] - threat.bounds[0] and threat.norm == "linf":
        raise UserError(f"eps is {threat.eps:g}, more than there is between black and white; did you mean eps / 255?")
    scale, notes = _scale(model, head)
    specs = _specs(suite, threat, scale, restarts)
    dtype = native_low_precision(device) if low_precision else None
    if low_precision and dtype is None:
        notes.append(Finding("precision", "noted", f"this {device.type} has no bfloat16, so the search ran in float32"))
    with exact_float32():
        findings = (*preflight(model, images, batch_size=batch_size, attacks=specs), *notes)
        identity = {
            "model": {"type": type(model).__name__, "checksum": model_checksum(model), "scale": scale},
            "data": {
                "name": images.name,
                "checksum": data_checksum(images, batch_size),
                "n": len(images),
                "shape": list(images.shape),
            },
            "threat": describe(threat),
            "suite": suite if isinstance(suite, str) else "own",
            "attacks": {spec.name: spec.settings for spec in specs},
            "restarts": restarts,
            "seed": seed,
            "batch_size": batch_size,
            "search": str(dtype or torch.float32).removeprefix("torch."),
        }
        with Ledger.create_or_resume(
            ledger, identity=identity, labels=images.labels.tolist(), environment=environment(device)
        ) as book:
            work = _Work(model, images, threat, book, seed, batch_size, dtype, on_progress)
            work.clean()
            for spec in specs:
                work.attack(spec)
            return Evaluation.of(book, findings)


@dataclass(frozen=True)
class _Work:
    """What all attacks of an evaluation share."""

    model: nn.Module
    images: Images
    threat: ThreatModel
    ledger: Ledger
    seed: int
    batch_size: int
    dtype: torch.dtype | None
    on_progress: OnProgress | None

    def clean(self) -> None:
        with frozen(self.model) as exact:

            def cells(index: Tensor, x: Tensor, y: Tensor) -> tuple[list[Cell], int]:
                wrong, classes = predict(exact, x, y)
                rows = zip(index.tolist(), wrong.tolist(), classes.tolist(), strict=True)
                return [Cell(i, "fooled" if w else "resisted", c, 0.0) for i, w, c in rows], len(x)

            self._run(CLEAN, cells)

    def attack(self, spec: AttackSpec) -> None:
        wrong = torch.tensor([cell.status == "fooled" for cell in self.ledger.cells(CLEAN)])

        def cells(index: Tensor, x: Tensor, y: Tensor) -> tuple[list[Cell], int]:
            skipped = [Cell(i, "not_run") for i in index[wrong[index]].tolist()]
            at = ~wrong[index].to(x.device)
            if not at.any():
                return skipped, 0
            ids = index.to(x.device)[at]
            verdict = strike(self.model, spec, self.threat, x[at], y[at], Draws(self.seed, ids), dtype=self.dtype)
            return skipped + verdict.cells(ids), verdict.forwards

        self._run(spec.name, cells)

    def _run(self, name: str, cells: Callable[[Tensor, Tensor, Tensor], tuple[list[Cell], int]]) -> None:
        done, device = self.ledger.done(name), device_of(self.model)
        seconds, images = 0.0, 0
        for batch, index in enumerate(torch.arange(len(self.images)).split(self.batch_size)):
            if batch not in done:
                began = time.perf_counter()
                x, y = (t.to(device) for t in self.images.batch(index))
                found, forwards = cells(index, x, y)
                took = time.perf_counter() - began
                self.ledger.record(name, batch, found, Cost(took, forwards))
                seconds, images = seconds + took, images + len(index)
            if self.on_progress is not None:
                counts = self.ledger.counts(name)
                self.on_progress(
                    Progress(
                        attack=name,
                        done=sum(counts.values()),
                        total=len(self.images),
                        robust=counts.get("resisted", 0) + counts.get("invalid", 0),
                        seconds=seconds,
                        images=images,
                    )
                )


def _specs(
    suite: str | Sequence[AttackSpec], threat: ThreatModel, scale: float, restarts: int
) -> tuple[AttackSpec, ...]:
    if isinstance(suite, str):
        specs = suite_of(suite, threat, scale=scale, restarts=restarts)
    elif restarts != 1:
        raise UserError("restarts is for named suites; give each attack of your own its AttackSpec(..., restarts=n)")
    else:
        specs = tuple(suite)
    names = [spec.name for spec in specs]
    taken = [n for n in {*names} if names.count(n) > 1 or n in (CLEAN, WORST)]
    if taken:
        raise UserError(f"the name {taken[0]!r} is used twice or reserved; give each attack a name of its own")
    for spec in specs:
        bound = spec.attack.keywords.get("threat", threat) if isinstance(spec.attack, partial) else threat
        if bound != threat:  # a smaller ball would flatter the model without a sign
            raise UserError(f"{spec.name} is bound to {bound}, but this evaluation is of {threat}; bind the same one")
    return specs


def _scale(model: nn.Module, head: str | None) -> tuple[float, list[Finding]]:
    """The head's s, and 1.0 with a note for a network without a linear head that could be told."""
    try:
        return split(model, head).scale, []
    except UserError as error:
        if head is not None:
            raise
        return 1.0, [Finding("head", "ok", f"attacked at scale 1, since {error}")]
