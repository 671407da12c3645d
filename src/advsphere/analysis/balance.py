"""The classes that adversarial examples are predicted as: all other classes equally often, or a few preferred ones.

An untargeted attack takes the easiest direction, which leads to classes with long weight vectors. In adversarial
training some classes are then targets much more often than others. WN, weight normalisation, gives all weight vectors
the same length. The paper claims that this alleviates the imbalance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from advsphere.analysis.canvas import LINE, NAMED, canvas, legend, quiet, reference, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENOUGH = 5
"""Average number of wrong predictions per class that the analysis needs."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Balance:
    """Adversarial examples with their `labels` and `predictions`, (N,) int64.

    `lengths` (K,) are the lengths of the class weights as they act on the logits, all s if the network has WN.
    """

    classes: tuple[str, ...]
    labels: Tensor
    predictions: Tensor
    lengths: Tensor

    @property
    def enough(self) -> bool:
        return int((self.predictions != self.labels).sum()) >= ENOUGH * len(self.classes)

    def rates(self, weights: Tensor) -> Tensor:
        """The share of images of other classes that are predicted as each class: counts of images (R, N) -> (R, K)."""
        labels, predictions = (F.one_hot(t, len(self.classes)).double() for t in (self.labels, self.predictions))
        wrong = predictions * (self.predictions != self.labels).double()[:, None]
        return (weights @ wrong) / (weights @ (1 - labels)).clamp(min=1e-12)

    def imbalance(self, weights: Tensor) -> Tensor:
        """The coefficient of variation of the rates, 0 if all classes are equal: (R, N) -> (R,)."""
        rates = self.rates(weights)
        return rates.std(1, correction=0) / rates.mean(1).clamp(min=1e-12)

    @property
    def once(self) -> Tensor:
        """(1, N) weights that count each image once."""
        return torch.ones(1, len(self.labels), dtype=torch.float64)

    @property
    def value(self) -> float:
        return float(self.imbalance(self.once))


def balance_figure(found: Mapping[str, Balance]) -> Figure:
    """The rates at which each network, by name, predicts adversarial examples as each class, by class and by the length
    of the class's weights.
    """
    first = next(iter(found.values()))
    named = len(first.classes) <= NAMED
    figure, (left, right) = canvas(9.2, 3.4, columns=2, width_ratios=(1.45, 1))
    percent = {name: 100 * one.rates(one.once)[0] for name, one in found.items()}
    order = next(iter(percent.values())).argsort(descending=True).tolist()
    for i, (name, one) in enumerate(found.items()):
        (colour, marker), rates = style(i), percent[name]
        look = {"marker": marker, "markersize": 6, "linewidth": 0} if named else {"linewidth": 1.0}
        left.plot(rates[order].tolist(), color=colour, alpha=0.9, label=f"{name}: variation {one.value:.2f}", **look)
        reference(left, y=float(rates.mean()), colour=colour)
        right.scatter((one.lengths / one.lengths.mean()).tolist(), rates.tolist(), color=colour, marker=marker, s=22)
    if named:
        left.set_xticks(range(len(order)), [first.classes[k] for k in order], parse_math=False)
        if max(map(len, first.classes)) > 4:
            left.tick_params(axis="x", labelrotation=35)
        highest = torch.stack([*percent.values()]).amax(0)[order].tolist()
        left.vlines(range(len(order)), 0, highest, color=LINE, linewidth=0.7, zorder=0)
    else:
        left.set_xticks([])
    left.set_ylim(bottom=0)
    reference(right, x=1)
    right.set_ylim(left.get_ylim())
    quiet(left, "" if named else "classes, sorted", "adversarial examples of other\nclasses predicted as it, %")
    quiet(right, "length of the class's weights, divided by their mean", "")
    legend(left)
    return figure
