"""Training objectives: how examples are crafted and what is minimised. Each is a frozen dataclass of its
hyperparameters, and so its own config.

None knows of the hypersphere: the scale is in the model's logits, the angular margin in the criterion that is passed
in. Crafting runs every step on every example (never `until_fooled`): stopping early would be another method, and a
weaker one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from advsphere.attacks import Start, pgd
from advsphere.classifier import Classifier, Mode, frozen
from advsphere.errors import UserError
from advsphere.losses import Loss, kl, log_odds, widen
from advsphere.rng import Rng
from advsphere.threat import ThreatModel

Criterion = Loss
"""(B, K) logits and (B,) labels -> (B,) losses to be minimised: `losses.cross_entropy`, or an `AngularMargin`."""


class Losses(NamedTuple):
    """Means over the batch. total is what is differentiated; clean and robust are its parts before weighting, None
    where not computed.
    """

    total: Tensor
    clean: Tensor | None = None
    robust: Tensor | None = None


@dataclass(frozen=True)
class Crafting:
    """What crafting needs besides the batch.

    rng: its randomness. carry: what `after_backward` returned last. dtype, fold: how the model is seen, as in
    `classifier.frozen`. shift: (logits, y) -> logits, e.g. `AngularMargin.shift`.
    """

    rng: Rng
    carry: Tensor | None = None
    dtype: torch.dtype | None = None
    fold: bool = False
    shift: Callable[[Tensor, Tensor], Tensor] | None = None

    @contextmanager
    def view(self, model: nn.Module, y: Tensor, mode: Mode) -> Iterator[Classifier]:
        """The frozen model, its logits shifted if asked; for the batch with labels y, in its order."""
        with frozen(model, dtype=self.dtype, fold=self.fold, mode=mode) as classify:
            shift = self.shift
            yield classify if shift is None else lambda x: shift(classify(x), y)


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """What the training loop asks of a method. For each batch, `replays` times: craft, loss, backward, after_backward,
    optimiser step.
    """

    @property
    def replays(self) -> int:
        """Optimiser steps for each batch."""
        return 1

    @property
    def chosen_by(self) -> str:
        """The validation metric that chooses the best checkpoint."""
        return "robust"

    @abstractmethod
    def craft(self, model: nn.Module, x: Tensor, y: Tensor, context: Crafting) -> Tensor:
        """The images to train on: (B, C, H, W) in bounds, (B,) labels -> (B, C, H, W)."""

    @abstractmethod
    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        """What is minimised, on a model in train mode."""

    def after_backward(self, x: Tensor, x_adv: Tensor, carry: Tensor | None) -> Tensor | None:
        """State for the next craft, indexed by position in the batch; most methods have none."""
        return None


@dataclass(frozen=True, kw_only=True)
class Standard(Objective):
    """Training on clean images, the reference without defence."""

    title: ClassVar[str] = "standard training"

    @property
    def chosen_by(self) -> str:
        """Clean accuracy: what is left under attack is next to nothing, and says nothing."""
        return "clean"

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, context: Crafting) -> Tensor:
        return x

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        clean = criterion(model(x), y).mean()
        return Losses(clean, clean=clean)


@dataclass(frozen=True, kw_only=True)
class PGDAT(Objective):
    """PGD adversarial training (Madry et al. 2018, arXiv 1706.06083): minimise the criterion on PGD examples.

    Defaults are those of the paper's official code.
    """

    title: ClassVar[str] = "PGD-AT"

    threat: ThreatModel = ThreatModel(norm="linf", eps=0.031)
    """What is crafted against."""
    steps: int = 10
    step_size: float = 0.007
    """In pixel units."""
    start: Literal["uniform", "normal"] = "normal"
    """uniform in the ball, or normal: x + 0.001 N(0, 1), as in TRADES' and the paper's code."""
    mode: Mode = "eval"
    """The network's mode while crafting; in train mode crafting also moves the running statistics of batch norm."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.step_size <= 0:
            raise UserError(f"crafting takes {self.steps} steps of {self.step_size}; both must be positive")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, context: Crafting) -> Tensor:
        with context.view(model, y, self.mode) as classify:
            return self._pgd(classify, x, y, context.rng)

    def _pgd(self, classify: Classifier, x: Tensor, target: Tensor, rng: Rng, loss: Loss = log_odds) -> Tensor:
        start: Start = (
            "uniform" if self.start == "uniform" else x + 0.001 * rng.normal(x.shape[1:], "start").to(x.dtype)
        )
        return pgd(
            classify,
            x,
            target,
            threat=self.threat,
            steps=self.steps,
            step_size=self.step_size,
            start=start,
            rng=rng,
            loss=loss,
        )

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        robust = criterion(model(x_adv), y).mean()
        return Losses(robust, robust=robust)


@dataclass(frozen=True, kw_only=True)
class FastAT(PGDAT):
    """Fast adversarial training (Wong et al. 2020, arXiv 2001.03994): PGD-AT with one large step from a uniform start,
    in train mode.

    Defaults are those of its official code: eps 8/255, step 10/255.
    """

    threat: ThreatModel = ThreatModel(norm="linf", eps=8 / 255)
    steps: int = 1
    step_size: float = 10 / 255
    start: Literal["uniform", "normal"] = "uniform"
    mode: Mode = "train"


@dataclass(frozen=True, kw_only=True)
class ALP(PGDAT):
    """Adversarial logit pairing (Kannan et al. 2018, arXiv 1803.06373): half clean and half robust criterion, and
    beta times the mean square of the logits' difference.

    The paper's code with HE pairs bare cosines, so its beta is ours times scale^2 (`docs/fidelity.md`).
    """

    beta: float = 0.5
    """Weight of the pairing of ordinary logits."""

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        logits, logits_adv = model(x), model(x_adv)
        clean, robust = criterion(logits, y).mean(), criterion(logits_adv, y).mean()
        pairing = (widen(logits) - widen(logits_adv)).square().mean()
        return Losses((clean + robust) / 2 + self.beta * pairing, clean=clean, robust=robust)


@dataclass(frozen=True, kw_only=True)
class TRADES(PGDAT):
    """TRADES (Zhang et al. 2019, arXiv 1901.08573, eq. 5): the criterion on clean images, beta * KL(clean ||
    adversarial), crafted with that KL.

    The margin of a criterion acts on the clean term alone, as in the paper's code. Unlike TRADES' code, the clean
    probabilities are computed once for a batch and not in every step; in eval mode they are the same.
    """

    beta: float = 6.0
    """Weight of the KL term."""

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, context: Crafting) -> Tensor:
        with context.view(model, y, self.mode) as classify:
            with torch.no_grad():
                clean = classify(x).softmax(1)
            return self._pgd(classify, x, clean, context.rng, loss=kl)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        logits = model(x)
        clean = criterion(logits, y).mean()
        robust = kl(model(x_adv), widen(logits).softmax(1)).mean()
        return Losses(clean + self.beta * robust, clean=clean, robust=robust)


@dataclass(frozen=True, kw_only=True)
class FreeAT(Objective):
    """Free adversarial training (Shafahi et al. 2019, arXiv 1904.12843, Algorithm 1): one backward serves the weights
    and the perturbation.

    The perturbation is carried from batch to batch by position. Unlike in the official codes, a carried perturbation is
    put into the box of its new image at once.
    """

    threat: ThreatModel = ThreatModel(norm="linf", eps=8 / 255)
    step_size: float = 8 / 255
    """Of the perturbation's ascent, in pixel units; eps in both official codes."""
    repeats: int = 8
    """How often each batch is repeated, the paper's m."""

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.step_size <= 0:
            raise UserError(
                f"free training takes {self.repeats} repeats with steps of {self.step_size}; both must be positive"
            )

    @property
    def replays(self) -> int:
        return self.repeats

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, context: Crafting) -> Tensor:
        delta = torch.zeros_like(x)
        if context.carry is not None:
            known = min(len(x), len(context.carry))
            delta[:known] = context.carry[:known]
        return self.threat.project(x + delta, x).requires_grad_(True)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        robust = criterion(model(x_adv), y).mean()
        return Losses(robust, robust=robust)

    def after_backward(self, x: Tensor, x_adv: Tensor, carry: Tensor | None) -> Tensor | None:
        assert x_adv.grad is not None, "the loss must be differentiated with respect to the crafted images"
        start = x_adv.detach()
        delta = self.threat.project(start + self.step_size * self.threat.ascent(x_adv.grad, start), x) - x
        return delta if carry is None or len(carry) <= len(x) else torch.cat([delta, carry[len(x) :]])
