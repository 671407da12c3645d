"""Attacks that ascend the loss of surrogate logits, computed from the features by another head.

Success is still judged by the model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.attacks.combine import attack_kind
from advsphere.classifier import Classifier, head_inputs
from advsphere.losses import Loss, log_odds, widen
from advsphere.rng import Rng


@dataclass(frozen=True)
class Cosines:
    """Surrogate logits from the angles alone: scale * cos between the features and the rows of the head's weights.

    Attributes:
        head: A linear layer, plain or with normalised features and weights. Its bias is not used.
        scale: The scale s of the surrogate logits, independent of the model's own.
        constant_norm: Let no gradient pass through the division by the length of the features, so that the attack may
            follow that length too.
    """

    head: nn.Module
    scale: float
    constant_norm: bool = False

    def __call__(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., K), in at least float32."""
        z, weight = widen(features), self.head.weight  # not always a parameter: it may be parametrised or pruned
        assert isinstance(weight, Tensor)
        length = torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp(min=1e-12)
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
    """Run a gradient attack on the loss of surrogate logits.

    Ours, after the adaptive attacks of Tramer et al. 2020 (arXiv 2002.08347), which also replace the part of a defence
    that hides its gradient.

    Args:
        model: Maps images to logits (B, K).
        x: Clean images (B, C, H, W), within the bounds.
        target: As in `ascent`.
        ascent: An attack that takes `loss` as a keyword and evaluates it right after each forward, such as a partial of
            `pgd` or `apgd`. With `until_fooled` it judges success by the model's own logits.
        view: Computes the surrogate logits from the features that enter the model's head.
        loss: The loss of the surrogate logits to raise.
        rng: Random numbers for `ascent`.

    Returns:
        The adversarial images, same shape as `x`.

    Raises:
        UserError: If the model does not run `view.head`.
    """
    with head_inputs(view.head) as latest:

        def through_the_view(logits: Tensor, target: Tensor) -> Tensor:
            surrogates = view(latest())
            if surrogates.shape != logits.shape:  # the head was applied at every place: their mean counts
                surrogates = surrogates.reshape(len(logits), -1, surrogates.shape[-1]).mean(1)
            return loss(surrogates, target)

        return ascent(model, x, target, loss=through_the_view, rng=rng)
