"""The four claims of the paper's poster about why the sphere helps adversarial training, each put to a test.

Two are about FN, and are tested within one network, by switching FN on and off on the way to the loss. The other two
compare a network with a baseline; they speak of these two networks, and of WN or AM alone only if nothing else differs
between them. "Seen" means that the whole 95 % interval lies on the side of the claim; everything else is "not seen".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advsphere.analysis.angles import Angles
from advsphere.analysis.balance import ENOUGH, Balance, relief
from advsphere.analysis.feature_normalization import FewSteps
from advsphere.analysis.hard_examples import GROUPS, Hardness
from advsphere.errors import UserError
from advsphere.stats import PairedDifference, bootstrap

Answer = Literal["seen", "not seen", "not tested"]
Key = Literal["effective", "hard", "balance", "margin"]

STATEMENTS: dict[Key, str] = {
    "effective": "FN makes perturbations more effective",
    "hard": "FN learns better from hard adversarial examples",
    "balance": "WN alleviates the class imbalance of untargeted AT",
    "margin": "AM increases the inter-class margin",
}
NEEDS_A_PAIR = "needs a baseline to compare with: a network without the sphere, or without that part of it"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A difference, positive where the claim has it, with its 95 % interval. clear: +1 where the interval (and the
    test, where there is one) say that it is positive, -1 that it is negative, 0 that the sample cannot tell.
    """

    what: str
    value: float
    low: float
    high: float
    unit: str
    clear: int

    def __str__(self) -> str:
        return f"{self.what}: {self.value:+.3g} {self.unit} ({self.low:+.3g} to {self.high:+.3g})"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """detail: what was compared, and what came of it, in a sentence or two."""

    key: Key
    answer: Answer
    detail: str
    evidence: tuple[Evidence, ...] = ()

    @property
    def statement(self) -> str:
        return STATEMENTS[self.key]


def effective(found: FewSteps) -> Claim:
    """Claim 1: the same steps from the same starts fool more images with FN on the attack's path, judged by the
    untouched network. Seen only if so for each number of steps.
    """
    evidence = tuple(_points(f"images fooled by PGD-{k}", found.gain(k)) for k in found.steps)
    best = []
    for k in found.steps:
        on, off = (100 * found.strongest(k, fn=fn).accuracy for fn in (True, False))
        best.append(f"PGD-{k} {on:.1f} % with and {off:.1f} % without")
    detail = (
        "FN on and off on the attack's path; the same network, starts and steps. At its strongest logit scale each "
        f"leaves: {', '.join(best)}. So far as these are equal, a gain at the network's own scale is due to the scale."
    )
    return _claim("effective", evidence, detail)


def hard(found: Hardness, *, seed: int = 0) -> Claim:
    """Claim 2: the hardest fifth of the adversarial examples has a larger share of the gradients with FN."""
    gain = found.gain(seed=seed)
    on, off = (100 * found.share(GROUPS - 1, fn=fn) for fn in (True, False))
    evidence = Evidence(
        what="share of the hardest fifth in the gradient norms",
        value=100 * gain.value,
        low=100 * gain.low,
        high=100 * gain.high,
        unit="points",
        clear=_side(gain.low, gain.high),
    )
    detail = (
        f"Of the norms of {len(found.margin)} adversarial examples' own gradients, the hardest fifth (by angular "
        f"margin) has {on:.1f} % with FN on the way to the loss and {off:.1f} % without, in the same network."
    )
    return _claim("hard", (evidence,), detail)


def balanced(baseline: Balance | None, method: Balance, *, seed: int = 0) -> Claim:
    """Claim 3: what adversarial examples are taken for varies less between classes than in the baseline."""
    if baseline is None:
        return Claim(key="balance", answer="not tested", detail=NEEDS_A_PAIR)
    if not (baseline.enough and method.enough):
        few = f"needs at least {ENOUGH} fooled images for each of the {len(method.classes)} classes"
        return Claim(key="balance", answer="not tested", detail=few)
    found = relief(baseline, method, seed=seed)
    evidence = Evidence(
        what="fall of the variation between classes",
        value=found.value,
        low=found.low,
        high=found.high,
        unit="of the mean",
        clear=_side(found.low, found.high),
    )
    detail = (
        "How often a class is what adversarial examples are taken for varies between classes by "
        f"{100 * method.value:.0f} % of the mean, in the baseline by {100 * baseline.value:.0f} %."
    )
    return _claim("balance", (evidence,), detail)


def margins(baseline: tuple[Angles, Angles] | None, method: tuple[Angles, Angles], *, seed: int = 0) -> Claim:
    """Claim 4: the mean angular margin is larger than in the baseline, on clean images and on adversarial ones. Each
    network as (clean, adversarial). Raises UserError where the images are not the same.
    """
    if baseline is None:
        return Claim(key="margin", answer="not tested", detail=NEEDS_A_PAIR)
    evidence, means = [], []
    for what, old, new in zip(("clean", "adversarial"), baseline, method, strict=True):
        if not torch.equal(old.labels, new.labels):
            raise UserError("the two networks were examined on different images; give both the same")
        gain = new.margin - old.margin
        found = bootstrap(_mean_of(gain), len(gain), seed=seed)
        means.append(
            f"{what} images {float(new.margin.mean()):.1f} degrees, in the baseline {float(old.margin.mean()):.1f}"
        )
        evidence.append(
            Evidence(
                what=f"mean angular margin, {what} images",
                value=found.value,
                low=found.low,
                high=found.high,
                unit="degrees",
                clear=_side(found.low, found.high),
            )
        )
    detail = f"How much farther the nearest other class is than the label's, on average: {'; '.join(means)}."
    return _claim("margin", evidence, detail)


def _mean_of(values: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda weights: weights @ values.double() / weights.sum(1)


def _points(what: str, found: PairedDifference) -> Evidence:
    clear = 0 if found.cannot_tell else (1 if found.difference > 0 else -1)
    return Evidence(
        what=what, value=100 * found.difference, low=100 * found.low, high=100 * found.high, unit="points", clear=clear
    )


def _side(low: float, high: float) -> int:
    return (low > 0) - (high < 0)


def _claim(key: Key, evidence: Sequence[Evidence], detail: str) -> Claim:
    sides = {e.clear for e in evidence}
    if sides == {1}:
        return Claim(key=key, answer="seen", detail=detail, evidence=tuple(evidence))
    why = {
        frozenset({0}): "The sample cannot tell.",
        frozenset({-1}): "The opposite is seen.",
        frozenset({-1, 0}): "Where the sample tells, the opposite is seen.",
    }.get(frozenset(sides), "It holds in part of the comparisons only.")
    return Claim(key=key, answer="not seen", detail=f"{why} {detail}", evidence=tuple(evidence))
