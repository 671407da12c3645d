"""Training objectives: how training examples are crafted, and which loss is minimised.

Each objective is a frozen dataclass of its hyperparameters, so it is its own config. None knows about hypersphere
embedding: the scale is in the model's logits, and the angular margin is in the criterion. Crafting runs every step on
every example. Stopping at the first success would be another, weaker method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from advsphere.attacks.gradient import Start, starting_point
from advsphere.classifier import Classifier, Mode, frozen, input_gradient
from advsphere.errors import UserError
from advsphere.losses import Loss, cross_entropy, is_soft, kl, log_odds, widen
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from advsphere.typed import require_types

__all__ = [
    "ALP",
    "NFGSM",
    "PGDAT",
    "TRADES",
    "Crafting",
    "Criterion",
    "FastAT",
    "FreeAT",
    "Losses",
    "Objective",
    "Standard",
]

Criterion = Loss
"""(logits (B, K), labels (B,) or soft labels (B, K)) -> losses (B,) to minimise.

`losses.cross_entropy`, or an `AngularMargin`.
"""


class Losses(NamedTuple):
    """Means of the losses over a batch.

    Attributes:
        total: The loss to differentiate.
        clean: Its part on clean images before weighting, None if not computed.
        robust: Its part on crafted images before weighting, None if not computed.
    """

    total: Tensor
    clean: Tensor | None = None
    robust: Tensor | None = None


@dataclass(frozen=True)
class Crafting:
    """The inputs of crafting besides the batch.

    Attributes:
        rng: Random numbers for the examples of the batch.
        carry: The last result of `after_backward`.
        dtype: Precision of the forward pass, as in `classifier.frozen`.
        fold: Whether to fold batch norms, as in `classifier.frozen`.
        shift: (logits, y) -> logits to craft on, such as `AngularMargin.shift`.
        check: Whether to verify the folding, as in `classifier.frozen`.
    """

    rng: Rng
    carry: Tensor | None = None
    dtype: torch.dtype | None = None
    fold: bool = False
    shift: Callable[[Tensor, Tensor], Tensor] | None = None
    check: bool = True

    @contextmanager
    def view(self, model: nn.Module, y: Tensor, mode: Mode) -> Iterator[Classifier]:
        """Prepare the model for crafting: frozen, with shifted logits if there is a shift.

        In float16 the gradients at the images are 128 times as long, because small ones would be rounded to zero.

        Args:
            model: The model.
            y: Labels (B,) of the batch, or soft labels (B, K). The classifier takes the whole batch, in its order.
            mode: The mode of the model while crafting.

        Yields:
            The classifier.
        """
        with frozen(model, dtype=self.dtype, fold=self.fold, mode=mode, check=self.check) as classify:

            def view(x: Tensor) -> Tensor:
                logits = classify(x) if self.shift is None else self.shift(classify(x), y)
                if self.dtype is torch.float16 and logits.requires_grad:
                    logits.register_hook(lambda grad: grad * 128)
                return logits

            yield view


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A training method. For each batch the loop runs, `replays` times: craft, loss, backward, after_backward and an
    optimiser step.

    A subclass may declare its name in tables and reports as a class variable `title`.
    """

    def __post_init__(self) -> None:
        require_types(self)

    @property
    def replays(self) -> int:
        """Number of optimiser steps for each batch."""
        return 1

    @property
    def chosen_by(self) -> str:
        """The validation metric that chooses the best checkpoint, "robust" or "clean"."""
        return "robust"

    @abstractmethod
    def craft(self, model: nn.Module, x: Tensor, y: Tensor, context: Crafting) -> Tensor:
        """Craft the images to train on.

        Args:
            model: The model. Restore its state afterwards, as `context.view` does.
            x: Clean images (B, C, H, W), within the bounds.
            y: Labels (B,), or soft labels (B, K).
            context: Random numbers and other inputs of crafting.

        Returns:
            The images, same shape as `x`.
        """

    @abstractmethod
    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        """Compute the loss to minimise.

        Args:
            model: The model, in train mode.
            x: Clean images (B, C, H, W).
            x_adv: The images that `craft` returned.
            y: Labels (B,), or soft labels (B, K).
            criterion: Loss of each example.

        Returns:
            Means over the batch.
        """

    def after_backward(self, x: Tensor, x_adv: Tensor, carry: Tensor | None) -> Tensor | None:
        """Compute the state for the next `craft`, after gradients are known. Most methods have none.

        Args:
            x: Clean images (B, C, H, W).
            x_adv: The images that `craft` returned, with their gradient.
            carry: The state so far.

        Returns:
            The state, indexed by position in the batch.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Standard(Objective):
    """Training on clean images, the undefended reference."""

    title: ClassVar[str] = "standard training"

    @property
    def chosen_by(self) -> str:
        """Clean accuracy, because accuracy under attack is close to zero."""
        return "clean"

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, context: Crafting) -> Tensor:
        return x

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        clean = criterion(model(x), y).mean()
        return Losses(clean, clean=clean)


@dataclass(frozen=True, kw_only=True)
class PGDAT(Objective):
    """PGD adversarial training: minimise the criterion on PGD examples.

    Source: Madry et al. 2018 (arXiv 1706.06083). The defaults are those of the official code of hypersphere embedding.

    Attributes:
        threat: The threat model to craft against.
        steps: Steps of PGD, at least 1.
        step_size: Length of a step in pixel units, above 0.
        start: "uniform" in the ball, or "normal": x + 0.001 N(0, 1), as in the code of TRADES and of the paper.
        mode: The network's mode while crafting. In train mode crafting also updates the running statistics of batch
            norm.
    """

    title: ClassVar[str] = "PGD-AT"

    threat: ThreatModel = ThreatModel(norm="linf", eps=0.031)
    steps: int = 10
    step_size: float = 0.007
    start: Literal["uniform", "normal"] = "normal"
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.step_size <= 0:
            raise UserError(f"crafting takes {self.steps} steps of {self.step_size}; both must be positive")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, context: Crafting) -> Tensor:
        with context.view(model, y, self.mode) as classify:
            return self._pgd(classify, x, y, context.rng, _for(y))

    def _pgd(self, classify: Classifier, x: Tensor, target: Tensor, rng: Rng, loss: Loss) -> Tensor:
        start: Start = "uniform"
        if self.start == "normal":
            start = x + 0.001 * rng.normal(x.shape[1:], "start").to(x.dtype)
        # As `attacks.pgd`, without its look at the values of the images, for which a GPU would have to stop.
        x_adv = starting_point(x, self.threat, start, rng)
        for _ in range(self.steps):
            _, _, grad = input_gradient(classify, x_adv, target, loss)
            x_adv = self.threat.project(x_adv + self.step_size * self.threat.ascent(grad, x_adv), x)
        return x_adv

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        robust = criterion(model(x_adv), y).mean()
        return Losses(robust, robust=robust)


@dataclass(frozen=True, kw_only=True)
class FastAT(PGDAT):
    """Fast adversarial training: PGD-AT with one large step from a uniform start, in train mode.

    Source: Wong et al. 2020 (arXiv 2001.03994). The defaults are those of its official code.

    Attributes:
        threat: As in `PGDAT`.
        steps: As in `PGDAT`.
        step_size: As in `PGDAT`.
        start: As in `PGDAT`.
        mode: As in `PGDAT`.
    """

    threat: ThreatModel = ThreatModel(norm="linf", eps=8 / 255)
    steps: int = 1
    step_size: float = 10 / 255
    start: Literal["uniform", "normal"] = "uniform"
    mode: Mode = "train"


@dataclass(frozen=True, kw_only=True)
class NFGSM(Objective):
    """N-FGSM: training on one step of FGSM from an image with strong noise, which the ball does not clip.

    Source: de Jorge et al. 2022 (arXiv 2202.01181, Algorithm 1). With the noise, training with one step does not
    overfit to that step. Crafted images are up to `noise * eps` and a step away from the clean ones, within the bounds.

    Attributes:
        threat: The threat model to train for.
        noise: Radius of the uniform noise as a multiple of eps, above 0; the paper's k.
        step_size: Length of the step in pixel units, above 0; eps by default, as in the paper.
        mode: The network's mode while crafting, as in `PGDAT`.
    """

    title: ClassVar[str] = "N-FGSM"

    threat: ThreatModel = ThreatModel(norm="linf", eps=8 / 255)
    noise: float = 2.0
    step_size: float | None = None
    mode: Mode = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise <= 0 or (self.step_size is not None and self.step_size <= 0):
            raise UserError(
                f"N-FGSM takes noise of {self.noise} eps and steps of {self.step_size}; both must be positive"
            )

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, context: Crafting) -> Tensor:
        noisy = replace(self.threat, eps=self.noise * self.threat.eps).sample(x, context.rng)
        with context.view(model, y, self.mode) as classify:
            _, _, grad = input_gradient(classify, noisy, y, _for(y))
        size = self.threat.eps if self.step_size is None else self.step_size
        return (noisy + size * self.threat.ascent(grad, noisy)).clamp(*self.threat.bounds)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        robust = criterion(model(x_adv), y).mean()
        return Losses(robust, robust=robust)


@dataclass(frozen=True, kw_only=True)
class ALP(PGDAT):
    """Adversarial logit pairing: half clean and half robust criterion, plus beta times the mean squared difference of
    the logits.

    Source: Kannan et al. 2018 (arXiv 1803.06373). The code of hypersphere embedding pairs bare cosines, so its beta is
    ours times scale^2 (`docs/fidelity.md`).

    Attributes:
        beta: Weight of the pairing.
    """

    beta: float = 0.5

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        logits, logits_adv = model(x), model(x_adv)
        clean, robust = criterion(logits, y).mean(), criterion(logits_adv, y).mean()
        pairing = (widen(logits) - widen(logits_adv)).square().mean()
        return Losses((clean + robust) / 2 + self.beta * pairing, clean=clean, robust=robust)


@dataclass(frozen=True, kw_only=True)
class TRADES(PGDAT):
    """TRADES: the criterion on clean images plus beta * KL(clean || adversarial), crafted with that KL.

    Source: Zhang et al. 2019 (arXiv 1901.08573, eq. 5). The margin of a criterion acts on the clean term only, as in
    the code of hypersphere embedding. Differs from the official code: the clean probabilities are computed once per
    batch instead of in every step, which is the same in eval mode.

    Attributes:
        beta: Weight of the KL term.
    """

    beta: float = 6.0

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, context: Crafting) -> Tensor:
        with context.view(model, y, self.mode) as classify:
            with torch.no_grad():
                clean = classify(x).softmax(1)
            return self._pgd(classify, x, clean, context.rng, kl)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        logits = model(x)
        clean = criterion(logits, y).mean()
        robust = kl(model(x_adv), widen(logits).softmax(1)).mean()
        return Losses(clean + self.beta * robust, clean=clean, robust=robust)


@dataclass(frozen=True, kw_only=True)
class FreeAT(Objective):
    """Free adversarial training: one backward serves both the weights and the perturbation.

    Source: Shafahi et al. 2019 (arXiv 1904.12843, Algorithm 1). The perturbation is carried from batch to batch by
    position. Differs from the official codes: a carried perturbation is clipped to the box of its new image at once.

    Attributes:
        threat: The threat model to craft against.
        step_size: Step of the perturbation in pixel units, above 0; eps in both official codes.
        repeats: Number of times that each batch is repeated (the paper's m), at least 1.
    """

    threat: ThreatModel = ThreatModel(norm="linf", eps=8 / 255)
    step_size: float = 8 / 255
    repeats: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
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


def _for(y: Tensor) -> Loss:
    """The loss to raise while crafting: `log_odds`, which soft labels do not have."""
    return cross_entropy if is_soft(y) else log_odds
