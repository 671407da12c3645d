"""AutoAttack: the ensembles that the field reports, made of the attacks of this package."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from advsphere.attacks.auto_pgd import apgd, apgd_targeted
from advsphere.attacks.combine import Attack, restarts, worst_case
from advsphere.attacks.fast_adaptive_boundary import fab, fab_targeted
from advsphere.attacks.square_attack import square
from advsphere.classifier import Classifier, input_gradient
from advsphere.errors import UserError
from advsphere.losses import Loss, dlr, log_odds, margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel

Version = Literal["standard", "plus", "rand"]


def auto_attack(
    threat: ThreatModel, version: Version = "standard", *, steps: int = 100, queries: int = 5000, passes: int = 20
) -> Attack:
    """AutoAttack (Croce & Hein 2020, arXiv 2003.01690; l1: Croce & Hein 2021, arXiv 2103.01208), with the settings of
    the official code (github.com/fra31/auto-attack): the worst case of its `stages`, whose arguments these are.
    """
    return worst_case(list(stages(threat, version, steps=steps, queries=queries, passes=passes).values()))


def stages(
    threat: ThreatModel, version: Version = "standard", *, steps: int = 100, queries: int = 5000, passes: int = 20
) -> dict[str, Attack]:
    """The attacks of AutoAttack by name, in their order; the first that fools an example decides it.

    standard: APGD-CE, APGD-T (9 targets), FAB-T (9 targets) and Square; with l1, APGD-CE has 5 restarts, APGD-T 5
    targets, and both come down from larger balls. plus: APGD-CE and APGD-DLR with 5 restarts each, FAB with 5 starts,
    Square, APGD-T and FAB-T. rand, for randomised models: APGD-CE and APGD-DLR along the mean gradient of `passes`
    forwards. steps: of APGD and FAB; queries: of Square. With other numbers than the defaults it is not AutoAttack.
    Raises UserError for an unknown version.

    It works with any number of classes K >= 2. There are at most K - 1 targets; the targeted DLR loss needs K >= 4 and
    becomes the difference of two logits below; DLR needs K >= 3 and becomes the margin below (the official code
    fails in both cases). FAB, in "plus", linearises the 10 most likely classes where there are more. What else differs
    is said by each attack.
    """
    if version not in get_args(Version):
        raise UserError(f"AutoAttack has no version {version!r}; choose one of {', '.join(get_args(Version))}")
    l1 = threat.norm == "l1"
    ce = partial(apgd, threat=threat, steps=steps, loss=log_odds, multi_eps=l1, until_fooled=True)
    ratio = partial(ce, loss=dlr_or_margin)
    if version == "rand":
        return {
            "APGD-CE": expected(ce, log_odds, passes),
            "APGD-DLR": expected(ratio, dlr_or_margin, passes),
        }
    targeted = partial(apgd_targeted, threat=threat, steps=steps, targets=9, multi_eps=l1)
    boundary = partial(fab_targeted, norm=threat.norm, bounds=threat.bounds, eps=threat.eps, steps=steps, targets=9)
    # The official Square stretches its schedule over 10,000 queries whatever their number.
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
    """`dlr`, and the margin with two classes, where DLR is undefined. (B, K), (B,) -> (B,)."""
    return dlr(logits, y) if logits.shape[1] >= 3 else margin(logits, y)


def expected(attack: Callable[..., Tensor], loss: Loss, passes: int) -> Attack:
    """A gradient attack on a randomised model: `loss` and its gradient are the means over `passes` forwards.

    That is the expectation over transformation of Athalye et al. 2018 (arXiv 1707.07397).

    attack: one that takes `loss` as a keyword, such as a partial of `pgd` or `apgd`. What it believes fooled is judged
    by the first of the forwards alone. Raises UserError for passes < 1.
    """
    if passes < 1:
        raise UserError(f"a mean of {passes} forwards can't be taken; passes is 1 or more")

    def run(model: Classifier, x: Tensor, y: Tensor, /, *, rng: Rng | None = None) -> Tensor:
        mean = _Mean(model, loss, passes)
        return attack(mean.model, x, y, loss=mean.loss, rng=rng)

    return run


class _Mean:
    """A model and a loss for `input_gradient`; one graph at a time, however many the passes."""

    def __init__(self, model: Classifier, loss: Loss, passes: int) -> None:
        self.classify, self.single, self.passes = model, loss, passes
        self.x = torch.empty(0)

    def model(self, x: Tensor) -> Tensor:
        self.x = x
        return self.classify(x)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """(B,): the mean of the loss on these logits and on those of further passes at the same images."""
        total = self.single(logits, target)
        here = self.x.detach()
        for _ in range(self.passes - 1):
            _, value, grad = input_gradient(self.classify, here, target, self.single)
            # A term with this value and this gradient, in place of the graph.
            total = total + value + ((self.x - here) * grad).flatten(1).sum(1)
        return total / self.passes
