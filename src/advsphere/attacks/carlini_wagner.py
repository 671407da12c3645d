"""The attacks of Carlini and Wagner: Adam on a norm plus c times a margin, with a search over c (l2) or over the radius
(linf).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from advsphere.attacks.combine import attack_kind
from advsphere.attacks.smallest import Smallest, over_pixels
from advsphere.classifier import Classifier, fooled, input_gradient
from advsphere.errors import UserError
from advsphere.losses import margin
from advsphere.rng import Rng
from advsphere.threat import Norm

FIRST_C = {"l2": 1e-3, "linf": 1e-5}
ROUNDS = {"l2": 9, "linf": 100}
LARGEST_C = 20.0
"""Of the linf search: where no c up to this one reaches a radius, as in the authors' code, it is out of reach."""
STEP_SHARE = 0.05
"""In linf Adam's step size, put into pixels, is at most this share of the radius."""
PRECISION = 0.01
"""The linf search ends where the smallest norm is no more than this share above a radius that is out of reach."""


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
    """The attacks of Carlini & Wagner 2017 (arXiv 1608.04644); x: (B, C, H, W) in bounds, target: (B,) labels, or
    classes to reach if `targeted` -> x_adv of the same shape, the smallest found, or the clean image where none was.

    Both descend, with Adam and on w with x_adv = tanh(w) put into bounds, c * max(confidence - margin, 0) plus
    l2 (section VI-A): the squared norm; c is bisected, or multiplied by 10 until the first success, `rounds` times.
    linf (section VI-C): sum max(|delta| - tau, 0); tau shrinks to 0.9 of the norm at each success; c doubles at each
    failure, and beyond 20 tau goes back half-way to the smallest norm, until 1 % is between them; each round begins
    where the last one ended.
    steps: Adam's, at most, in each round (the paper has 10,000, most others 1,000); in l2 a round that has not improved
    by 0.01 % in a tenth of them ends. rounds: at most; 9 for l2 and 100 for linf unless given. first_c: 1e-3 and 1e-5.
    confidence: kappa, the margin in logits that counts as a success (>= 0). eps: for a verdict at this radius: an
    example is done once it succeeds within eps, and what is larger is not returned. Nothing is random. One forward and
    backward a step. Raises UserError for l1, and where a setting makes no sense.

    Differs from the paper: every example goes through its rounds at its own pace, so that those which are done cost
    nothing and the others wait for none; linf has no smallest tau of 1/256, goes on from a failure where the authors'
    code goes back to the last success, which needs more steps in each round, and has a last part of its own, between
    what is out of reach and what was reached. Its step size is 0.01 where the authors' code has 0.005, and at
    most what moves a pixel by a twentieth of tau.
    """
    if norm not in FIRST_C:
        raise UserError(f"there is no Carlini-Wagner attack for {norm}; choose l2 or linf, or fab for l1")
    c, most = FIRST_C[norm] if first_c is None else first_c, ROUNDS[norm] if rounds is None else rounds
    if not (steps >= 1 and most >= 1 and confidence >= 0 and step_size > 0 and c > 0):
        raise UserError(
            f"steps is {steps}, rounds {most}, confidence {confidence}, step_size {step_size} and first_c {c}; steps "
            "and rounds are at least 1, confidence is at least 0, and the others are above it"
        )
    sign = -1.0 if targeted else 1.0

    def succeeds(logits: Tensor, y: Tensor, value: Tensor) -> Tensor:
        return (fooled(logits, y) != targeted) & (value >= confidence)

    found = Smallest(x, norm=norm, bounds=bounds, eps=eps)
    with torch.no_grad():
        logits = model(found.x)
    hit = succeeds(logits, target, sign * margin(logits, target))
    found.offer(torch.arange(len(x), device=x.device), found.x, hit)
    search = _begin(found, c, most)
    while len(search.place) > 0:
        x, y = found.x[search.place], target[search.place]
        x_adv = _pixels(search.w, bounds)
        logits, value, gradient = input_gradient(model, x_adv, y, margin)
        value, gradient = (sign * value).to(x.dtype), sign * gradient.nan_to_num(0.0, 0.0, 0.0)
        hit = succeeds(logits, y, value)
        distance = found.offer(search.place, x_adv, hit)
        size, uphill = _size(x_adv - x, search.tau, norm)
        loss = size + search.c * (confidence - value).clamp(min=0.0)
        uphill = uphill - over_pixels(search.c * (value < confidence), x) * gradient
        step = torch.full_like(search.tau, step_size)
        if norm == "linf":  # coarser ones swing about a small radius
            step = step.minimum(STEP_SHARE * search.tau * 2 / (bounds[1] - bounds[0]))
        moved = search.descended(uphill * _pixels_slope(search.w, bounds), step, hit)
        if norm == "l2":
            moved, stuck = moved.checked(loss, every=max(1, steps // 10))
            ahead = moved.next_c(stuck | (moved.steps == steps))
        else:
            reached = hit & (distance <= search.tau)
            over = reached | (moved.steps == steps)
            ahead = moved.next_tau(over, reached, search.w, found.distance[search.place])
        search = ahead.take((ahead.left > 0) & ~found.done[ahead.place])
    return found.result()


class _Search(NamedTuple):
    """One row for each example that is not done: where Adam is in its round, and where the rounds are.

    place: (b,) position in the batch. w, start, mean, square: (b, ...) the variable, where the round began, Adam's two
    moments. steps, best, won: (b,) of this round: how many, the loss when last checked, any success. c, low, high: (b,)
    the factor of the margin and what is known of it. tau: (b,) the radius, 0 in l2. left: (b,) how many rounds.
    """

    place: Tensor
    w: Tensor
    start: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor
    best: Tensor
    won: Tensor
    c: Tensor
    low: Tensor
    high: Tensor
    tau: Tensor
    left: Tensor

    def take(self, rows: Tensor) -> _Search:
        return self if rows.all() else _Search(*(field[rows] for field in self))

    def descended(self, gradient: Tensor, step_size: Tensor, hit: Tensor) -> _Search:
        """One step of Adam with its usual moments (Kingma & Ba 2015), each example at its own count of steps."""
        steps = self.steps + 1
        mean = self.mean.lerp(gradient, 0.1)
        square = self.square.lerp(gradient.square(), 0.001)
        fresh_mean, fresh_square = (1 - over_pixels(rate**steps, mean) for rate in (0.9, 0.999))
        w = self.w - over_pixels(step_size, mean) * (mean / fresh_mean) / ((square / fresh_square).sqrt() + 1e-8)
        return self._replace(w=w, mean=mean, square=square, steps=steps, won=self.won | hit)

    def checked(self, loss: Tensor, *, every: int) -> tuple[_Search, Tensor]:
        """Which examples have not improved by 0.01 % since the last check, (b,) bool, noting the loss at this one."""
        now = self.steps % every == 0
        return self._replace(best=torch.where(now, loss, self.best)), now & (loss > 0.9999 * self.best)

    def next_c(self, over: Tensor) -> _Search:
        """l2: bisect c, or multiply it by 10 while nothing has succeeded, and begin at the same place again."""
        low = torch.where(over & ~self.won, self.c, self.low)
        high = torch.where(over & self.won, self.c, self.high)
        c = torch.where(high < math.inf, (low + high) / 2, 10 * self.c)
        return self._replace(low=low, high=high, c=torch.where(over, c, self.c))._again(over)

    def next_tau(self, over: Tensor, reached: Tensor, w: Tensor, smallest: Tensor) -> _Search:
        """linf: a smaller radius where this one was reached, else a larger c, and on from where the round ended. Beyond
        the largest c the radius is out of reach, and the next one lies half-way to the smallest norm found.
        """
        missed = over & ~reached
        out_of_reach = missed & (2 * self.c > LARGEST_C)
        low = torch.where(out_of_reach, self.tau, self.low)
        half_way = (low + smallest) / 2
        tau = torch.where(reached, half_way.maximum(0.9 * smallest), torch.where(out_of_reach, half_way, self.tau))
        c = torch.where(missed & ~out_of_reach, 2 * self.c, self.c)
        ended = over & ((smallest - low < PRECISION * smallest) | (out_of_reach & smallest.isinf()))
        return self._replace(tau=tau, low=low, c=c, start=w, left=self.left.where(~ended, 1))._again(over)

    def _again(self, over: Tensor) -> _Search:
        """The next round of those whose round is over."""
        fresh = over_pixels(over, self.w)
        return self._replace(
            w=torch.where(fresh, self.start, self.w),
            mean=self.mean.masked_fill(fresh, 0.0),
            square=self.square.masked_fill(fresh, 0.0),
            steps=self.steps.masked_fill(over, 0),
            best=self.best.masked_fill(over, math.inf),
            won=self.won & ~over,
            left=self.left - over.long(),
        )


def _begin(found: Smallest, c: float, rounds: int) -> _Search:
    place = found.open()
    x, (low, high) = found.x[place], found.threat.bounds
    # Not quite at the bounds, where the slope of tanh is zero.
    w = torch.atanh(((x - low) / (high - low) * 2 - 1) * 0.999999)
    zeros, none, moment = torch.zeros_like(x[:, 0, 0, 0]), torch.zeros_like(place), torch.zeros_like(w)
    return _Search(
        place=place,
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
        tau=zeros + (high - low if found.threat.norm == "linf" else 0.0),
        left=none + rounds,
    )


def _pixels(w: Tensor, bounds: tuple[float, float]) -> Tensor:
    low, high = bounds
    return (low + (high - low) * (torch.tanh(w) + 1) / 2).clamp(low, high)


def _pixels_slope(w: Tensor, bounds: tuple[float, float]) -> Tensor:
    return (bounds[1] - bounds[0]) / 2 * (1 - torch.tanh(w).square())


def _size(delta: Tensor, tau: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """What a round makes small, (b,), and its gradient, (b, ...): the squared l2 norm, or all that exceeds tau."""
    if norm == "l2":
        return delta.square().flatten(1).sum(1), 2 * delta
    excess = delta.abs() - over_pixels(tau, delta)
    return excess.clamp(min=0.0).flatten(1).sum(1), delta.sign() * (excess > 0)
