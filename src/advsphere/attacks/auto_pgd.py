"""AutoPGD: gradient ascent inside a ball that chooses its own step sizes, and its targeted form.

One loop serves both attacks and all norms; `advsphere.attacks.step_size` holds the step rules. All state is kept per
example, so that no example depends on the others of its batch and those that are done can leave it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from advsphere.attacks.active import Active, put, targets_at_once
from advsphere.attacks.combine import attack_kind, prepared
from advsphere.attacks.gradient import Keep, Start, starting_point
from advsphere.attacks.step_size import Halving, Path, Thinning
from advsphere.classifier import Classifier, fooled, input_gradient
from advsphere.errors import UserError
from advsphere.losses import Loss, dlr_targeted, log_odds, margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel


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
    """AutoPGD: projected gradient ascent with step sizes that adapt to each example.

    Source: Croce & Hein 2020 (arXiv 2003.01690, Algorithm 1); for l1 Croce & Hein 2021 (arXiv 2103.01208, Algorithm 1).
    Costs steps + 1 forwards and steps backwards of each image, two more forwards with `multi_eps`.

    Differs from the official code: the uniform start lies anywhere in the ball (there it is scaled to the surface),
    the default loss is `log_odds` in place of cross-entropy, and the step size is kept where exactly a share rho of
    the steps raised the loss, as in the paper. For l1 see also `step_size.Thinning`.

    Args:
        model: Maps images to logits (B, K).
        x: Clean images (B, C, H, W), within the bounds.
        target: The second argument of `loss`: labels or target classes (B,).
        threat: Norm, radius and bounds.
        steps: Number of steps.
        loss: The loss to raise.
        rho: For linf and l2, halve the step size unless this share of the steps raised the loss.
        start: Where to begin.
        multi_eps: Spend 30 % of the steps in the ball of 3 eps, 30 % in that of 2 eps and the rest in the ball of eps.
            Each stage starts from the best iterate of the previous one. The second paper does this for l1.
        targeted: Lower the loss instead, so that the prediction moves towards `target`.
        until_fooled: Stop each example at its first success.
        keep: Which iterate to return where no success has stopped an example.
        rng: Random numbers for the uniform start; by default of seed 0 and ids 0 to B - 1.

    Returns:
        The adversarial images, same shape as `x`.

    Raises:
        UserError: If `until_fooled` is set and `target` does not hold labels.
    """
    model = prepared(model, x, threat, target, soft=True)
    if until_fooled and target.dim() != 1:
        raise UserError(f"until_fooled needs labels (B,) to judge success, but target has shape {tuple(target.shape)}")

    def downhill(logits: Tensor, target: Tensor) -> Tensor:
        return -loss(logits, target)

    def success(logits: Tensor, target: Tensor) -> Tensor:
        return fooled(logits, target) != targeted

    search = _Search(
        model, threat, steps, downhill if targeted else loss, rho, multi_eps, keep, success if until_fooled else None
    )
    return search.run(x.detach(), target, search.begin(x.detach(), start, rng)).x_adv


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
    """AutoPGD on the targeted DLR loss, towards the most likely wrong classes.

    Source: Croce & Hein 2020 (arXiv 2003.01690, section 4.2). Each target has its own random start. An example is done
    at the first target with a success, for any wrong class. Costs at most 1 + targets * (steps + 1) forwards of each
    image. The targets after the first one run side by side, as many as fit into a batch of the size that the outermost
    attack was given.

    Differs from the official code: with fewer than 4 classes, where the loss is undefined and the official code fails,
    the difference z_t - z_y takes its place.

    Args:
        model: Maps images to logits (B, K).
        x: Clean images (B, C, H, W), within the bounds.
        y: Labels (B,).
        threat: Norm, radius and bounds.
        steps: Number of steps for each target.
        targets: Number of target classes, at least 1; at most K - 1 of them exist.
        rho: As in `apgd`.
        start: Where to begin.
        multi_eps: As in `apgd`.
        rng: Random numbers for the uniform starts; by default of seed 0 and ids 0 to B - 1.

    Returns:
        The adversarial images, same shape as `x`. Where nothing succeeds it is the iterate with the highest loss. A
        misclassified image is returned unchanged.

    Raises:
        UserError: If targets < 1, or if the model has a single class.
    """
    model = prepared(model, x, threat, y)
    if targets < 1:
        raise UserError(f"targets is {targets}, but the attack needs at least 1")
    x, rng = x.detach(), rng or Rng.of(x)
    with torch.no_grad():
        logits = model(x)
    classes = logits.shape[1]
    if classes < 2:
        raise UserError("the model has a single class, so no other can be the target; give it one logit for each class")
    loss = dlr_targeted if classes >= 4 else _difference
    search = _Search(model, threat, steps, loss, rho, multi_eps, "best", _left_label)
    ranking = logits.float().scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    result, best = x.clone(), torch.full_like(margin(logits, y), -torch.inf)
    done = fooled(logits, y)
    for ranks, index in targets_at_once(min(targets, classes - 1), model.room, done):
        rows, goals = index.repeat(len(ranks)), ranking[index, ranks.start : ranks.stop].T.flatten()
        here, own = start[index] if isinstance(start, Tensor) else start, rng.take(index)
        drawn = [search.begin(x[index], here, own.at(restart=rng.restart * targets + rank)) for rank in ranks]
        found = search.run(x[rows], torch.stack([y[rows], goals], 1), torch.cat(drawn))
        for x_adv, value, hit in zip(*(part.chunk(len(ranks)) for part in found), strict=True):
            better = ~done[index] & (hit | (value > best[index]))
            put(result, index, better, x_adv)
            put(best, index, better, value)
            done[index] |= hit
    return result


def _difference(logits: Tensor, pair: Tensor) -> Tensor:
    """z_t - z_y; pair (B, 2) holds the label y and the target class t."""
    own, goal = logits.float().gather(1, pair).unbind(1)
    return goal - own


def _left_label(logits: Tensor, pair: Tensor) -> Tensor:
    return fooled(logits, pair[:, 0])


class _Found(NamedTuple):
    """The result of a search."""

    x_adv: Tensor  # first success (B, ...), or where there is none, the iterate to keep
    value: Tensor  # highest loss (B,) where there is no success
    done: Tensor  # whether the example is done, (B,) bool


@dataclass(frozen=True)
class _Search:
    """AutoPGD with its settings. done: (logits, target) -> (B,) bool, which examples need no further step."""

    model: Classifier
    threat: ThreatModel
    steps: int
    loss: Loss
    rho: float
    multi_eps: bool
    keep: Keep
    done: Callable[[Tensor, Tensor], Tensor] | None

    def begin(self, x: Tensor, start: Start, rng: Rng | None) -> Tensor:
        """The images (B, ...) at which the search begins, inside the first ball."""
        return starting_point(x, self.ball(3 if self.multi_eps else 1), start, rng)

    def run(self, x: Tensor, target: Tensor, begin: Tensor) -> _Found:
        """Ascend in one ball, or in three that shrink. Only in the last one can an example be done."""
        part = 3 * self.steps // 10 if self.multi_eps else 0
        for factor in (3, 2) if self.multi_eps else ():
            wide = replace(self, threat=self.ball(factor), steps=part, keep="best", done=None)
            begin = self.ball(factor - 1).project(wide.ascend(x, target, begin).x_adv, x)
        return replace(self, steps=self.steps - 2 * part).ascend(x, target, begin)

    def ball(self, factor: int) -> ThreatModel:
        return replace(self.threat, eps=factor * self.threat.eps)

    def ascend(self, x: Tensor, target: Tensor, start: Tensor) -> _Found:
        threat, steps = self.threat, self.steps
        path = Path.from_start(x, target, start)
        rule = (Thinning if threat.norm == "l1" else Halving).from_start(x, start, threat.eps)
        found = _Found(start.clone(), path.best.clone(), torch.ones_like(path.best, dtype=torch.bool))
        active = Active(torch.arange(len(x), device=x.device))
        checkpoints = rule.checkpoints(steps)
        for i in range(steps + 1):
            logits, value, grad = input_gradient(self.model, path.x_adv, path.target, self.loss, needed=i < steps)
            path = path.observe(value, grad)
            if self.done is not None:
                hit = self.done(logits, path.target)
                put(found.x_adv, active.index, hit & active.open, path.x_adv)
                if (rows := active.drop(hit)) is not None:
                    path, rule = path.take(rows), rule.take(rows)
            if i == steps or len(active) == 0:
                break
            if i in checkpoints:
                rule, back = rule.check(path, self.rho * checkpoints[i], threat.eps)
                path = path.restart(back)
            path = replace(path, x_adv=rule.step(path, threat, momentum=i > 0), before=path.x_adv)
        put(found.x_adv, active.index, active.open, path.best_x if self.keep == "best" else path.x_adv)
        found.value[active.index], found.done[active.index] = path.best, ~active.open
        return found
