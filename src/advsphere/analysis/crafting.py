"""Adversarial examples as a training step would craft them, and the sample of images that an analysis uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from advsphere.attacks import pgd
from advsphere.classifier import Classifier, frozen
from advsphere.data import Images
from advsphere.rng import Rng, permutation
from advsphere.threat import ThreatModel

STEPS = 10

OnProgress = Callable[[int, int], None]
"""Called with (done, total)."""


def silent(done: int, total: int) -> None:
    """Report no progress."""


def sample_positions(count: int, most: int | None, *, seed: int) -> Tensor:
    """(n,) int64, in order: all of `count` positions, or a random sample of `most` if there are more."""
    if most is None or most >= count:
        return torch.arange(count)
    return permutation(count, seed=seed, epoch=0, purpose="a look")[:most].sort().values


@dataclass(frozen=True, eq=False, kw_only=True)
class Crafted:
    """Clean images `x` beside adversarial ones `x_adv`, both (N, C, H, W) in [0, 1], with their labels `y` (N,)."""

    x: Tensor
    x_adv: Tensor
    y: Tensor
    threat: ThreatModel

    def few(self, n: int) -> Crafted:
        """n of them at equal distances, so that no class is left out if the images are sorted by class."""
        total = len(self.y)
        index = torch.arange(min(n, total), device=self.y.device) * total // min(n, total)
        return replace(self, x=self.x[index], x_adv=self.x_adv[index], y=self.y[index])


def craft(
    model: nn.Module,
    images: Images,
    *,
    threat: ThreatModel,
    index: Tensor | None = None,
    steps: int = STEPS,
    path: Classifier | None = None,
    seed: int = 0,
    batch_size: int = 250,
    on_progress: OnProgress = silent,
) -> Crafted:
    """Craft as in training: PGD with steps of eps / 4 from a uniform start, without early stopping, last iterate.

    `index` selects examples, by default all. If `path` is given, such as `HeadParts.path`, it is attacked instead of
    the model. It must run the same model.
    """
    attack = partial(pgd, threat=threat, steps=steps, step_size=threat.eps / 4)
    index, found = torch.arange(len(images)) if index is None else index, []
    with frozen(model) as classify:
        for part in index.split(batch_size):
            x, y = images.batch(part)
            found.append((x, attack(path or classify, x, y, rng=Rng(seed, part.to(x.device))), y))
            on_progress(sum(len(labels) for _, _, labels in found), len(index))
    x, x_adv, y = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Crafted(x=x, x_adv=x_adv, y=y, threat=threat)
