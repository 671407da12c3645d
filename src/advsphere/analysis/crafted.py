"""Clean images with adversarial ones beside them, crafted as adversarial training would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from advsphere.attacks import pgd
from advsphere.classifier import Classifier, frozen
from advsphere.data import Images
from advsphere.draws import Draws
from advsphere.threat import ThreatModel

STEPS = 10


@dataclass(frozen=True, eq=False, kw_only=True)
class Crafted:
    """x, x_adv: (N, C, H, W) in [0, 1]. y: (N,) labels. steps: of PGD."""

    x: Tensor
    x_adv: Tensor
    y: Tensor
    threat: ThreatModel
    steps: int

    def few(self, n: int) -> Crafted:
        """n of them at equal distances, all where there are fewer: so no class is left out where they lie class by
        class.
        """
        total = len(self.y)
        index = torch.arange(min(n, total), device=self.y.device) * total // min(n, total)
        return replace(self, x=self.x[index], x_adv=self.x_adv[index], y=self.y[index])


def craft(
    model: nn.Module,
    images: Images,
    *,
    threat: ThreatModel,
    steps: int = STEPS,
    step_size: float | None = None,
    path: Classifier | None = None,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Crafted:
    """PGD from a uniform start on every image, all steps, the last iterate: what a training step would be made of.

    step_size: in pixel units, eps / 4 by default. path: attacked in the place of the model, e.g. `Anatomy.path`; it has
    to run that very model. on_progress: told (images done, images in all).
    """
    attack = partial(pgd, threat=threat, steps=steps, step_size=step_size or threat.eps / 4)
    found = []
    with frozen(model) as classify:
        for index in torch.arange(len(images)).split(batch_size):
            x, y = images.batch(index)
            found.append((x, attack(path or classify, x, y, draws=Draws(seed, index.to(x.device))), y))
            on_progress(int(index[-1]) + 1, len(images))
    x, x_adv, y = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Crafted(x=x, x_adv=x_adv, y=y, threat=threat, steps=steps)
