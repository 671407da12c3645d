"""Gradient attacks inside a ball: FGSM, PGD and MIM.

One loop serves all three. With `until_fooled` it drops examples from the batch once they are fooled, so an evaluation
pays only for those that still resist. Training never uses it, because it would train on weaker examples.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from advsphere.attacks.active import Active, put
from advsphere.attacks.combine import attack_kind, prepared
from advsphere.classifier import Classifier, fooled, input_gradient
from advsphere.errors import UserError
from advsphere.losses import Loss, log_odds
from advsphere.rng import Rng
from advsphere.threat import ThreatModel, over_pixels

Start = Literal["uniform", "clean"] | Tensor
"""Where an attack begins: at a uniform point of the ball, at the clean image, or at the given images (B, C, H, W)."""
Keep = Literal["last", "best"]
"""Which iterate an attack returns: the last one, or the one with the highest loss."""

CYCLE = 4
"""Number of previous iterates to compare with the current one. Steps of a fixed size end in short cycles."""


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
    """Fast gradient sign method: one step of size eps from the clean image.

    Source: Goodfellow et al. 2015 (arXiv 1412.6572). For l2 and l1 the step follows the steepest direction of that
    norm.

    Args:
        model: Maps images to logits (B, K).
        x: Clean images (B, C, H, W), within the bounds.
        target: Labels (B,), or the classes to reach if `targeted`.
        threat: Norm, radius and bounds.
        loss: The loss to raise.
        targeted: Lower the loss instead, so that the prediction moves towards `target`.
        rng: Not used, because nothing is random.

    Returns:
        The adversarial images, same shape as `x`.
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
    """Projected gradient descent: repeated steps along the gradient, each projected back into the ball.

    Source: Madry et al. 2018 (arXiv 1706.06083). Differs from the paper's code: the default loss is `log_odds`, which
    has the gradient direction of cross-entropy and never saturates.

    Args:
        model: Maps images to logits (B, K).
        x: Clean images (B, C, H, W), within the bounds.
        target: The second argument of `loss`: labels or target classes (B,), or probabilities (B, K).
        threat: Norm, radius and bounds.
        steps: Number of steps.
        step_size: Length of a step in pixel units, along `threat.ascent`.
        loss: The loss to raise.
        start: Where to begin.
        decay: If given, follow the momentum of `mim` with this decay instead of the gradient.
        targeted: Lower the loss instead, so that the prediction moves towards `target`.
        until_fooled: Stop each example at its first success. Together with `keep="best"`, also stop an example that
            returns to one of its last iterates, because it would cycle from there on.
        keep: Which iterate to return where no success has stopped an example.
        rng: Random numbers for the uniform start; by default of seed 0 and ids 0 to B - 1.

    Returns:
        The adversarial images, same shape as `x`.

    Raises:
        UserError: If `until_fooled` is set and `target` does not hold labels, or if `start` is another word, or images
            of another shape than `x`.
    """
    model = prepared(model, x, threat, target, soft=True)
    if until_fooled and target.dim() != 1:
        raise UserError(f"until_fooled needs labels (B,) to judge success, but target has shape {tuple(target.shape)}")
    x = x.detach()
    x_adv = starting_point(x, threat, start, rng)
    judged = keep == "best" or until_fooled
    if judged:
        result, active = x_adv.clone(), Active(torch.arange(len(x), device=x.device))
        best = torch.full((len(x),), -torch.inf, device=x.device)
        trail = x.new_empty(CYCLE if until_fooled and keep == "best" and decay is None else 0, *x.shape)
    momentum = torch.zeros_like(x) if decay is not None else x.new_empty(len(x))
    # One more pass without a step, where the loss or the success of the last iterate counts.
    for i in range(steps + judged):
        logits, values, grad = input_gradient(model, x_adv, target, loss, needed=i < steps)
        if targeted:
            values, grad = -values, -grad
        if judged:
            done = fooled(logits, target) != targeted if until_fooled else torch.zeros_like(active.open)
            taken = done | (values > best) if keep == "best" else done
            best = torch.where(taken, values, best)
            put(result, active.index, taken & active.open, x_adv)
            if len(trail):
                done = done | (x_adv == trail[:i]).flatten(2).all(2).any(0)
                trail[i % CYCLE] = x_adv
            if until_fooled and (rows := active.drop(done)) is not None:
                x, x_adv, target, trail = x[rows], x_adv[rows], target[rows], trail[:, rows]
                grad, momentum, best = grad[rows], momentum[rows], best[rows]
            if i == steps or len(active) == 0:
                break
        if decay is not None:
            size = grad.abs().flatten(1).sum(1).clamp(min=1e-30)
            grad = momentum = decay * momentum + grad / over_pixels(size, grad)
        x_adv = threat.project(x_adv + step_size * threat.ascent(grad, x_adv), x)
    if judged and keep == "last":
        put(result, active.index, active.open, x_adv)
    return result if judged else x_adv


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
    """Momentum iterative method: `pgd` along g <- decay * g + grad / ||grad||_1, from the clean image.

    Source: Dong et al. 2018 (arXiv 1710.06081, eq. 6 and 7).

    Args:
        model: Maps images to logits (B, K).
        x: Clean images (B, C, H, W), within the bounds.
        target: As in `pgd`.
        threat: Norm, radius and bounds.
        steps: Number of steps.
        step_size: Length of a step in pixel units; eps / steps in the paper.
        decay: Share of the momentum that is kept at each step.
        loss: The loss to raise.
        start: Where to begin.
        targeted: Lower the loss instead, so that the prediction moves towards `target`.
        until_fooled: Stop each example at its first success.
        keep: Which iterate to return where no success has stopped an example.
        rng: Random numbers for a uniform start.

    Returns:
        The adversarial images, same shape as `x`.

    Raises:
        UserError: As in `pgd`.
    """
    return pgd(
        model, x, target, threat=threat, steps=steps, step_size=step_size, decay=decay, loss=loss, start=start,
        targeted=targeted, until_fooled=until_fooled, keep=keep, rng=rng,
    )  # fmt: skip


def starting_point(x: Tensor, threat: ThreatModel, start: Start, rng: Rng | None) -> Tensor:
    """The images (B, ...) at which an attack begins, within ball and box."""
    if isinstance(start, Tensor):
        if start.shape != x.shape:
            raise UserError(f"start has shape {tuple(start.shape)}, and the images {tuple(x.shape)}; give one for each")
        return threat.project(start.detach(), x)
    if start not in ("uniform", "clean"):
        raise UserError(f"start is {start!r}; give 'uniform', 'clean' or images of the same shape as x")
    return threat.sample(x, rng or Rng.of(x)) if start == "uniform" else x.clone()
