"""The attack protocol, and combinations of attacks: restarts, and the worst case of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from advsphere.attacks.active import put
from advsphere.calling import answer
from advsphere.classifier import Classifier, fooled
from advsphere.errors import UserError
from advsphere.losses import margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from advsphere.typed import typed


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
        A decorator that stores the kind in the function's attribute `kind` and returns the same function. For an attack
        of advsphere it returns one that also checks the types of its arguments. Apply it above every other decorator.
    """

    def declare(attack: _AttackT) -> _AttackT:
        attack = typed(attack)
        vars(attack)["kind"] = kind
        return attack

    return declare


@dataclass(frozen=True)
class Prepared:
    """A classifier that returns logits, the lowest and highest pixel of the images to attack, the number of classes
    that their labels need, and the number of images that may be in a batch.

    Attacks pass it on to the attacks that they run, so that only the outermost one reads the values of the batch. Its
    size is the room that the others have.
    """

    classify: Classifier
    pixels: tuple[float, float]
    classes: int
    room: int

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.classify(x)
        if logits.shape[-1] < self.classes:
            raise UserError(
                f"the model returns {logits.shape[-1]} logits, but the highest label is {self.classes - 1}; "
                "number the classes from 0"
            )
        return logits


def prepared(
    model: Classifier,
    x: Tensor,
    within: ThreatModel | tuple[float, float] = (-math.inf, math.inf),
    target: Tensor | None = None,
    *,
    soft: bool = False,
) -> Prepared:
    """Raise UserError for images outside the bounds, of a threat model or given, and for invalid labels, and wrap a
    network of any kind so that it returns logits. With `soft` the target may also have a row for each image, which only
    the loss understands.
    """
    _check_types(x, target, soft)
    if not isinstance(model, Prepared):
        if target is not None and target.device != x.device:
            raise UserError(f"the images are on {x.device} and the labels on {target.device}; use labels.to(x.device)")
        darkest, brightest, lowest, highest = _extremes(x, target)
        if lowest < 0:
            raise UserError(f"the lowest label is {lowest:g}; number the classes from 0")
        answers = _logits_of(model) if isinstance(model, nn.Module) else model
        model = Prepared(answers, (darkest, brightest), int(highest) + 1, len(x))
    if not isinstance(within, tuple | list):
        within = within.bounds
    (low, high), (darkest, brightest) = within, model.pixels
    if math.isnan(darkest):
        raise UserError("some pixels of the images are NaN; remove these images")
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


def _check_types(x: Tensor, target: Tensor | None, soft: bool) -> None:
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise UserError(
            f"the images are of type {found}; give a floating-point tensor (B, C, H, W) in [0, 1], such as "
            "torch.from_numpy(images).permute(0, 3, 1, 2) / 255 for an array (B, H, W, C) of bytes"
        )
    if target is None:
        return
    if not isinstance(target, Tensor):
        raise UserError(
            f"the labels are of type {type(target).__name__}; give torch.as_tensor(labels), class numbers (B,)"
        )
    if target.dim() == 0:
        raise UserError("one label is no batch; give images (B, C, H, W) and labels (B,): x[None], y[None]")
    if len(target) != len(x):
        raise UserError(f"there are {len(x)} images (shape {tuple(x.shape)}), but the labels are {tuple(target.shape)}")
    labels = target.dim() == 1 and target.dtype in (torch.int64, torch.int32)
    if not (labels or (soft and target.dim() > 1)):
        cure = "use labels.long()" if target.dim() == 1 else "use labels.argmax(1) for one-hot rows and soft labels"
        raise UserError(
            f"the labels are {tuple(target.shape)} of {target.dtype}, but this attack takes class numbers (B,); {cure}"
        )


def _extremes(x: Tensor, target: Tensor | None) -> list[float]:
    """The lowest and highest pixel and label, read together because a GPU waits for each reading."""
    values = torch.aminmax(x.detach()) if x.numel() else (torch.tensor(math.inf), torch.tensor(-math.inf))
    labels = torch.aminmax(target) if target is not None and target.dim() == 1 and len(target) else ()
    found: list[float] = torch.stack([value.double() for value in (*values, *labels)]).tolist()
    return found if labels else [*found, 0.0, -1.0]


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
        model, rng = prepared(model, x, target=y), rng or Rng.of(x)
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


@typed
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
