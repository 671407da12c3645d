"""DeepFool: step onto the nearest boundary of the linearised classifier until the prediction changes."""

from __future__ import annotations

import torch
from torch import Tensor

from advsphere.attacks.hyperplane import linearise, nearest, project
from advsphere.attacks.smallest import Smallest
from advsphere.classifier import Classifier, fooled
from advsphere.draws import Draws
from advsphere.threat import Norm


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

    overshoot: the perturbation is lengthened by this share, to land behind the boundary. classes: how many of the most
    likely classes are linearised at each step, the label among them (>= 2). eps: for a verdict at this radius; what is
    larger is not returned. Nothing is random. Each example stops when it is fooled: two forwards and classes - 1
    backwards a step. Raises UserError where norm, bounds, eps or classes make no sense.

    Differs from the paper: each step is the nearest point of the boundary inside the box, where the paper has no box
    (the same where no pixel meets it); like the authors' code, the overshoot is applied to the whole perturbation at
    each step and few classes are linearised, but here they are chosen at each step instead of once.
    """
    found = Smallest(x, norm=norm, bounds=bounds, eps=eps)
    x = x_adv = x.detach()
    total = torch.zeros_like(x)
    index = torch.arange(len(x), device=x.device)
    for i in range(steps + 1):
        with torch.no_grad():
            hit = fooled(model(x_adv), y)
        found.offer(index, x_adv, hit)
        rest = ~hit
        index, x, y, x_adv, total = index[rest], x[rest], y[rest], x_adv[rest], total[rest]
        if i == steps or len(index) == 0:
            break
        value, gradient = nearest(*linearise(model, x_adv, y, classes - 1), norm)
        total = total + project(x_adv, value, gradient, norm, bounds) - x_adv
        x_adv = (x + (1 + overshoot) * total).clamp(*bounds)
    return found.result()
