"""The attack protocol, and combinations of attacks: restarts, and the worst case of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from advsphere.attacks.active import put
from advsphere.classifier import Classifier, answer, fooled
from advsphere.errors import UserError
from advsphere.losses import margin
from advsphere.rng import Rng


class Attack(Protocol):
    """The signature of every attack: (model, x, target) -> x_adv. Bind all settings with `functools.partial`."""

    def __call__(self, model: Classifier, x: Tensor, target: Tensor, /, *, rng: Rng | None = None) -> Tensor:
        """Attack a batch.

        Args:
            model: Maps images to logits (B, K).
            x: Clean images (B, C, H, W), within the bounds.
            target: Labels (B,), or the classes to reach if the attack is targeted.
            rng: Random numbers, addressed by example. Attacks without randomness ignore it.

        Returns:
            The adversarial images, same shape as `x`.
        """
        ...


AttackKind = Literal["one-step", "iterative", "minimal-norm", "black-box"]
"""How an attack searches.

- "one-step" and "iterative": it ascends a loss along its gradient inside the ball.
- "minimal-norm": it searches for the nearest adversarial example and uses gradients.
- "black-box": it uses only the model's outputs and no gradient.
"""

_AttackT = TypeVar("_AttackT", bound=Callable[..., Any])


def attack_kind(kind: AttackKind) -> Callable[[_AttackT], _AttackT]:
    """Declare how an attack searches. Evaluations compare gradient attacks with black-box attacks by it.

    Args:
        kind: The kind, see `AttackKind`.

    Returns:
        A decorator that stores the kind in the function's attribute `kind` and returns the same function. Apply it
        above every other decorator.
    """

    def declare(attack: _AttackT) -> _AttackT:
        vars(attack)["kind"] = kind
        return attack

    return declare


@dataclass(frozen=True)
class Prepared:
    """A classifier that returns logits, and the lowest and highest pixel of the images to attack.

    Attacks pass it on to the attacks that they run, so that only the outermost one reads the images' range.
    """

    classify: Classifier
    pixels: tuple[float, float]

    def __call__(self, x: Tensor) -> Tensor:
        return self.classify(x)


def prepared(model: Classifier, x: Tensor, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Prepared:
    """Raise UserError for images outside the bounds, and wrap a network of any kind so that it returns logits."""
    low, high = bounds
    if not isinstance(model, Prepared):
        darkest, brightest = torch.stack(torch.aminmax(x.detach())).tolist() if x.numel() else (math.inf, -math.inf)
        model = Prepared(_logits_of(model) if isinstance(model, nn.Module) else model, (darkest, brightest))
    darkest, brightest = model.pixels
    if not (low <= darkest and brightest <= high):
        raise UserError(
            f"the images have pixels from {darkest:.4g} to {brightest:.4g}, but the bounds are {low:g} to "
            f"{high:g}; scale them into the bounds, and put the input normalisation into the model "
            "(advsphere.classifier.PixelClassifier)"
        )
    if low >= 0 and math.inf > high >= 100 and 0 < brightest <= 1:
        raise UserError(
            f"the brightest pixel is {brightest:.4g}, but the bounds are {low:g} to {high:g}; "
            "for images in [0, 1] use bounds of 0 to 1 and eps / 255"
        )
    return model


def _logits_of(model: nn.Module) -> Classifier:
    return lambda x: answer(model, x).to(torch.promote_types(x.dtype, torch.float32))


def worst_case(attacks: Sequence[Attack]) -> Attack:
    """Combine attacks: they run one after the other, each on the examples that still resist.

    Args:
        attacks: The attacks, in the order in which they run.

    Returns:
        An attack. It returns the first image that fools the model, else the one with the highest margin loss of all
        results and the clean image. A misclassified image is returned unchanged and never attacked.
    """

    def attack(model: Classifier, x: Tensor, y: Tensor, /, *, rng: Rng | None = None) -> Tensor:
        model, rng = prepared(model, x), rng or Rng.of(x)
        with torch.no_grad():
            logits = model(x)
        result, best, done = x.detach().clone(), margin(logits, y), fooled(logits, y)
        for one in attacks:
            index = (~done).nonzero().squeeze(1)
            if len(index) == 0:
                break
            x_adv = one(model, x[index], y[index], rng=rng.take(index))
            with torch.no_grad():
                logits = model(x_adv)
            value, hit = margin(logits, y[index]), fooled(logits, y[index])
            better = hit | (value > best[index])
            put(result, index, better, x_adv)
            put(best, index, better, value)
            done[index] = hit
        return result

    return attack


def restarts(attack: Attack, n: int) -> Attack:
    """Run an attack several times with different random numbers and keep the worst case.

    Args:
        attack: The attack to repeat. It may itself have restarts.
        n: Number of runs, at least 1.

    Returns:
        The `worst_case` of the runs.

    Raises:
        UserError: If n < 1.
    """
    if n < 1:
        raise UserError(f"an attack can't run {n} times; restarts are counted from 1")

    def restarted(r: int) -> Attack:
        def once(model: Classifier, x: Tensor, y: Tensor, /, *, rng: Rng | None = None) -> Tensor:
            rng = rng or Rng.of(x)
            return attack(model, x, y, rng=rng.at(restart=rng.restart * n + r))

        return once

    return worst_case([restarted(r) for r in range(n)])
