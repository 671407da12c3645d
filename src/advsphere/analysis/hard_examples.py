"""What a training step learns from: the share of hard adversarial examples in the gradients of the weights.

Without FN, an image speaks as loudly as the norm of its features allows; with FN, the gradient that reaches the
features is divided by that norm, so images whose features are short are not drowned. Claimed: hard ones are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from advsphere.analysis.angles import HeadParts, measure
from advsphere.analysis.canvas import SERIES, SOFT, canvas, legend, quiet
from advsphere.attacks import pgd
from advsphere.classifier import Classifier, frozen
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.losses import cross_entropy
from advsphere.rng import Rng
from advsphere.stats import Estimate, bootstrap
from advsphere.threat import ThreatModel

# FOLDED crafted: Clean images with adversarial ones beside them, crafted as adversarial training would.

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

    step_size: in pixel units, eps / 4 by default. path: attacked instead of the model, e.g. `HeadParts.path`; it has
    to run that very model. on_progress: told (images done, images in all).
    """
    attack = partial(pgd, threat=threat, steps=steps, step_size=step_size or threat.eps / 4)
    found = []
    with frozen(model) as classify:
        for index in torch.arange(len(images)).split(batch_size):
            x, y = images.batch(index)
            found.append((x, attack(path or classify, x, y, rng=Rng(seed, index.to(x.device))), y))
            on_progress(int(index[-1]) + 1, len(images))
    x, x_adv, y = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Crafted(x=x, x_adv=x_adv, y=y, threat=threat, steps=steps)


if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUPS = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Hardness:
    """Of N adversarial examples, float64 on the CPU: the angular `margin` in degrees (the lower, the harder), the
    `norms` of their features, and the norm of each one's own gradient of the cross-entropy with respect to all weights
    in front of the head, with FN on the way (`with_fn`) and without it (`without_fn`).
    """

    margin: Tensor
    norms: Tensor
    with_fn: Tensor
    without_fn: Tensor

    @property
    def quintile(self) -> Tensor:
        """(N,) 0 for the easiest fifth of the examples to 4 for the hardest, by angular margin: neither FN nor the
        scale enters it, so both ways have the same fifths.
        """
        rank = self.margin.argsort(descending=True, stable=True).argsort()
        return rank * GROUPS // len(rank)

    def share(self, quintile: int, *, fn: bool) -> float:
        """Of all gradient norms, the part that a fifth of the examples has; the five add up to 1."""
        norms = self.with_fn if fn else self.without_fn
        return float(norms[self.quintile == quintile].sum() / norms.sum())

    def gain(self, *, seed: int = 0) -> Estimate:
        """By how much FN raises the share of the hardest fifth, with an interval over the examples."""
        hardest = (self.quintile == GROUPS - 1).double()

        def difference(weights: Tensor) -> Tensor:
            on, off = ((weights @ (g * hardest)) / (weights @ g) for g in (self.with_fn, self.without_fn))
            return on - off

        return bootstrap(difference, len(self.margin), seed=seed)


def check_count(n: int) -> None:
    """Raises UserError where n examples are too few for fifths of them."""
    if n < 2 * GROUPS:
        raise UserError(f"fifths of {n} examples say nothing; give at least {2 * GROUPS} images")


def hardness(
    anatomy: HeadParts, crafted: Crafted, *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Hardness:
    """Each adversarial example's own gradient, one after the other, in eval mode (with the statistics of a batch an
    example would have no gradient of its own). Gradients that the model holds stay. Raises UserError for fewer than ten
    examples, and for a network whose weights take no gradient.
    """
    check_count(len(crafted.y))
    model = anatomy.model
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights:
        raise UserError(f"the weights of this {type(model).__name__} take no gradient; call requires_grad_(True)")
    angles = measure(anatomy, crafted.x_adv, crafted.y, tuple(map(str, range(len(anatomy.weight)))))
    found = torch.zeros(2, len(crafted.y), dtype=torch.float64)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for i in range(len(crafted.y)):
            found[:, i] = _norms(anatomy, weights, crafted.x_adv[i : i + 1], crafted.y[i : i + 1])
            on_progress(i + 1, len(crafted.y))
    finally:
        for module, training in modes:
            module.training = training
    return Hardness(margin=angles.margin, norms=angles.norms.double(), with_fn=found[0], without_fn=found[1])


def _norms(anatomy: HeadParts, weights: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """(2,) the norm of one example's gradient with FN on the way, and without."""
    norms = []
    with torch.enable_grad():
        z = anatomy.features(x)
        for fn in (True, False):
            loss = cross_entropy(anatomy.logits(z, fn=fn), y).sum()
            gradients = torch.autograd.grad(loss, weights, retain_graph=fn, allow_unused=True)
            parts = [g.double().square().sum() for g in gradients if g is not None]
            norms.append(torch.stack(parts).sum().sqrt())
    return torch.stack(norms).cpu()


def hardness_figure(found: Mapping[str, Hardness]) -> Figure:
    """By the networks' names: the share of each fifth of the examples with FN and without, and the norms behind it."""
    figure, axes = canvas(9.2, 2.9 * len(found), len(found), 2)
    fifths = ("easiest", "2nd", "3rd", "4th", "hardest")
    for row, (name, one) in enumerate(found.items()):
        left, right = axes[2 * row : 2 * row + 2]
        for i, fn in enumerate((False, True)):
            shares = [100 * one.share(q, fn=fn) for q in range(GROUPS)]
            places = [q + 0.38 * (i - 0.5) for q in range(GROUPS)]
            label, colour = ("with FN", SERIES[0]) if fn else ("without FN", SOFT)
            bars = left.bar(places, shares, width=0.36, color=colour, label=label)
            left.bar_label(bars, fmt="%.0f", color=SOFT, fontsize=7.5, padding=1)
        left.axhline(100 / GROUPS, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
        left.set_xticks(range(GROUPS), fifths)
        quiet(left, "fifths of the adversarial examples, by angular margin", "share of gradient norm, %", title=name)
        legend(left, loc="upper left")
        right.scatter(one.margin.tolist(), (one.norms / one.norms.mean()).tolist(), s=7, color=SERIES[0], alpha=0.45,
                      linewidths=0)  # fmt: skip
        right.axvline(0, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
        quiet(right, "angular margin, degrees (harder to the left)", "||z|| over its mean")
        right.set_ylim(bottom=0)
    return figure
