"""DeepFool: step onto the nearest boundary of the linearised classifier until the prediction changes."""

from __future__ import annotations

import torch
from torch import Tensor

from advsphere.attacks.hyperplane import linearise, nearest
from advsphere.attacks.smallest import Smallest, over_pixels
from advsphere.classifier import Classifier, fooled
from advsphere.draws import Draws
from advsphere.errors import UserError
from advsphere.threat import Norm

BEHIND = 1e-4
"""Added to the length of each step, in pixel units, as in the authors' code: else steps shrink before the boundary."""


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
    draws: Draws | None = None,
) -> Tensor:
    """DeepFool (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599, Algorithm 2); x: (B, C, H, W) in bounds, y: (B,) labels
    -> x_adv of the same shape, the clean image where none was found.

    overshoot: each step is lengthened by this share, to land behind the boundary. classes: how many of the most
    likely classes are linearised at each step, the label among them (>= 2). eps: for a verdict at this radius; what is
    larger is not returned. Nothing is random. Each example stops when it is fooled: two forwards and classes - 1
    backwards a step. Raises UserError for l1, and where bounds, eps or classes make no sense.

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
        with torch.no_grad():
            hit = fooled(model(x_adv), y)
        found.offer(index, x_adv, hit)
        rest = ~hit
        index, y, x_adv = index[rest], y[rest], x_adv[rest]
        if i == steps or len(index) == 0:
            break
        _, length, gradient = nearest(*linearise(model, x_adv, y, classes - 1), norm)
        step = over_pixels(length + BEHIND, x_adv) * found.threat.ascent(gradient, x_adv)
        x_adv = (x_adv + (1 + overshoot) * step).clamp(*bounds)
    return found.result()
