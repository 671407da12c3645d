"""Attacks that follow the gradient inside a ball: FGSM, PGD, MIM.

One loop serves all three. `until_fooled` compacts the batch inside the iterations, so that an evaluation pays only for
what still resists; crafting for training never uses it, since leaving fooled examples out would train on weaker ones.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from advsphere.attacks.combine import attack_kind
from advsphere.classifier import Classifier, fooled, input_gradient
from advsphere.errors import UserError
from advsphere.losses import Loss, log_odds
from advsphere.rng import Rng
from advsphere.threat import ThreatModel

Start = Literal["uniform", "clean"] | Tensor
Keep = Literal["last", "best"]

CIRCLE = 4
"""How many iterates back to look for the one at hand: steps of one size end up jumping to and fro."""


@attack_kind("one-step")
def fgsm(
    model: Classifier,
    x: Tensor,
    target: Tensor,
    /,
    *,
    threat: ThreatModel,
    loss: Loss = log_odds,
    targeted: bool = False,
    rng: Rng | None = None,
) -> Tensor:
    """The fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572): one step of size eps from the clean
    image.

    Shapes and errors as in `pgd`. With l2 or l1 the step is the norm's own steepest one. `draws` is not needed: nothing
    is random.
    """
    return pgd(
        model, x, target, threat=threat, steps=1, step_size=threat.eps, loss=loss, start="clean", targeted=targeted
    )


@attack_kind("iterative")
def pgd(
    model: Classifier,
    x: Tensor,
    target: Tensor,
    /,
    *,
    threat: ThreatModel,
    steps: int,
    step_size: float,
    loss: Loss = log_odds,
    start: Start = "uniform",
    decay: float | None = None,
    targeted: bool = False,
    until_fooled: bool = False,
    keep: Keep = "last",
    rng: Rng | None = None,
) -> Tensor:
    """Projected gradient ascent (Madry et al. 2018, arXiv 1706.06083); x: (B, C, H, W) in bounds -> x_adv of the same
    shape.

    target: what `loss` compares the logits with, indexed together with x: labels or target classes (B,), probabilities
    (B, K). step_size: in pixel units, along `threat.ascent`. start: a uniform draw from the ball, the clean image, or a
    tensor to begin at. decay: follow the momentum of `mim` instead of the gradient. targeted: descend instead, towards
    `target`. until_fooled: stop each example at its first success (target must be labels). keep: the last iterate, or
    the one with the highest loss; with both, an example that is back at one of its last iterates is done as well, since
    it would go round in circles. rng: where the random start comes from (seed 0 and ids 0..B-1 by default). Raises
    UserError for `until_fooled` with another target than labels. Differs from the paper's code by ascending `log_odds`,
    which has cross-entropy's direction and never saturates.
    """
    if until_fooled and target.dim() != 1:
        raise UserError(f"until_fooled judges success by labels (B,), but the target has shape {tuple(target.shape)}")
    sign = -1.0 if targeted else 1.0
    x = x.detach()
    x_adv = starting_point(x, threat, start, rng)
    result = x_adv.clone()
    active = torch.arange(len(x), device=x.device)
    momentum = torch.zeros_like(x)
    best = torch.full((len(x),), -torch.inf, device=x.device)
    trail = list[Tensor]()
    # The last iterate has to be looked at too, for its loss or its success: one more pass, without a step.
    passes = steps + 1 if keep == "best" or until_fooled else steps
    for i in range(passes):
        logits, values, grad = input_gradient(model, x_adv, target, loss)
        values, grad = sign * values, sign * grad
        if keep == "best":
            better = values > best
            best = torch.where(better, values, best)
            result[active[better]] = x_adv[better]
        if until_fooled:
            done = fooled(logits, target) != targeted
            result[active[done]] = x_adv[done]
            if keep == "best" and decay is None:
                for before in trail:
                    done = done | (x_adv == before).flatten(1).all(1)
                trail = [before[~done] for before in [*trail, x_adv][-CIRCLE:]]
            rest = ~done
            active, x, x_adv, target = active[rest], x[rest], x_adv[rest], target[rest]
            grad, momentum, best = grad[rest], momentum[rest], best[rest]
        if i == steps or len(active) == 0:
            break
        if decay is not None:
            size = grad.abs().flatten(1).sum(1).clamp(min=1e-30)
            grad = momentum = decay * momentum + grad / size.view(-1, *[1] * (grad.dim() - 1))
        x_adv = threat.project(x_adv + step_size * threat.ascent(grad, x_adv), x)
    if keep == "last":
        result[active] = x_adv
    return result


@attack_kind("iterative")
def mim(
    model: Classifier,
    x: Tensor,
    target: Tensor,
    /,
    *,
    threat: ThreatModel,
    steps: int,
    step_size: float,
    decay: float = 1.0,
    loss: Loss = log_odds,
    start: Start = "clean",
    targeted: bool = False,
    until_fooled: bool = False,
    keep: Keep = "last",
    rng: Rng | None = None,
) -> Tensor:
    """The momentum iterative method (Dong et al. 2018, arXiv 1710.06081, eq. 6-7): g <- decay g + grad / ||grad||_1.

    `pgd` with a momentum and from the clean image; the paper's step_size is eps / steps. Arguments as there.
    """
    return pgd(
        model,
        x,
        target,
        threat=threat,
        steps=steps,
        step_size=step_size,
        loss=loss,
        start=start,
        decay=decay,
        targeted=targeted,
        until_fooled=until_fooled,
        keep=keep,
        rng=rng,
    )


def starting_point(x: Tensor, threat: ThreatModel, start: Start, rng: Rng | None) -> Tensor:
    """Where an attack inside a ball begins, put into ball and box; (B, ...) -> (B, ...)."""
    if isinstance(start, Tensor):
        return threat.project(start.detach(), x)
    return threat.sample(x, rng or Rng.of(x)) if start == "uniform" else x.clone()
