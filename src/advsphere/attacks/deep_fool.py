"""DeepFool: step onto the nearest boundary of the linearised classifier until the prediction changes."""

from __future__ import annotations

import torch
from torch import Tensor

from advsphere.attacks.active import Active
from advsphere.attacks.combine import attack_kind, prepared
from advsphere.attacks.hyperplane import boundaries, most_likely_rivals, nearest, traced
from advsphere.attacks.records import Smallest
from advsphere.classifier import Classifier, fooled
from advsphere.errors import UserError
from advsphere.rng import Rng
from advsphere.threat import Norm, over_pixels

EXTRA = 1e-4
"""Added to the length of each step, in pixel units, as in the authors' code. Else steps shrink before the boundary."""


@attack_kind("minimal-norm")
def deepfool(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    /,
    *,
    norm: Norm = "l2",
    bounds: tuple[float, float] = (0.0, 1.0),
    steps: int = 50,
    overshoot: float = 0.02,
    classes: int = 10,
    eps: float | None = None,
    rng: Rng | None = None,
) -> Tensor:
    """DeepFool: linearise the classifier, step over the nearest decision boundary, and repeat until fooled.

    Source: Moosavi-Dezfooli et al. 2016 (arXiv 1511.04599, Algorithm 2). A step costs classes - 1 backwards and one
    forward, or two forwards where other examples of the batch were just fooled.

    Differs from the paper, as the authors' code does: 1e-4 is added to each step, every step is lengthened instead of
    their sum, and only a few classes are linearised (here chosen at each step, in the authors' code once). The image is
    clipped to the box after each step. Stepping to the nearest point inside the box was tried and ends farther away.

    Args:
        model: Maps images to logits (B, K).
        x: Clean images (B, C, H, W), within the bounds.
        y: Labels (B,).
        norm: "l2" or "linf".
        bounds: Lowest and highest value of a pixel.
        steps: Largest number of steps.
        overshoot: Share by which each step is lengthened, to land beyond the boundary.
        classes: Number of most likely classes to linearise at each step, including the label; at least 2.
        eps: If given, return only adversarial examples within this radius.
        rng: Not used, because nothing is random.

    Returns:
        The adversarial images, same shape as `x`, or the clean image where none was found.

    Raises:
        UserError: If norm is "l1", or if bounds, eps or classes are invalid.
    """
    model = prepared(model, x, bounds, y)
    if norm == "l1":
        raise UserError("DeepFool does not support l1, where clipping undoes its steps; choose l2 or linf, or use fab")
    found = Smallest(x, norm=norm, bounds=bounds, eps=eps)
    x_adv = x.detach()
    # The backwards of an example that is done would cost more than a wait.
    active = Active(torch.arange(len(x), device=x.device), every=1)
    for i in range(steps + 1):
        leaf, logits = traced(model, x_adv)
        hit = fooled(logits, y)
        found.offer(active.index, x_adv, hit)
        rest = active.drop(hit)
        if i == steps or len(active) == 0:
            break
        rivals = most_likely_rivals(logits.detach(), y, classes - 1)
        if rest is not None and (len(y) - len(rest)) * rivals.shape[1] > len(rest):
            # A second forward of the others costs less than the backwards of the fooled ones.
            x_adv, y, rivals, rest = x_adv[rest], y[rest], rivals[rest], None
            leaf, logits = traced(model, x_adv)
        values, gradients = boundaries(leaf, logits, y, rivals)
        if rest is not None:
            values, gradients, x_adv, y = values[rest], gradients[rest], x_adv[rest], y[rest]
        _, length, gradient = nearest(values, gradients, norm)
        step = over_pixels(length + EXTRA, x_adv) * found.threat.ascent(gradient, x_adv)
        x_adv = (x_adv + (1 + overshoot) * step).clamp(*bounds)
    return found.result()
