"""Tests of the four claims of the paper's poster about why the hypersphere helps adversarial training.

Two claims are about FN and are tested within one network, by switching FN on and off in front of the loss. The other
two compare a network with a baseline. They isolate WN or AM only if the two networks differ in nothing else. "Seen"
means that the whole 95 % interval supports the claim; everything else is "not seen".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from advsphere.analysis.angles import Angles
from advsphere.analysis.balance import ENOUGH, Balance
from advsphere.analysis.feature_normalization import FewSteps
from advsphere.analysis.hard_examples import GROUPS, Hardness
from advsphere.errors import UserError
from advsphere.stats import Estimate, bootstrap

Answer = Literal["seen", "not seen", "not tested"]
Key = Literal["effective", "hard", "balance", "margin"]

STATEMENTS: dict[Key, str] = {
    "effective": "FN makes perturbations more effective",
    "hard": "FN learns better from hard adversarial examples",
    "balance": "WN alleviates the class imbalance of untargeted AT",
    "margin": "AM increases the inter-class margin",
}
NEEDS_A_PAIR = "needs a baseline to compare with: a network without the hypersphere, or without that part of it"


@dataclass(frozen=True, kw_only=True)
class ClaimEvidence:
    """A difference with its 95 % interval, positive if the claim holds.

    `clear` is +1 if the interval (and the test, if there is one) shows a positive difference, -1 if it shows a negative
    one, and 0 if the sample is not conclusive.
    """

    what: str
    value: float
    low: float
    high: float
    unit: str
    clear: int

    @classmethod
    def of(cls, what: str, found: Estimate, unit: str, scale: float = 1.0) -> ClaimEvidence:
        """Make it from an estimate, whose interval decides."""
        value, low, high = (scale * number for number in (found.value, found.low, found.high))
        return cls(what=what, value=value, low=low, high=high, unit=unit, clear=(low > 0) - (high < 0))

    def __str__(self) -> str:
        return f"{self.what}: {self.value:+.3g} {self.unit} ({self.low:+.3g} to {self.high:+.3g})"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim and its answer; `detail` describes the comparison and its result."""

    key: Key
    answer: Answer
    detail: str
    evidence: tuple[ClaimEvidence, ...] = ()

    @property
    def statement(self) -> str:
        return STATEMENTS[self.key]


def effective(found: FewSteps) -> Claim:
    """Claim 1: an attack with FN on its path fools more images of the unchanged network, at each number of steps."""
    evidence, best = [], []
    for k in found.steps:
        gain = found.gain(k)
        estimate = Estimate(value=gain.difference, low=gain.low, high=gain.high)
        shown = ClaimEvidence.of(f"images fooled by PGD-{k}", estimate, "points", 100)
        evidence.append(replace(shown, clear=0) if gain.cannot_tell else shown)
        on, off = (100 * found.strongest(k, fn=fn).accuracy for fn in (True, False))
        best.append(f"PGD-{k} {on:.1f} % with and {off:.1f} % without")
    detail = (
        "Attacks with and without FN use the same network, starts and steps. Accuracy under each at its strongest "
        f"logit scale: {', '.join(best)}. If these are equal, a gain at the network's own scale is due to the scale."
    )
    return _answer("effective", evidence, detail)


def hard(found: Hardness, *, seed: int = 0) -> Claim:
    """Claim 2: the hardest fifth of the adversarial examples has a larger share of the gradients with FN."""
    gain = found.gain(seed=seed)
    on, off = (100 * found.share(GROUPS - 1, fn=fn) for fn in (True, False))
    detail = (
        f"The hardest fifth (by angular margin) of {len(found.margin)} adversarial examples has {on:.1f} % of the sum "
        f"of per-example gradient norms with FN and {off:.1f} % without, in the same network."
    )
    evidence = ClaimEvidence.of("share of the hardest fifth in the gradient norms", gain, "points", 100)
    return _answer("hard", [evidence], detail)


def balanced(baseline: Balance | None, method: Balance, *, seed: int = 0) -> Claim:
    """Claim 3: predictions of adversarial examples vary less between classes than in the baseline."""
    if baseline is None:
        return Claim(key="balance", answer="not tested", detail=NEEDS_A_PAIR)
    if not (baseline.enough and method.enough):
        few = f"needs at least {ENOUGH} fooled images for each of the {len(method.classes)} classes"
        return Claim(key="balance", answer="not tested", detail=few)
    _check_same(baseline.labels, method.labels)
    found = bootstrap(lambda w: baseline.imbalance(w) - method.imbalance(w), len(method.labels), seed=seed)
    detail = (
        "The rate at which adversarial examples are predicted as a class varies between classes by "
        f"{100 * method.value:.0f} % of the mean, in the baseline by {100 * baseline.value:.0f} %."
    )
    evidence = ClaimEvidence.of("fall of the variation between classes", found, "of the mean")
    return _answer("balance", [evidence], detail)


def margins(baseline: tuple[Angles, Angles] | None, method: tuple[Angles, Angles], *, seed: int = 0) -> Claim:
    """Claim 4: the mean angular margin exceeds the baseline's. Networks are given as (clean, adversarial)."""
    if baseline is None:
        return Claim(key="margin", answer="not tested", detail=NEEDS_A_PAIR)
    evidence, means = [], []
    for what, old, new in zip(("clean", "adversarial"), baseline, method, strict=True):
        _check_same(old.labels, new.labels)
        gain = (new.margin - old.margin).double()
        found = bootstrap(lambda w, gain=gain: w @ gain / w.sum(1), len(gain), seed=seed)
        evidence.append(ClaimEvidence.of(f"mean angular margin, {what} images", found, "degrees"))
        now, before = float(new.margin.mean()), float(old.margin.mean())
        means.append(f"{what} images {now:.1f} degrees, in the baseline {before:.1f}")
    detail = f"Mean angle by which the nearest other class is farther than the label's: {'; '.join(means)}."
    return _answer("margin", evidence, detail)


def _check_same(old: Tensor, new: Tensor) -> None:
    if not torch.equal(old, new):
        raise UserError("the two networks were examined on different images; give both the same")


def _answer(key: Key, evidence: Sequence[ClaimEvidence], detail: str) -> Claim:
    sides = {e.clear for e in evidence}
    if sides == {1}:
        return Claim(key=key, answer="seen", detail=detail, evidence=tuple(evidence))
    why = {
        frozenset({0}): "The sample cannot tell.",
        frozenset({-1}): "The opposite is seen.",
        frozenset({-1, 0}): "Where the sample can tell, the opposite is seen.",
    }.get(frozenset(sides), "It holds only in some of the comparisons.")
    return Claim(key=key, answer="not seen", detail=f"{why} {detail}", evidence=tuple(evidence))
