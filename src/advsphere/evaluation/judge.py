"""Attack, then judge what came back: an attack's own claim of success counts for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advsphere.classifier import Classifier, fooled, frozen
from advsphere.draws import Draws
from advsphere.errors import UserError
from advsphere.evaluation.cells import Cell
from advsphere.evaluation.specs import AttackSpec
from advsphere.threat import ThreatModel


@dataclass(frozen=True)
class Verdict:
    """What the model in float32 says of an attack's results; x_adv: (B, C, H, W) float32, the others (B,).

    inside: it keeps to ball and box. fooled: inside and misclassified. prediction: the class, the label where it
    resisted, -1 for NaN logits. distance: from the clean image. forwards: images that the search sent through the
    model.
    """

    x_adv: Tensor
    inside: Tensor
    fooled: Tensor
    prediction: Tensor
    distance: Tensor
    forwards: int = 0

    def cells(self, examples: Tensor) -> list[Cell]:
        """The ledger's cells; examples: (B,) their numbers."""
        rows = zip(
            examples.tolist(),
            self.inside.tolist(),
            self.fooled.tolist(),
            self.prediction.tolist(),
            self.distance.tolist(),
            self.x_adv.cpu(),
            strict=True,
        )
        return [
            Cell(i, "invalid", None, d)
            if not inside
            else Cell(i, "fooled", p, d, x)
            if hit
            else Cell(i, "resisted", p, d)
            for i, inside, hit, p, d, x in rows
        ]


def strike(
    model: nn.Module,
    spec: AttackSpec,
    threat: ThreatModel,
    x: Tensor,
    y: Tensor,
    draws: Draws,
    *,
    dtype: torch.dtype | None = None,
) -> Verdict:
    """Run one attack on a batch and judge it.

    dtype: search in this precision, batch norms folded. Where that search believes itself successful and float32
    disagrees, it stopped too early, so those examples are attacked again in float32.
    """
    with frozen(model, dtype=dtype, fold=dtype is not None) as view:
        counted = _Counted(view)
        x_adv = _returned(spec, counted, x, y, draws)
        claimed = predict(view, x_adv, y)[0] if dtype is not None else torch.zeros_like(y, dtype=torch.bool)
    with frozen(model) as exact:
        verdict = judge(exact, threat, x, x_adv, y)
        again = claimed & ~verdict.fooled
        if again.any():
            counted = _Counted(exact, counted.images)
            x_adv[again] = _returned(spec, counted, x[again], y[again], draws.take(again))
            verdict = judge(exact, threat, x, x_adv, y)
    return Verdict(
        verdict.x_adv, verdict.inside, verdict.fooled, verdict.prediction, verdict.distance, forwards=counted.images
    )


def judge(exact: Classifier, threat: ThreatModel, x: Tensor, x_adv: Tensor, y: Tensor) -> Verdict:
    """Check the ball first, then predict again. exact: the model in float32; x, x_adv: (B, C, H, W); y: (B,).

    An example close to the boundary may fool in one batch and not in another, by rounding. So the fooling ones are
    predicted until all of a batch of them fool: that batch is what the ledger holds, and what anyone can predict again.
    """
    x_adv = x_adv.detach().float()
    inside = threat.contains(x_adv, x)
    hit, prediction = inside.clone(), y.clone()
    while hit.any():
        index = hit.nonzero().squeeze(1)
        still, classes = predict(exact, x_adv[index], y[index])
        hit[index] = still
        if still.all():
            prediction[index] = classes
            break
    return Verdict(x_adv, inside, hit, prediction, threat.distance(x_adv, x))


@torch.no_grad()
def predict(classify: Classifier, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(misclassified (B,) bool, class (B,) int64 with -1 for NaN logits)."""
    logits = classify(x)
    return fooled(logits, y), logits.argmax(1).masked_fill(logits.isnan().any(1), -1)


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 and no choice of kernels by their speed, on a GPU: float32 means float32, and the same bits each time."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class _Counted:
    """A classifier that counts the images it is given."""

    def __init__(self, classify: Classifier, images: int = 0) -> None:
        self.classify, self.images = classify, images

    def __call__(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.classify(x)


def _returned(spec: AttackSpec, classify: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    x_adv = spec.run(classify, x, y, draws=draws)
    if x_adv.shape != x.shape:
        raise UserError(
            f"{spec.name} returned {tuple(x_adv.shape)} for images {tuple(x.shape)}; "
            "an attack returns one image for each that it is given"
        )
    return x_adv.detach()
