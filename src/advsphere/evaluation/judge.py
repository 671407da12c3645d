"""Run an attack and judge its results independently. An attack's own claim of success does not count."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from advsphere.attacks.combine import prepared
from advsphere.classifier import Classifier, fooled, frozen
from advsphere.errors import UserError
from advsphere.evaluation.ledger import Cell
from advsphere.evaluation.specs import AttackSpec
from advsphere.losses import margin
from advsphere.machine import repeatable_kernels
from advsphere.rng import Rng
from advsphere.threat import ThreatModel

ERRORS = 4
"""A result is close to the boundary if its margin is at most this many errors of its logits in low precision."""


@dataclass(frozen=True)
class Verdict:
    """The judgement of an attack's results by the model in float32.

    `x_adv` is (B, C, H, W) float32, the others are (B,). `valid` images are inside the pixel range, and inside the ball
    unless the attack searches for the smallest norm. `fooled` ones are inside both and misclassified. `prediction` is
    -1 for NaN logits, and the label if the attack found nothing. `distance` is the norm of the perturbation, `forwards`
    counts the images that the search sent through the model.
    """

    x_adv: Tensor
    valid: Tensor
    fooled: Tensor
    prediction: Tensor
    distance: Tensor
    forwards: int = 0

    def cells(self, examples: Tensor, y: Tensor) -> list[Cell]:
        """The ledger's cells of these examples, given their numbers (B,) and labels y (B,)."""
        whole = torch.stack([examples, y, self.valid.long(), self.fooled.long(), self.prediction], 1).tolist()
        return [
            Cell(i, "invalid", None, d)
            if not valid
            else Cell(i, "fooled" if hit else "resisted", p, d, x if p != label else None)
            for (i, label, valid, hit, p), d, x in zip(whole, self.distance.tolist(), self.x_adv.cpu(), strict=True)
        ]


class OutOfTime(Exception):
    """The search has reached its deadline. The examples that it was attacking are lost."""


def judge_attack(
    model: nn.Module,
    spec: AttackSpec,
    threat: ThreatModel,
    x: Tensor,
    y: Tensor,
    rng: Rng,
    *,
    dtype: torch.dtype | None = None,
    deadline: float = math.inf,
    room: int = 0,
) -> Verdict:
    """Run one attack on a batch and judge it.

    The search runs in `dtype`, with batch norms folded, but minimal-norm attacks always run in float32. Examples are
    attacked again in float32 if the search stopped at a success that float32 denies, or if it ended so close to the
    boundary that the errors of `dtype` may hide a success. A forward after `deadline`, in `time.monotonic()` seconds,
    raises OutOfTime. An attack may send `room` images through the model at once, and always as many as it gets.
    """
    low = dtype is not None and not spec.minimal  # at the boundary itself, rounding decides too much
    with frozen(model, dtype=dtype if low else None, fold=low) as view:
        counted = _Counted(view, deadline)
        x_adv = _returned(spec, counted, x, y, rng, room)
        with torch.no_grad():
            seen = view(x_adv) if low else None
    with frozen(model) as exact:
        verdict, logits = _judged(exact, threat, x, x_adv, y, minimal=spec.minimal)
        if seen is not None:
            doubtful = fooled(seen, y) | _close(logits, y, seen)
            again = ((verdict.prediction == y) & doubtful).nonzero().squeeze(1)
            if len(again) > 0:
                counted = _Counted(exact, deadline, counted.images)
                x_adv[again] = _returned(spec, counted, x[again], y[again], rng.take(again), room)
                verdict = judge(exact, threat, x, x_adv, y)
    return replace(verdict, forwards=counted.images)


def judge(exact: Classifier, threat: ThreatModel, x: Tensor, x_adv: Tensor, y: Tensor) -> Verdict:
    """Check that images are inside the ball, and predict them again with the model in float32, `exact`.

    Rounding may change the prediction of an image close to the boundary from one batch to another. So the misclassified
    images are predicted again as a batch until all of that batch are misclassified. The ledger stores that batch, so
    the result can be reproduced.
    """
    return _judged(exact, threat, x, x_adv, y)[0]


@torch.no_grad()
def _judged(
    exact: Classifier, threat: ThreatModel, x: Tensor, x_adv: Tensor, y: Tensor, *, minimal: bool = False
) -> tuple[Verdict, Tensor]:
    """The verdict of `judge`, and the logits of all images as one batch. With `minimal`, the predictions of images
    outside the ball are kept too, though they count as resisted.
    """
    x_adv = x_adv.detach().float()
    inside = threat.contains(x_adv, x)
    valid = threat.within_bounds(x_adv) if minimal else inside
    logits = exact(x_adv)
    classes, prediction = classes_of(logits), y.clone()
    wrong = (valid & (classes != y)).nonzero().squeeze(1)
    while 0 < len(wrong) < len(classes):
        classes = predict(exact, x_adv[wrong])
        wrong = wrong[classes != y[wrong]]
    if len(wrong) > 0:
        prediction[wrong] = classes
    return Verdict(x_adv, valid, inside & (prediction != y), prediction, threat.distance(x_adv, x)), logits


def _close(logits: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """(B,) bool: whether the margin is zero up to a few errors of the logits that low precision has `seen`.

    The size of the logits says little about their errors: those of a hyperspherical head are large and accurate.
    """
    return margin(logits, y).abs() <= ERRORS * (seen.float() - logits).abs().amax(1)


@torch.no_grad()
def predict(classify: Classifier, x: Tensor) -> Tensor:
    """The class of each image, (B,) int64; -1 for NaN logits."""
    return classes_of(classify(x))


def classes_of(logits: Tensor) -> Tensor:
    """The class of each row of logits, (B,) int64; -1 for NaN, so it is no label."""
    return logits.argmax(1).masked_fill(logits.isnan().any(1), -1)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute in true float32, without TF32, and with kernels that give the same bits each time."""
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    places: list[Any] = []
    precision: str | None = None
    try:
        precision, _ = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:  # the user has set fp32_precision, and PyTorch refuses to mix the two interfaces
        places = [backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv]
    before = [(place, place.fp32_precision) for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        if precision is None:
            with repeatable_kernels():
                yield
            return
        torch.set_float32_matmul_precision("highest")
        with cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        for place, value in before:
            place.fp32_precision = value
        if precision is not None:
            torch.set_float32_matmul_precision(precision)


class _Counted:
    """A classifier that counts its input images and raises OutOfTime after the deadline."""

    def __init__(self, classify: Classifier, deadline: float, images: int = 0) -> None:
        self.classify, self.deadline, self.images = classify, deadline, images

    def __call__(self, x: Tensor) -> Tensor:
        if time.monotonic() > self.deadline:
            raise OutOfTime
        self.images += len(x)
        return self.classify(x)


def _returned(spec: AttackSpec, classify: Classifier, x: Tensor, y: Tensor, rng: Rng, room: int) -> Tensor:
    ready = prepared(classify, x, target=y)
    # Copies, because results are judged against the images as they were, and an attack may change or return its own.
    x_adv = spec.run(replace(ready, room=max(room, len(x))), x.clone(), y.clone(), rng=rng)
    if x_adv.shape != x.shape:
        raise UserError(
            f"{spec.name} returned {tuple(x_adv.shape)} for images {tuple(x.shape)}; "
            "an attack must return one image for each input image"
        )
    return x_adv.detach()
