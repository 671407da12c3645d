"""DeepFool: step onto the nearest boundary of the linearised classifier until the prediction changes."""

from __future__ import annotations

import torch
from torch import Tensor

from advsphere.attacks.combine import attack_kind
from advsphere.attacks.hyperplane import boundaries, most_likely_rivals, nearest, traced
from advsphere.attacks.smallest import Smallest, over_pixels
from advsphere.classifier import Classifier, fooled
from advsphere.errors import UserError
from advsphere.rng import Rng
from advsphere.threat import Norm

BEHIND = 1e-4
"""Added to the length of each step, in pixel units, as in the authors' code: else steps shrink before the boundary."""


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
    """DeepFool (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599, Algorithm 2); x: (B, C, H, W) in bounds, y: (B,) labels
    -> x_adv of the same shape, the clean image where none was found.

    overshoot: each step is lengthened by this share, to land behind the boundary. classes: how many of the most
    likely classes are linearised at each step, the label among them (>= 2). eps: for a verdict at this radius; what is
    larger is not returned. Nothing is random. Each example stops when it is fooled: classes - 1 backwards a step and
    one forward, or two where others of its batch have just been fooled. Raises UserError for l1, and where bounds, eps
    or classes make no sense.

    Differs from the paper as the authors' code does: 1e-4 is added to each step, every step is lengthened instead of
    their sum, and few classes are linearised (chosen at each step here, and not once). The image is clipped to the box
    after each step; a step to the nearest point inside the box was tried, and ends farther away.
    """
    if norm == "l1":
        raise UserError("DeepFool has no l1 here, where clipping undoes its steps; choose l2 or linf, or fab for l1")
    found = Smallest(x, norm=norm, bounds=bounds, eps=eps)
    x_adv = x.detach()
    index = torch.arange(len(x), device=x.device)
    for i in range(steps + 1):
        leaf, logits = traced(model, x_adv)
        hit = fooled(logits, y)
        found.offer(index, x_adv, hit)
        rest = ~hit
        if i == steps or not rest.any():
            break
        rivals = most_likely_rivals(logits.detach(), y, classes - 1)
        if hit.sum() * rivals.shape[1] > rest.sum():
            # A second forward of the others costs less than the backwards of those that are fooled.
            leaf, logits = traced(model, x_adv[rest])
            values, gradients = boundaries(leaf, logits, y[rest], rivals[rest])
        else:
            values, gradients = (part[rest] for part in boundaries(leaf, logits, y, rivals))
        index, y, x_adv = index[rest], y[rest], x_adv[rest]
        _, length, gradient = nearest(values, gradients, norm)
        step = over_pixels(length + BEHIND, x_adv) * found.threat.ascent(gradient, x_adv)
        x_adv = (x_adv + (1 + overshoot) * step).clamp(*bounds)
    return found.result()
