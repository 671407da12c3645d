"""Attacks that ascend a loss of other logits than the model's: the head is bypassed, and its view of the features taken
instead. What fools is judged by the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.attacks.combine import attack_kind
from advsphere.classifier import Classifier
from advsphere.errors import UserError
from advsphere.losses import Loss, log_odds, widen
from advsphere.rng import Rng


@dataclass(frozen=True)
class Cosines:
    """What a linear head sees of the angles alone: scale * cos between the features and the rows of its weights.

    head: a linear layer, plain or with features and weights normalised already. scale: the s of the attack, whatever
    the model was trained with. constant_norm: the length of the features is divided out, but no gradient passes through
    it, so that the attack may follow it too. No bias takes part.
    """

    head: nn.Module
    scale: float
    constant_norm: bool = False

    def __call__(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K), in at least float32."""
        z, weight = widen(features), self.head.get_parameter("weight")
        length = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp(min=1e-12)
        z = z / (length.detach() if self.constant_norm else length)
        return self.scale * F.linear(z, F.normalize(weight.to(z.dtype), dim=1))


@attack_kind("iterative")
def surrogate(
    model: Classifier,
    x: Tensor,
    target: Tensor,
    /,
    *,
    ascent: Callable[..., Tensor],
    view: Cosines,
    loss: Loss = log_odds,
    rng: Rng | None = None,
) -> Tensor:
    """`ascent` on the loss of `view(features)` in place of the model's logits; x: (B, C, H, W) -> x_adv of the same
    shape.

    ascent: an attack that takes `loss` as a keyword, such as a partial of `pgd` or `apgd`, and evaluates it right after
    each forward. view: of the last layer of `model`. Success, with `until_fooled`, is still by the model's own logits.
    Our own; after the adaptive attacks of Tramer et al. 2020 (arXiv 2002.08347), which also replace the part of a
    defence that hides its gradient. Raises UserError for a head that the model does not run.
    """
    with entering(view.head) as seen:

        def through_the_view(logits: Tensor, target: Tensor) -> Tensor:
            if not seen:
                raise UserError(
                    f"the model under attack never runs the {type(view.head).__name__} that was given as its head; "
                    "take split(network).head of the very network that is attacked"
                )
            return loss(view(seen[-1]), target)

        return ascent(model, x, target, loss=through_the_view, rng=rng)


@contextmanager
def entering(head: nn.Module) -> Iterator[list[Tensor]]:
    """While it lasts, the list holds the features (B, D) that entered the head in the last forward."""
    seen: list[Tensor] = []

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[:] = [given[0].flatten(1)]

    handle = head.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
