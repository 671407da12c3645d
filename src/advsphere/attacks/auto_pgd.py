"""AutoPGD: gradient ascent inside a ball that chooses its own step sizes, and its targeted form.

One loop serves both attacks and all norms; `advsphere.attacks.step_size` decides how far to step. All state is
kept for each example, so that none depends on its batch mates and what is done leaves the batch at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from advsphere.attacks.combine import attack_kind
from advsphere.attacks.gradient import Keep, Start, starting_point
from advsphere.attacks.step_size import Halving, Path, Thinning
from advsphere.classifier import Classifier, fooled, input_gradient
from advsphere.errors import UserError
from advsphere.losses import Loss, dlr_targeted, log_odds, margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel

Done = Callable[[Tensor, Tensor], Tensor]
"""(logits, target) -> (B,) bool: which examples need no further step."""


@attack_kind("iterative")
def apgd(
    model: Classifier,
    x: Tensor,
    target: Tensor,
    /,
    *,
    threat: ThreatModel,
    steps: int = 100,
    loss: Loss = log_odds,
    rho: float = 0.75,
    start: Start = "uniform",
    multi_eps: bool = False,
    targeted: bool = False,
    until_fooled: bool = False,
    keep: Keep = "best",
    rng: Rng | None = None,
) -> Tensor:
    """AutoPGD (Croce & Hein 2020, arXiv 2003.01690, Algorithm 1; l1: Croce & Hein 2021, arXiv 2103.01208, Algorithm 1);
    x: (B, C, H, W) in bounds -> x_adv of the same shape, for steps + 1 forwards of each image.

    rho: the share of steps that has to raise the loss, or else the step size is halved (linf, l2). multi_eps: 30 % of
    the steps in the ball of 3 eps, 30 % in that of 2 eps, the rest in the right one, each stage from the best of the
    one before; the second paper's form for l1, two forwards more. start, targeted, until_fooled, keep, rng: as in
    `pgd`, but the best iterate is the default. Raises UserError for `until_fooled` with another target than labels.

    Differs from the official code: starts at a uniform point of the ball (there: scaled to its surface) and ascends
    `log_odds` for "cross-entropy"; a step size is kept where exactly rho of the steps raised the loss, as in the paper;
    for l1 see `pace.Thinning`.
    """
    if until_fooled and target.dim() != 1:
        raise UserError(f"until_fooled judges success by labels (B,), but the target has shape {tuple(target.shape)}")

    def downhill(logits: Tensor, target: Tensor) -> Tensor:
        return -loss(logits, target)

    def reached(logits: Tensor, target: Tensor) -> Tensor:
        return fooled(logits, target) != targeted

    found = _search(
        model,
        x.detach(),
        target,
        threat=threat,
        steps=steps,
        loss=downhill if targeted else loss,
        rho=rho,
        start=start,
        multi_eps=multi_eps,
        done=reached if until_fooled else None,
        rng=rng,
    )
    return found.last if keep == "last" else found.best


@attack_kind("iterative")
def apgd_targeted(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    /,
    *,
    threat: ThreatModel,
    steps: int = 100,
    targets: int = 9,
    rho: float = 0.75,
    start: Start = "uniform",
    multi_eps: bool = False,
    rng: Rng | None = None,
) -> Tensor:
    """AutoPGD on the targeted DLR loss (Croce & Hein 2020, section 4.2), towards the `targets` most likely wrong
    classes of the clean image, one after the other; x: (B, C, H, W), y: (B,) labels.

    An example is done at its first success, whichever class it became, and a misclassified one returns unchanged. Else
    the iterate of the highest loss is returned. There are at most K - 1 targets. With K < 4 classes, where the loss is
    undefined, the plain difference z_t - z_y takes its place (the official code fails). Each target has a start of its
    own. At most 1 + targets * (steps + 1) forwards of each image. Raises UserError for targets < 1 or a single class.
    """
    if targets < 1:
        raise UserError(f"the attack has {targets} target classes to try; it needs at least 1")
    x, rng = x.detach(), rng or Rng.of(x)
    with torch.no_grad():
        logits = model(x)
    classes = logits.shape[1]
    if classes < 2:
        raise UserError("the model has a single class, so no other can be the target; give it one logit for each class")
    loss = dlr_targeted if classes >= 4 else _difference
    ranking = logits.float().scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    result, best = x.clone(), torch.full_like(margin(logits, y), -torch.inf)
    index = (~fooled(logits, y)).nonzero().squeeze(1)
    for rank in range(min(targets, classes - 1)):
        if len(index) == 0:
            break
        pair = torch.stack([y[index], ranking[index, rank]], 1)
        own = rng.take(index).at(restart=rng.restart * targets + rank)
        found = _search(
            model,
            x[index],
            pair,
            threat=threat,
            steps=steps,
            loss=loss,
            rho=rho,
            start=start[index] if isinstance(start, Tensor) else start,
            multi_eps=multi_eps,
            done=_left,
            rng=own,
        )
        better = found.done | (found.value > best[index])
        result[index[better]], best[index[better]] = found.best[better], found.value[better]
        index = index[~found.done]
    return result


def _difference(logits: Tensor, pair: Tensor) -> Tensor:
    """z_t - z_y; pair: (B, 2), the label y and the target class t."""
    own, goal = logits.float().gather(1, pair).unbind(1)
    return goal - own


def _left(logits: Tensor, pair: Tensor) -> Tensor:
    return fooled(logits, pair[:, 0])


class _Found(NamedTuple):
    """What a search returns. last, best: (B, ...) its last iterate, and the one of the highest loss; where an example
    was done, both are the first one that was. value: (B,) the loss of `best`. done: (B,) bool.
    """

    last: Tensor
    best: Tensor
    value: Tensor
    done: Tensor


def _search(
    model: Classifier,
    x: Tensor,
    target: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    loss: Loss,
    rho: float,
    start: Start,
    multi_eps: bool,
    done: Done | None,
    rng: Rng | None,
) -> _Found:
    """The ascent in one ball, or in three that shrink; being done counts in the last one alone."""
    part = 3 * steps // 10
    for factor, length in [(3, part), (2, part), (1, steps - 2 * part)] if multi_eps else [(1, steps)]:
        ball = replace(threat, eps=factor * threat.eps)
        begin = starting_point(x, ball, start, rng)
        found = _ascend(model, x, target, begin, ball, length, loss, rho, done if factor == 1 else None)
        start = found.best
    return found


def _ascend(
    model: Classifier,
    x: Tensor,
    target: Tensor,
    start: Tensor,
    threat: ThreatModel,
    steps: int,
    loss: Loss,
    rho: float,
    done: Done | None,
) -> _Found:
    at = Path.from_start(x, target, start)
    pace = (Thinning if threat.norm == "l1" else Halving).from_start(x, start, threat.eps)
    found = _Found(start.clone(), start.clone(), at.best.clone(), torch.zeros_like(at.best, dtype=torch.bool))
    checkpoints = pace.checkpoints(steps)
    for i in range(steps + 1):
        logits, value, grad = input_gradient(model, at.x_adv, at.target, loss)
        at = at.seen(value, grad)
        if done is not None and (hit := done(logits, at.target)).any():
            now = at.index[hit]
            found.last[now] = found.best[now] = at.x_adv[hit]
            found.value[now], found.done[now] = at.value[hit], True
            at, pace = at.take(~hit), pace.take(~hit)
        if i == steps or len(at.index) == 0:
            break
        if i in checkpoints:
            pace, back = pace.checked(at, rho * checkpoints[i], threat.eps)
            at = at.returned(back)
        at = replace(at, x_adv=pace.moved(at, threat, momentum=i > 0), before=at.x_adv)
    found.last[at.index], found.best[at.index], found.value[at.index] = at.x_adv, at.best_x, at.best
    return found
