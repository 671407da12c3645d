"""Measurements beside the attacks, on a few of the images: what the signs of gradient masking need and no attack tells.

They take seconds, are the same each time, and are written into the ledger, so that what is printed follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advsphere.attacks import pgd
from advsphere.classifier import Classifier, fooled, input_gradient
from advsphere.draws import permutation
from advsphere.losses import Loss, log_odds
from advsphere.threat import ThreatModel

SAMPLE = 100
"""Images that a probe looks at: enough to see that a share of 4 % is no accident."""
STEPS = 20

Probe = Callable[[Classifier, ThreatModel, Tensor, Tensor], dict[str, Any]]
"""(model in float32, threat, x: (B, C, H, W), y: (B,)) -> what was counted, JSON-able."""


def sample(outcomes: str, *, seed: int, most: int) -> Tensor:
    """(n,) int64: up to `most` examples in order, drawn from those that the model classifies as labelled ("1")."""
    order = permutation(len(outcomes), seed=seed, epoch=0, purpose="probes").tolist()
    return torch.tensor(sorted([i for i in order if outcomes[i] == "1"][:most]), dtype=torch.int64)


def gradients(model: Classifier, threat: ThreatModel, x: Tensor, y: Tensor) -> dict[str, Any]:
    """On how many of the images there is no gradient to follow: zero, denormal, or not finite.

    Of the softmax cross-entropy in float32 that other libraries ascend, and of the log-odds that ours do.
    """
    losses: dict[str, Loss] = {"cross_entropy": partial(F.cross_entropy, reduction="none"), "log_odds": log_odds}
    return {"n": len(x)} | {name: _without_gradient(model, x, y, loss) for name, loss in losses.items()}


def large_radius(model: Classifier, threat: ThreatModel, x: Tensor, y: Tensor) -> dict[str, Any]:
    """How many images a short PGD leaves in the smallest ball that holds uniform grey, whatever the image.

    That is eps = 0.5 in linf, 0.5 sqrt(D) in l2, 0.5 D in l1 for D values in [0, 1]. Only images that grey itself fools
    are counted (n), so each one left is a failure of the search and not a strength of the model. It begins at the image
    itself: random noise of this size would fool a network without any gradient. left: None where it can't be run.
    """
    low, high = threat.bounds
    grey = torch.full_like(x[:1], (low + high) / 2)
    with torch.no_grad():
        open_to_grey = model(grey).argmax(1) != y
    x, y = x[open_to_grey], y[open_to_grey]
    values = x[0].numel() if len(x) else 0
    eps = (high - low) / 2 * {"linf": 1.0, "l2": math.sqrt(values), "l1": float(values)}[threat.norm]
    found: dict[str, Any] = {"n": len(x), "left": 0, "eps": eps, "steps": STEPS}
    if not len(x):
        return found
    ball = ThreatModel(norm=threat.norm, eps=eps, bounds=threat.bounds)
    try:
        x_adv = pgd(model, x, y, threat=ball, steps=STEPS, step_size=eps / 4, start="clean", until_fooled=True)
    except RuntimeError:  # no gradient reaches the images
        return found | {"left": None}
    with torch.no_grad():
        return found | {"left": int((~fooled(model(x_adv), y)).sum())}


PROBES: dict[str, Probe] = {"gradients": gradients, "large radius": large_radius}


def _without_gradient(model: Classifier, x: Tensor, y: Tensor, loss: Loss) -> int:
    try:
        _, _, grad = input_gradient(model, x, y, loss)
    except RuntimeError:  # none reaches the images at all
        return len(x)
    largest = grad.flatten(1).abs().amax(1)
    return int((~((largest >= torch.finfo(grad.dtype).tiny) & largest.isfinite())).sum())
