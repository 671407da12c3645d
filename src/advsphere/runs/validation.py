"""What a run measures after an epoch, on training images that are held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advsphere.attacks import fgsm, pgd
from advsphere.classifier import Classifier, fooled, frozen
from advsphere.data import Images
from advsphere.distributed import World
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from advsphere.training import Metrics
from advsphere.training.guard import FGSM, IMAGES, PGD

CANARY = 200
"""Images of the guard's canary, at most."""
ONE_STEP, TEN_STEPS = 3, 23
"""Forward and backward passes of one image, at most: FGSM and PGD-10, each with a forward that judges its result."""


@dataclass(frozen=True)
class Validation:
    """Clean and PGD-10 accuracy on held-out training images, which choose the best checkpoint, and the guard's canary.

    PGD-10 takes steps of eps / 4 from a uniform start, with the same random numbers in every epoch. The processes share
    the images, and each gets the total counts.

    Attributes:
        images: The held-out images.
        threat: The threat model of the attack.
        dtype: The precision to compute in; None for float32.
        batch_size: The number of images attacked at once.
        record: A function that computes further metrics of the model on these images, on the first process only.
        world: The processes that train together.
    """

    images: Images
    threat: ThreatModel
    dtype: torch.dtype | None
    batch_size: int = 500
    record: Callable[[nn.Module, Images], Metrics] = lambda model, images: {}
    world: World = World()

    def __call__(self, model: nn.Module) -> Metrics:
        n, correct, robust = len(self.images), 0, 0
        with frozen(model, dtype=self.dtype, fold=True) as classify:
            for index in self._mine(n):
                x, y = self.images.batch(index)
                with torch.no_grad():
                    right = ~fooled(classify(x), y)
                correct += int(right.sum())
                robust += self._resisting(classify, x[right], y[right], index.to(right.device)[right])
        correct, robust = self.world.sum(torch.tensor([correct, robust])).tolist()
        metrics = {"clean": correct / n, "robust": robust / n}
        return metrics | self.record(model, self.images) if self.world.first else metrics

    def canary(self, model: nn.Module, passes: int, robust: float | None) -> Metrics:
        """Accuracy under FGSM and then PGD-10 on as many images as so many passes allow, see `training.Hooks`."""
        n = min(len(self.images), CANARY, passes // (ONE_STEP if robust is not None else ONE_STEP + TEN_STEPS))
        if n == 0:
            return {}
        resist, left = 0, 0
        with frozen(model, dtype=self.dtype, fold=True) as classify:
            for index in self._mine(n):
                x, y = self.images.batch(index)
                x_adv = fgsm(classify, x, y, threat=self.threat)
                with torch.no_grad():
                    stands = ~fooled(classify(x_adv), y)
                resist += int(stands.sum())
                if robust is None:
                    left += self._resisting(classify, x[stands], y[stands], index.to(stands.device)[stands])
        resist, left = self.world.sum(torch.tensor([resist, left])).tolist()
        return {FGSM: resist / n, PGD: left / n if robust is None else robust, IMAGES: float(n)}

    def _mine(self, n: int) -> Sequence[Tensor]:
        """The batches of the first n images that this process attacks."""
        mine = torch.arange(n)[self.world.share(n)]
        return mine.split(self.batch_size) if len(mine) else ()

    def _resisting(self, classify: Classifier, x: Tensor, y: Tensor, index: Tensor) -> int:
        """How many of these images, with these numbers, resist PGD-10."""
        if len(x) == 0:
            return 0
        threat = self.threat
        with torch.no_grad():
            x_adv = pgd(
                classify, x, y, threat=threat, steps=10, step_size=threat.eps / 4, until_fooled=True, rng=Rng(0, index)
            )
            return int((~fooled(classify(x_adv), y)).sum())
