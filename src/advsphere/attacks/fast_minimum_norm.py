"""FMN: gradient steps inside a ball whose radius follows the boundary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advsphere.attacks.active import Active
from advsphere.attacks.combine import attack_kind, prepared
from advsphere.attacks.hyperplane import DUAL
from advsphere.attacks.records import Smallest
from advsphere.attacks.sparse import scattered
from advsphere.classifier import Classifier, fooled, input_gradient
from advsphere.errors import UserError
from advsphere.losses import margin
from advsphere.rng import Rng
from advsphere.threat import Norm, ThreatModel

STEP_SIZE = {"linf": 10.0, "l2": 1.0, "l1": 1.0}
"""The first step, in l2 and in widths of the box, as AttackBench sets it."""
LAST_STEP = 0.01
"""The last step as a share of the first."""
LAST_GAMMA = 0.001
"""The last change of the radius, relative to it."""


@attack_kind("minimal-norm")
def fmn(
    model: Classifier,
    x: Tensor,
    target: Tensor,
    /,
    *,
    norm: Norm,
    bounds: tuple[float, float] = (0.0, 1.0),
    steps: int = 100,
    starts: int = 1,
    step_size: float | None = None,
    gamma: float = 0.05,
    targeted: bool = False,
    eps: float | None = None,
    rng: Rng | None = None,
) -> Tensor:
    """Fast minimum-norm attack: ascend the margin inside a ball that shrinks after a success and grows after a failure.

    Source: Pintor et al. 2021 (arXiv 2102.12827, Algorithm 1). The step along the gradient has a length in l2, whatever
    the norm. Step size and gamma fall along a cosine. A step costs one forward and one backward. For l0 use
    `sigma_zero`.

    Differs from the paper: until the first success the radius is larger than the linearised distance by gamma, because
    a point on the boundary is not misclassified. For l1 the image is projected onto the intersection of ball and box,
    so that clipping does not shorten the perturbation. With `starts` above 1, further walks begin elsewhere and end at
    other boundaries.

    Args:
        model: Maps images to logits (B, K).
        x: Clean images (B, C, H, W), within the bounds.
        target: Labels (B,), or the classes to reach if `targeted`.
        norm: "linf", "l2" or "l1".
        bounds: Lowest and highest value of a pixel.
        steps: Number of steps of each walk, at least 1. The first one measures the start.
        starts: Number of walks, at least 1. The first begins at the clean image. The others begin where 30 % of the
            values are changed at random.
        step_size: Length of the first step in l2, above 0, in widths of the box; 10 for linf and 1 for the others if
            not given. The last step is a hundredth of it.
        gamma: Share by which the radius changes at first, above 0 and below 1; at the end 0.001.
        targeted: Move the prediction towards `target`.
        eps: If given, return only adversarial examples within this radius, and stop at the first one.
        rng: Random numbers for the starts after the first; by default of seed 0 and ids 0 to B - 1.

    Returns:
        The smallest adversarial images found, same shape as `x`, or the clean image where none was found.

    Raises:
        UserError: If norm, bounds, eps or a setting is invalid.
    """
    model = prepared(model, x, bounds, target)
    found = Smallest(x, norm=norm, bounds=bounds, eps=eps)
    first = (bounds[1] - bounds[0]) * (STEP_SIZE[norm] if step_size is None else step_size)
    if not (min(steps, starts) >= 1 and first > 0 and 0 < gamma < 1):
        raise UserError(
            f"steps is {steps}, starts {starts}, step_size {step_size} and gamma {gamma}; steps and starts must be at "
            "least 1, step_size above 0, and gamma between 0 and 1"
        )
    rng, sign = rng or Rng.of(x), -1.0 if targeted else 1.0
    steepest = ThreatModel(norm="l2", eps=0.0, bounds=bounds)
    for start in range(starts):
        active = Active(found.open())
        x, y = found.x[active.index], target[active.index]
        x_adv = x
        if start > 0:
            number = rng.take(active.index).at(restart=rng.restart * starts + start)
            x_adv = (x + (bounds[1] - bounds[0]) * scattered(x, bounds, number)).clamp(*bounds)
        corner = torch.where(x - bounds[0] > bounds[1] - x, bounds[0], bounds[1]).to(x.dtype)
        farthest = found.threat.distance(corner, x)
        radius = smallest = torch.full_like(farthest, math.inf)
        for i in range(steps):
            if len(active) == 0:
                break
            share = (1 + math.cos(math.pi * i / steps)) / 2
            length = first * (LAST_STEP + (1 - LAST_STEP) * share)
            change = LAST_GAMMA + (gamma - LAST_GAMMA) * share
            logits, value, gradient = input_gradient(model, x_adv, y, margin)
            value, gradient = value.nan_to_num(0.0).to(x.dtype), sign * gradient.nan_to_num(0.0, 0.0, 0.0)
            hit = (fooled(logits, y) != targeted) & active.open
            smallest = smallest.minimum(found.offer(active.index, x_adv, hit))
            steepness = torch.linalg.vector_norm(gradient.flatten(1), DUAL[norm], dim=1)
            reach = found.threat.distance(x_adv, x) + value.abs() / steepness.clamp(min=torch.finfo(x.dtype).tiny)
            grown = torch.where(smallest.isfinite(), radius, reach) * (1 + change)
            radius = torch.where(hit, (radius * (1 - change)).minimum(smallest), grown).minimum(farthest)
            x_adv = found.threat.project(x_adv + length * steepest.ascent(gradient, x_adv), x, radius)
            if (rows := active.drop(found.done[active.index])) is not None:
                state = (x, y, x_adv, radius, farthest, smallest)
                x, y, x_adv, radius, farthest, smallest = (part[rows] for part in state)
    return found.result()
