"""AutoAttack: the standard ensemble for robustness evaluations, made of the attacks of this package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from advsphere.attacks.auto_pgd import apgd, apgd_targeted
from advsphere.attacks.combine import Attack, prepared, restarts, worst_case
from advsphere.attacks.fast_adaptive_boundary import fab, fab_targeted
from advsphere.attacks.square_attack import square
from advsphere.classifier import Classifier, input_gradient
from advsphere.errors import UserError
from advsphere.losses import Loss, dlr, log_odds, margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from advsphere.typed import typed

Version = Literal["standard", "plus", "rand"]


@typed
def auto_attack(
    threat: ThreatModel, version: Version = "standard", *, steps: int = 100, queries: int = 5000, passes: int = 20
) -> Attack:
    """AutoAttack: the worst case of a fixed ensemble of attacks, each on the examples that still resist.

    - standard: APGD-CE, APGD-T (9 targets), FAB-T (9 targets) and Square. For l1, APGD-CE has 5 restarts, APGD-T has 5
      targets, and both use `multi_eps`.
    - plus: APGD-CE and APGD-DLR with 5 restarts each, FAB with 5 starts, Square, APGD-T and FAB-T.
    - rand, for randomised models: APGD-CE and APGD-DLR on the mean gradient of several forwards.

    Source: Croce & Hein 2020 (arXiv 2003.01690); for l1 Croce & Hein 2021 (arXiv 2103.01208). The settings are those of
    the official code (github.com/fra31/auto-attack). With other numbers of steps or queries it is not AutoAttack.

    Differs from the official code, which fails with few classes: there are at most K - 1 targets, DLR becomes the
    margin for K < 3, and the targeted DLR becomes a difference of logits for K < 4. FAB, in "plus", linearises only the
    10 most likely classes. Each attack documents its own differences.

    Args:
        threat: Norm, radius and bounds.
        version: "standard", "plus" or "rand".
        steps: Steps of APGD and FAB.
        queries: Queries of Square.
        passes: Forwards per gradient in version "rand".

    Returns:
        The attack, to be called as attack(model, x, y).
    """
    return worst_case(list(stages(threat, version, steps=steps, queries=queries, passes=passes).values()))


def stages(
    threat: ThreatModel, version: Version = "standard", *, steps: int = 100, queries: int = 5000, passes: int = 20
) -> dict[str, Attack]:
    """The attacks of `auto_attack` by name, in their order."""
    l1 = threat.norm == "l1"
    ce = partial(apgd, threat=threat, steps=steps, loss=log_odds, multi_eps=l1, until_fooled=True)
    ratio = partial(ce, loss=dlr_or_margin)
    if version == "rand":
        return {"APGD-CE": expected(ce, log_odds, passes), "APGD-DLR": expected(ratio, dlr_or_margin, passes)}
    targeted = partial(apgd_targeted, threat=threat, steps=steps, targets=9, multi_eps=l1)
    boundary = partial(fab_targeted, norm=threat.norm, bounds=threat.bounds, eps=threat.eps, steps=steps, targets=9)
    # The official Square always stretches its schedule over 10,000 queries.
    black_box = partial(square, threat=threat, queries=queries, p=0.8, horizon=2 * queries)
    if version == "standard":
        return {
            "APGD-CE": restarts(ce, 5) if l1 else ce,
            "APGD-T": partial(targeted, targets=5) if l1 else targeted,
            "FAB-T": boundary,
            "Square": black_box,
        }
    return {
        "APGD-CE": restarts(ce, 5),
        "APGD-DLR": restarts(ratio, 5),
        "FAB": partial(fab, norm=threat.norm, bounds=threat.bounds, eps=threat.eps, steps=steps, starts=5),
        "Square": black_box,
        "APGD-T": targeted,
        "FAB-T": boundary,
    }


def dlr_or_margin(logits: Tensor, y: Tensor) -> Tensor:
    """`dlr`, or `margin` for two classes, where DLR is undefined."""
    return dlr(logits, y) if logits.shape[1] >= 3 else margin(logits, y)


def expected(attack: Callable[..., Tensor], loss: Loss, passes: int) -> Attack:
    """Attack a randomised model along the mean gradient of several forwards (expectation over transformation).

    Source: Athalye et al. 2018 (arXiv 1707.07397).

    Args:
        attack: A gradient attack that takes `loss` as a keyword, such as a partial of `pgd` or `apgd`.
        loss: The loss to raise; its values and gradients are averaged.
        passes: Number of forwards per gradient, at least 1. The attack judges success by the first of them.

    Returns:
        The attack on the mean.

    Raises:
        UserError: If passes < 1.
    """
    if passes < 1:
        raise UserError(f"can't average {passes} forwards; passes is 1 or more")

    def run(model: Classifier, x: Tensor, y: Tensor, /, *, rng: Rng | None = None) -> Tensor:
        ready = prepared(model, x, target=y, soft=True)
        mean = _Mean(ready, loss, passes)
        return attack(replace(ready, classify=mean.model), x, y, loss=mean.loss, rng=rng)

    return run


class _Mean:
    """A model and a loss for `input_gradient`. It holds one graph at a time for any number of passes."""

    def __init__(self, model: Classifier, loss: Loss, passes: int) -> None:
        self.classify, self.single, self.passes = model, loss, passes
        self.x = torch.empty(0)

    def model(self, x: Tensor) -> Tensor:
        self.x = x
        return self.classify(x)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean (B,) of the loss over these logits and those of further passes on the same images."""
        total = self.single(logits, target)
        here = self.x.detach()
        for _ in range(self.passes - 1):
            _, value, grad = input_gradient(self.classify, here, target, self.single)
            # A linear term with this value and gradient replaces the graph.
            total = total + value + ((self.x - here) * grad).flatten(1).sum(1)
        return total / self.passes
