"""The share of hard adversarial examples in the gradients of the weights, with FN and without.

Without FN, the weight of an image in a training step grows with the norm of its features. With FN, the gradient that
reaches the features is divided by that norm, so images with short features keep their weight. The paper claims that
these are the hard ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advsphere.analysis.angles import measure_angles
from advsphere.analysis.canvas import SERIES, SOFT, canvas, legend, quiet, reference
from advsphere.analysis.crafting import Crafted, OnProgress, silent
from advsphere.analysis.gradients import gradient_norm
from advsphere.analysis.linear_head import HeadParts
from advsphere.calling import in_mode
from advsphere.errors import UserError
from advsphere.losses import cross_entropy
from advsphere.stats import Estimate, bootstrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUPS = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Hardness:
    """N adversarial examples, (N,) each on the CPU.

    `margin` is the angular margin in degrees: the lower, the harder. `norms` are the norms of the features. `with_fn`
    and `without_fn` are the norms of each example's own gradient of the cross-entropy with respect to all weights in
    front of the head.
    """

    margin: Tensor
    norms: Tensor
    with_fn: Tensor
    without_fn: Tensor

    @property
    def quintile(self) -> Tensor:
        """(N,) from 0 (easiest fifth) to 4 (hardest), by angular margin, which does not depend on FN and scale."""
        rank = self.margin.argsort(descending=True, stable=True).argsort()
        return rank * GROUPS // len(rank)

    def share(self, quintile: int, *, fn: bool) -> float:
        """The share of a fifth of the examples in the sum of all gradient norms; the five shares add up to 1."""
        norms = self.with_fn if fn else self.without_fn
        return float(norms[self.quintile == quintile].sum() / norms.sum())

    def gain(self, *, seed: int = 0) -> Estimate:
        """The increase in the share of the hardest fifth through FN, with an interval over the examples."""
        hardest = (self.quintile == GROUPS - 1).double()

        def difference(weights: Tensor) -> Tensor:
            on, off = ((weights @ (g * hardest)) / (weights @ g) for g in (self.with_fn, self.without_fn))
            return on - off

        return bootstrap(difference, len(self.margin), seed=seed)


def check_count(n: int) -> None:
    """Raise UserError if n examples are too few to divide into fifths."""
    if n < 2 * GROUPS:
        raise UserError(f"{n} examples are too few to divide into fifths; give at least {2 * GROUPS} images")


def hardness(parts: HeadParts, crafted: Crafted, *, on_progress: OnProgress = silent) -> Hardness:
    """Per-example gradients in eval mode. Raises UserError for under ten examples, or weights without gradient."""
    check_count(len(crafted.y))
    model = parts.model
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights:
        raise UserError(f"the weights of this {type(model).__name__} take no gradient; call requires_grad_(True)")
    angles = measure_angles(parts, crafted.x_adv, crafted.y, tuple(map(str, range(len(parts.weight)))))
    found = torch.zeros(2, len(crafted.y), dtype=torch.float64)
    with in_mode(model, train=False), torch.enable_grad():
        for i in range(len(crafted.y)):
            z = parts.features(crafted.x_adv[i : i + 1])
            for row, fn in enumerate((True, False)):
                loss = cross_entropy(parts.logits(z, fn=fn), crafted.y[i : i + 1]).sum()
                found[row, i] = gradient_norm(torch.autograd.grad(loss, weights, retain_graph=fn, allow_unused=True))
            on_progress(i + 1, len(crafted.y))
    return Hardness(margin=angles.margin, norms=angles.norms.double(), with_fn=found[0], without_fn=found[1])


def hardness_figure(found: Mapping[str, Hardness]) -> Figure:
    """A row for each network: the share of each fifth of the examples with FN and without, and the feature norms."""
    figure, axes = canvas(9.2, 2.9 * len(found), len(found), 2)
    for row, (name, one) in enumerate(found.items()):
        left, right = axes[2 * row : 2 * row + 2]
        for fn, label, colour in ((False, "without FN", SOFT), (True, "with FN", SERIES[0])):
            shares = [100 * one.share(q, fn=fn) for q in range(GROUPS)]
            places = [q + (0.19 if fn else -0.19) for q in range(GROUPS)]
            bars = left.bar(places, shares, width=0.36, color=colour, label=label)
            left.bar_label(bars, fmt="%.0f", color=SOFT, fontsize=7.5, padding=1)
        reference(left, y=100 / GROUPS)
        left.set_xticks(range(GROUPS), ("easiest", "2nd", "3rd", "4th", "hardest"))
        quiet(left, "fifths of the adversarial examples, by angular margin", "share of gradient norm, %", title=name)
        legend(left, loc="upper left")
        norms = (one.norms / one.norms.mean()).tolist()
        right.scatter(one.margin.tolist(), norms, s=7, color=SERIES[0], alpha=0.45, linewidths=0)
        reference(right, x=0)
        quiet(right, "angular margin, degrees (harder to the left)", "||z|| divided by its mean")
        right.set_ylim(bottom=0)
    return figure
