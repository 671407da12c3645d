"""The guard against catastrophic overfitting: its sign after an epoch, and what is done about it.

A network that is trained on one large step may learn to resist that step alone, within a few batches: it resists FGSM
and falls to PGD (Wong et al. 2020, arXiv 2001.03994; Andriushchenko & Flammarion 2020, arXiv 2007.02617).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any, Literal, NamedTuple

from advsphere.objectives import NFGSM, PGDAT, FastAT, Objective
from advsphere.stats import more_than
from advsphere.threat import ThreatModel

Guarding = Literal["remedy", "stop", "off"]

FGSM, PGD, IMAGES = "canary_fgsm", "canary_pgd", "canary_images"
"""The metrics of the canary: accuracy under FGSM and under PGD-10 on held-out images, and their number."""

COST = 0.03
"""The canary's passes, as a share of those of the training in the same epoch."""

FALLEN = 1 / 2
"""Of the images that resist FGSM, the share that may fall to PGD. It is about a tenth on healthy networks at 8/255, up
to a third at larger radii, and 0.8 or more after a collapse (docs/overfitting.md).
"""

ALARM = 0.8
"""Confidence of the test of that share. A false alarm costs an epoch and noise; a collapse that is missed, the network.
"""

MOST = 3
"""Remedies in one run. After one more collapse training stops."""


class Collapse(NamedTuple):
    """A collapse, and what the guard did.

    Attributes:
        epoch: The epoch after which it was seen, from 1.
        back_to: The epoch whose end training went back to, the last one that looked sound; 0 for the start.
        fgsm: Accuracy under FGSM on held-out images.
        pgd: Accuracy under PGD-10.
        remedy: What training went on with; "" if it stopped.
    """

    epoch: int
    back_to: int
    fgsm: float
    pgd: float
    remedy: str

    def __str__(self) -> str:
        seen = f"FGSM {self.fgsm:.1%}, PGD-10 {self.pgd:.1%} on held-out images"
        done = f"went on with {self.remedy}" if self.remedy else "stopped"
        where = f"the end of epoch {self.back_to}" if self.back_to else "the start"
        return f"catastrophic overfitting in epoch {self.epoch} ({seen}): went back to {where} and {done}"


def watched(objective: Objective) -> bool:
    """Whether an objective trains against a threat model. Only then may a network overfit to its attack."""
    return isinstance(getattr(objective, "threat", None), ThreatModel)


def affordable(objective: Objective, images: int) -> int:
    """The forward and backward passes of one image that the canary may take after an epoch of so many images.

    An objective takes at least one of each for every step of crafting and for the weights.
    """
    steps = getattr(objective, "steps", 1 if isinstance(objective, NFGSM) else 0)
    return int(COST * images * 2 * (steps + 1) * objective.replays)


class Suspicion(NamedTuple):
    """Counts of the canary, summed over the epochs since the network last looked sound.

    A single epoch of a small data set tells too little. Where it looks unsound several times, the sum tells.

    Attributes:
        images: Images that were attacked.
        resist: Images that resisted FGSM.
        left: Images that resisted PGD too.
    """

    images: int = 0
    resist: int = 0
    left: int = 0

    def after(self, metrics: Mapping[str, float]) -> Suspicion:
        """The suspicion after one more epoch: none if at least half of what resists FGSM resists PGD too."""
        n = round(metrics.get(IMAGES, 0))
        resist, left = (round(n * metrics.get(name, 0)) for name in (FGSM, PGD))
        if left >= FALLEN * resist:
            return Suspicion()
        return Suspicion(self.images + n, self.resist + resist, self.left + left)

    def collapsed(self, classes: int) -> bool:
        """Whether the network resists FGSM better than chance, and most of what resists FGSM falls to PGD."""
        above_chance = more_than(self.resist, self.images, 1 / classes)
        return above_chance and more_than(self.resist - self.left, self.resist, FALLEN, ALARM)


def collapsed(metrics: Mapping[str, float], classes: int) -> bool:
    """Whether the metrics of a single canary show a collapse."""
    return Suspicion().after(metrics).collapsed(classes)


class Remedied(NamedTuple):
    """The objective after a collapse, and the change in words."""

    objective: Objective
    words: str


def remedied(objective: Objective, collapses: int) -> Remedied | None:
    """The objective after so many collapses; None if there is no further remedy.

    Training on one step goes on with the noise of N-FGSM, and this with several steps. Other training halves its steps
    and takes twice as many: with the same number it would train for a smaller radius, and collapse at the whole one.
    """
    if collapses > MOST:
        return None
    words = ""
    for _ in range(collapses):
        given: Any = objective
        if type(objective) in (PGDAT, FastAT) and given.steps == 1:
            objective = NFGSM(threat=given.threat, mode=given.mode)
            words = f"the noise of N-FGSM ({objective.noise:g} eps)"
        elif isinstance(objective, NFGSM):
            size = given.threat.eps / 2
            objective = PGDAT(threat=given.threat, steps=4, step_size=size, start="uniform", mode=given.mode)
            words = f"4 steps of PGD of {size:.4g}"
        elif isinstance(getattr(objective, "step_size", None), float) and is_dataclass(objective):
            more = {"steps": 2 * given.steps} if hasattr(objective, "steps") else {}
            objective = replace(objective, step_size=given.step_size / 2, **more)  # type: ignore[call-arg]
            words = f"{more.get('steps', '')} steps of {given.step_size / 2:.4g}".strip()
        else:
            return None
    return Remedied(objective, words)
