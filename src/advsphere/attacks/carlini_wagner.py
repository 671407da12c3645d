"""The attacks of Carlini and Wagner: Adam on a norm plus c times a margin.

For l2 an outer loop searches over c, for linf over the radius.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from advsphere.attacks.active import Active
from advsphere.attacks.combine import attack_kind, prepared
from advsphere.attacks.records import Rows, Smallest
from advsphere.classifier import Classifier, fooled, input_gradient
from advsphere.errors import UserError
from advsphere.losses import margin
from advsphere.rng import Rng
from advsphere.threat import Norm, ThreatModel, over_pixels

FIRST_C = {"l2": 1e-3, "linf": 1e-5}
ROUNDS = {"l2": 9, "linf": 100}
LARGEST_C = 20.0
"""linf: a radius counts as out of reach if no c up to this one reaches it, as in the authors' code."""
STEP_SHARE = 0.05
"""linf: Adam's step size, in pixels, is at most this share of the radius."""
PRECISION = 0.01
"""linf: the search ends when the smallest norm is within this share of a radius that is out of reach."""


@attack_kind("minimal-norm")
def cw(
    model: Classifier,
    x: Tensor,
    target: Tensor,
    /,
    *,
    norm: Norm = "l2",
    bounds: tuple[float, float] = (0.0, 1.0),
    steps: int = 1000,
    rounds: int | None = None,
    step_size: float = 1e-2,
    first_c: float | None = None,
    confidence: float = 0.0,
    targeted: bool = False,
    eps: float | None = None,
    rng: Rng | None = None,
) -> Tensor:
    """Carlini-Wagner attacks: minimise the perturbation plus c * max(confidence - margin, 0) with Adam.

    Source: Carlini & Wagner 2017 (arXiv 1608.04644). The variable is w, with x_adv = tanh(w) scaled to the bounds.
    Each step costs one forward and one backward.

    - l2 (section VI-A) minimises the squared norm. Each round bisects c, or multiplies it by 10 before the first
      success. A round ends early if a tenth of its steps improves the loss by less than 0.01 %.
    - linf (section VI-C) minimises the sum of max(|delta| - tau, 0). A success shrinks tau to 0.9 of the norm, a
      failure doubles c. If c would exceed 20, tau goes half-way back to the smallest norm. The search ends when the
      two are within 1 %. Each round begins where the last one ended.

    Differs from the paper: every example goes through its rounds at its own pace, so that finished examples cost
    nothing. For linf there is no smallest tau of 1/256. After a failure the search continues where it is, while the
    authors' code goes back to the last success, which needs more steps per round. The bisection of tau at the end is
    ours. The step size is 0.01 where the authors' code has 0.005, and moves a pixel by at most tau / 20.

    Args:
        model: Maps images to logits (B, K).
        x: Clean images (B, C, H, W), within the bounds.
        target: Labels (B,), or the classes to reach if `targeted`.
        norm: "l2" or "linf".
        bounds: Lowest and highest value of a pixel.
        steps: Largest number of Adam steps per round, at least 1. The paper uses 10,000, most others 1,000.
        rounds: Largest number of rounds, at least 1; 9 for l2 and 100 for linf if not given.
        step_size: Adam's step size, above 0.
        first_c: The first c, above 0; 1e-3 for l2 and 1e-5 for linf if not given.
        confidence: The margin in logits that counts as a success (kappa), at least 0.
        targeted: Move the prediction towards `target`.
        eps: If given, return only adversarial examples within this radius, and stop at the first one.
        rng: Not used, because nothing is random.

    Returns:
        The smallest adversarial images found, same shape as `x`, or the clean image where none was found.

    Raises:
        UserError: If norm is "l1", a setting is out of its range, or the images are in half precision.
    """
    model = prepared(model, x, bounds, target)
    if x.dtype not in (torch.float32, torch.float64):
        raise UserError(f"this attack needs more precision than {x.dtype}; give the model and the images in float32")
    if norm not in FIRST_C:
        raise UserError(f"there is no Carlini-Wagner attack for {norm}; choose l2 or linf, or use fab")
    c, most = FIRST_C[norm] if first_c is None else first_c, ROUNDS[norm] if rounds is None else rounds
    if not (steps >= 1 and most >= 1 and confidence >= 0 and step_size > 0 and c > 0):
        raise UserError(
            f"steps is {steps}, rounds {most}, confidence {confidence}, step_size {step_size} and first_c {c}; steps "
            "and rounds must be at least 1, confidence at least 0, and the others above 0"
        )
    sign = -1.0 if targeted else 1.0

    def succeeds(logits: Tensor, y: Tensor, value: Tensor) -> Tensor:
        return (fooled(logits, y) != targeted) & (value >= confidence)

    found = Smallest(x, norm=norm, bounds=bounds, eps=eps)
    with torch.no_grad():
        logits = model(found.x)
    found.offer_clean(succeeds(logits, target, sign * margin(logits, target)))
    active = Active(found.open())
    x, y = found.x[active.index], target[active.index]
    search = _begin(x, found.threat, c, most)
    while len(active) > 0:
        x_adv = _pixels(search.w, bounds)
        logits, value, gradient = input_gradient(model, x_adv, y, margin)
        value, gradient = (sign * value).to(x.dtype), sign * gradient.nan_to_num(0.0, 0.0, 0.0)
        hit = succeeds(logits, y, value) & active.open
        distance = found.offer(active.index, x_adv, hit)
        size, uphill = _size(x_adv - x, search.tau, norm)
        loss = size + search.c * (confidence - value).clamp(min=0.0)
        uphill = uphill - over_pixels(search.c * (value < confidence), x) * gradient
        step = torch.full_like(search.tau, step_size)
        if norm == "linf":  # longer steps oscillate about a small radius
            step = step.minimum(STEP_SHARE * search.tau * 2 / (bounds[1] - bounds[0]))
        moved = search.adam(uphill * _pixels_slope(search.w, bounds), step, hit)
        if norm == "l2":
            moved, stuck = moved.check(loss, every=max(1, steps // 10))
            search = moved.next_c(stuck | (moved.steps == steps))
        else:
            reached = hit & (distance <= search.tau)
            over = reached | (moved.steps == steps)
            search = moved.next_tau(over, reached, search.w, found.distance[active.index])
        if (rows := active.drop((search.left <= 0) | found.done[active.index])) is not None:
            x, y, search = x[rows], y[rows], search.take(rows)
    return found.result()


@dataclass(frozen=True)
class _Search(Rows):
    """The state of Adam within a round, and of the search over rounds."""

    w: Tensor  # Adam's variable (b, ...)
    start: Tensor  # `w` at the beginning of the round
    mean: Tensor  # Adam's first moment (b, ...)
    square: Tensor  # Adam's second moment (b, ...)
    steps: Tensor  # steps (b,) in this round
    best: Tensor  # loss (b,) at the last check of this round
    won: Tensor  # whether this round had a success, (b,) bool
    c: Tensor  # weight of the margin (b,)
    low: Tensor  # l2: largest c (b,) that failed. linf: largest radius out of reach
    high: Tensor  # l2: smallest c (b,) that succeeded
    tau: Tensor  # linf: the radius (b,) to reach
    left: Tensor  # remaining rounds (b,)

    def adam(self, gradient: Tensor, step_size: Tensor, hit: Tensor) -> _Search:
        """One step of Adam with its usual moments (Kingma & Ba 2015), each example at its own count of steps."""
        steps = self.steps + 1
        mean = self.mean.lerp(gradient, 0.1)
        square = self.square.lerp(gradient.square(), 0.001)
        fresh_mean, fresh_square = (1 - over_pixels(rate**steps, mean) for rate in (0.9, 0.999))
        w = self.w - over_pixels(step_size, mean) * (mean / fresh_mean) / ((square / fresh_square).sqrt() + 1e-8)
        return replace(self, w=w, mean=mean, square=square, steps=steps, won=self.won | hit)

    def check(self, loss: Tensor, *, every: int) -> tuple[_Search, Tensor]:
        """Note the loss if a check is due. Also returns which examples improved by less than 0.01 % since the last."""
        now = self.steps % every == 0
        return replace(self, best=torch.where(now, loss, self.best)), now & (loss > 0.9999 * self.best)

    def next_c(self, over: Tensor) -> _Search:
        """l2: where the round is over, begin again with the next c."""
        low = torch.where(over & ~self.won, self.c, self.low)
        high = torch.where(over & self.won, self.c, self.high)
        c = torch.where(high < math.inf, (low + high) / 2, 10 * self.c)
        return replace(self, low=low, high=high, c=torch.where(over, c, self.c))._again(over)

    def next_tau(self, over: Tensor, reached: Tensor, w: Tensor, smallest: Tensor) -> _Search:
        """linf: where the round is over, continue from w with a smaller radius, a larger c or a larger radius."""
        missed = over & ~reached
        out_of_reach = missed & (2 * self.c > LARGEST_C)
        low = torch.where(out_of_reach, self.tau, self.low)
        half_way = (low + smallest) / 2
        tau = torch.where(reached, half_way.maximum(0.9 * smallest), torch.where(out_of_reach, half_way, self.tau))
        c = torch.where(missed & ~out_of_reach, 2 * self.c, self.c)
        ended = over & ((smallest - low < PRECISION * smallest) | (out_of_reach & smallest.isinf()))
        return replace(self, tau=tau, low=low, c=c, start=w, left=self.left.where(~ended, 1))._again(over)

    def _again(self, over: Tensor) -> _Search:
        fresh = over_pixels(over, self.w)
        return replace(
            self,
            w=torch.where(fresh, self.start, self.w),
            mean=self.mean.masked_fill(fresh, 0.0),
            square=self.square.masked_fill(fresh, 0.0),
            steps=self.steps.masked_fill(over, 0),
            best=self.best.masked_fill(over, math.inf),
            won=self.won & ~over,
            left=self.left - over.long(),
        )


def _begin(x: Tensor, threat: ThreatModel, c: float, rounds: int) -> _Search:
    low, high = threat.bounds
    # Stay off the bounds, where the slope of tanh is zero.
    w = torch.atanh(((x - low) / (high - low) * 2 - 1) * 0.999999)
    zeros, none, moment = x.new_zeros(len(x)), x.new_zeros(len(x), dtype=torch.long), torch.zeros_like(w)
    return _Search(
        w=w,
        start=w,
        mean=moment,
        square=moment,
        steps=none,
        best=zeros + math.inf,
        won=none.bool(),
        c=zeros + c,
        low=zeros,
        high=zeros + math.inf,
        tau=zeros + (high - low if threat.norm == "linf" else 0.0),
        left=none + rounds,
    )


def _pixels(w: Tensor, bounds: tuple[float, float]) -> Tensor:
    low, high = bounds
    return (low + (high - low) * (torch.tanh(w) + 1) / 2).clamp(low, high)


def _pixels_slope(w: Tensor, bounds: tuple[float, float]) -> Tensor:
    return (bounds[1] - bounds[0]) / 2 * (1 - torch.tanh(w).square())


def _size(delta: Tensor, tau: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """The size term (b,) of the loss and its gradient (b, ...): the squared l2 norm, or the sum of excess over tau."""
    if norm == "l2":
        return delta.square().flatten(1).sum(1), 2 * delta
    excess = delta.abs() - over_pixels(tau, delta)
    return excess.clamp(min=0.0).flatten(1).sum(1), delta.sign() * (excess > 0)
