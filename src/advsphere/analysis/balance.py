"""What adversarial examples are taken for: all other classes alike, or a few again and again.

An untargeted attack goes where resistance is least, which is towards classes whose weights are long: adversarial
training then sees some classes as targets much more often than others. WN, weight normalisation, makes them all equally
long. It claims to alleviate that imbalance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from advsphere.analysis.angles import NAMED, Angles
from advsphere.analysis.canvas import LINE, MARKERS, SERIES, SOFT, canvas, legend, quiet
from advsphere.errors import UserError
from advsphere.stats import Estimate, bootstrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENOUGH = 5
"""Fewer wrong predictions than this for each class, on average, say nothing about which classes are preferred."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Balance:
    """classes: their names. labels, predictions: (N,) int64, of adversarial examples. lengths: (K,) of the classes'
    weights, as they act on the logits: all s where the network has WN.
    """

    classes: tuple[str, ...]
    labels: Tensor
    predictions: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, adversarial: Angles, weight: Tensor) -> Balance:
        """From the angles of adversarial examples, and the network's (K, D) weight."""
        return cls(
            classes=adversarial.classes,
            labels=adversarial.labels,
            predictions=adversarial.predictions,
            lengths=weight.norm(dim=1).cpu(),
        )

    @property
    def enough(self) -> bool:
        return int((self.predictions != self.labels).sum()) >= ENOUGH * len(self.classes)

    def rates(self, weights: Tensor) -> Tensor:
        """How often each class is predicted wrongly, over the images of other classes; (R, N) how often each image
        counts -> (R, K).
        """
        labels, predictions = (F.one_hot(t, len(self.classes)).double() for t in (self.labels, self.predictions))
        wrong = predictions * (self.predictions != self.labels).double()[:, None]
        return (weights @ wrong) / (weights @ (1 - labels)).clamp(min=1e-12)

    def imbalance(self, weights: Tensor) -> Tensor:
        """The coefficient of variation of the rates, their standard deviation over their mean: 0 where all classes are
        alike; (R, N) -> (R,).
        """
        rates = self.rates(weights)
        return rates.std(1, correction=0) / rates.mean(1).clamp(min=1e-12)

    @property
    def value(self) -> float:
        """The imbalance of these examples."""
        return float(self.imbalance(torch.ones(1, len(self.labels), dtype=torch.float64)))


def relief(baseline: Balance, method: Balance, *, seed: int = 0) -> Estimate:
    """By how much the method's imbalance is below the baseline's, with an interval over the images, which must be the
    same for both. Raises UserError where they are not.
    """
    if not torch.equal(baseline.labels, method.labels):
        raise UserError("the two networks were examined on different images; give both the same")
    return bootstrap(lambda w: baseline.imbalance(w) - method.imbalance(w), len(method.labels), seed=seed)


def balance_figure(found: Mapping[str, Balance]) -> Figure:
    """By the networks' names: how often each class is what an adversarial example is taken for; and how that goes with
    the length of its weights.
    """
    first = next(iter(found.values()))
    named = len(first.classes) <= NAMED
    figure, (left, right) = canvas(9.2, 3.4, columns=2, width_ratios=(1.45, 1))
    percent = {
        name: 100 * one.rates(torch.ones(1, len(one.labels), dtype=torch.float64))[0] for name, one in found.items()
    }
    order = percent[next(iter(found))].argsort(descending=True).tolist()
    for i, (name, one) in enumerate(found.items()):
        colour, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
        rates = percent[name]
        look = {"marker": marker, "markersize": 6, "linewidth": 0} if named else {"linewidth": 1.0}
        left.plot(rates[order].tolist(), color=colour, alpha=0.9, label=f"{name}: variation {one.value:.2f}", **look)
        left.axhline(float(rates.mean()), color=colour, linewidth=0.8, linestyle=(0, (2, 3)))
        right.scatter((one.lengths / one.lengths.mean()).tolist(), rates.tolist(), color=colour, marker=marker, s=22)
    if named:
        left.set_xticks(range(len(order)), [first.classes[k] for k in order], parse_math=False)
        if max(map(len, first.classes)) > 4:
            left.tick_params(axis="x", labelrotation=35)
        left.vlines(range(len(order)), 0, [max(float(p[k]) for p in percent.values()) for k in order], color=LINE,
                    linewidth=0.7, zorder=0)  # fmt: skip
    else:
        left.set_xticks([])
    left.set_ylim(bottom=0)
    right.axvline(1, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    right.set_ylim(left.get_ylim())
    quiet(left, "" if named else "classes, sorted", "adversarial examples of other\nclasses taken for it, %")
    quiet(right, "length of the class's weights, over their mean", "")
    legend(left)
    return figure
