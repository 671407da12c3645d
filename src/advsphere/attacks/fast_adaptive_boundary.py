"""FAB: the fast adaptive boundary attack, which walks along the boundary and is pulled back to the clean image."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from advsphere.attacks.combine import attack_kind
from advsphere.attacks.hyperplane import boundaries, most_likely_rivals, nearest, project, traced
from advsphere.attacks.smallest import Smallest, over_pixels
from advsphere.classifier import Classifier, fooled
from advsphere.errors import UserError
from advsphere.losses import margin
from advsphere.rng import Rng
from advsphere.threat import Norm, ThreatModel


@attack_kind("minimal-norm")
def fab(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    /,
    *,
    norm: Norm,
    bounds: tuple[float, float] = (0.0, 1.0),
    steps: int = 100,
    starts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    classes: int = 10,
    eps: float | None = None,
    rng: Rng | None = None,
) -> Tensor:
    """The fast adaptive boundary attack (Croce & Hein 2020, arXiv 1907.02044, Algorithm 1); x: (B, C, H, W) in bounds,
    y: (B,) labels -> x_adv of the same shape, the smallest found, or the clean image where none was.

    starts: how many walks; the first begins at the clean image, the others at a random point at half the radius of the
    best so far (of eps, if that is smaller). alpha_max: the largest pull towards the clean image, eta: how far behind
    the boundary to step, beta: how much of a perturbation is kept after a success. classes: how many of the most likely
    classes are linearised at each step, the label among them (>= 2). eps: for a verdict at this radius: an example is
    done once it is fooled within eps, and comes back as far behind the boundary as its direction leads inside the ball;
    what is larger is not returned. rng: for the starts after the first. Costs classes - 1 backwards and a forward a
    step, two where an example of the batch has just been fooled, and seven forwards besides. Raises UserError where
    norm, bounds, eps, starts or classes make no sense.

    Differs from the paper: all classes are linearised only where there are no more than `classes`.
    """
    walk = _Walk(norm, bounds, steps, alpha_max, eta, beta)
    found = Smallest(x, norm=norm, bounds=bounds, eps=eps)
    _clean_logits(model, y, found)
    _walks(model, y, classes - 1, walk, found, starts, rng or Rng.of(x))
    _shorten(model, y, found)
    _deepen(model, y, found)
    return found.result()


@attack_kind("minimal-norm")
def fab_targeted(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    /,
    *,
    norm: Norm,
    bounds: tuple[float, float] = (0.0, 1.0),
    steps: int = 100,
    starts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    targets: int = 9,
    eps: float | None = None,
    rng: Rng | None = None,
) -> Tensor:
    """FAB-T (Croce & Hein 2020, arXiv 2003.01690, section 4): `fab` along the boundary to one class at a time, for each
    of the `targets` (>= 1) most likely wrong classes of the clean image.

    Still untargeted in what it returns: the smallest x_adv of any wrong class. One forward and one backward a step
    whatever the number of classes, so it is the one for many of them. All else as in `fab`.

    Differs from the paper, which goes back towards the clean image after a success and linearises there: here the
    boundary seen at the success, which is nearer to it, is kept. That saves a forward a step and ends nearer (by 0.3 %
    or more in the median, measured); `fab`, with many boundaries to choose from, ends farther away with it.
    """
    walk = _Walk(norm, bounds, steps, alpha_max, eta, beta)
    found = Smallest(x, norm=norm, bounds=bounds, eps=eps)
    rng = rng or Rng.of(x)
    rivals = most_likely_rivals(_clean_logits(model, y, found), y, targets)
    for rank, rival in enumerate(rivals.split(1, dim=1)):
        _walks(model, y, rival, walk, found, starts, rng.at(step=rank))
    _shorten(model, y, found)
    _deepen(model, y, found)
    return found.result()


class _Walk(NamedTuple):
    """The settings of Algorithm 1, under the paper's names."""

    norm: Norm
    bounds: tuple[float, float]
    steps: int
    alpha_max: float
    eta: float
    beta: float

    def back(self, x_adv: Tensor, x: Tensor, hit: Tensor) -> Tensor:
        """Towards the clean image x where x_adv is a hit."""
        return torch.where(over_pixels(hit, x), x + self.beta * (x_adv - x), x_adv)

    def ahead(self, x_adv: Tensor, x: Tensor, hit: Tensor, values: Tensor, gradients: Tensor) -> Tensor:
        """Onto the nearest boundary, mixed with its point nearest to the clean image x (eq. 8 to 10), from x_adv or,
        where that is a hit, from its nearer point; values, gradients: of the boundaries at x_adv.
        """
        value, _, gradient = nearest(values, gradients, self.norm)
        points = torch.cat([self.back(x_adv, x, hit), x])
        gradient = torch.cat([gradient] * 2)
        value = torch.cat([value] * 2) + (gradient * (points - torch.cat([x_adv] * 2))).flatten(1).sum(1)
        on_plane = project(points, value, gradient, self.norm, self.bounds)
        size_here, size_clean = ThreatModel(norm=self.norm, eps=0.0).distance(on_plane, points).chunk(2)
        share = size_here / (size_here + size_clean).clamp(min=torch.finfo(x.dtype).tiny)
        here, clean = points.lerp(on_plane, self.eta).chunk(2)
        return here.lerp(clean, over_pixels(share.clamp(max=self.alpha_max), x)).clamp(*self.bounds)


def _clean_logits(model: Classifier, y: Tensor, found: Smallest) -> Tensor:
    """The logits of the clean images, of which the misclassified are noted as found."""
    with torch.no_grad():
        logits = model(found.x)
    found.offer(torch.arange(len(y), device=y.device), found.x, fooled(logits, y))
    return logits


def _walks(
    model: Classifier, y: Tensor, rivals: Tensor | int, walk: _Walk, found: Smallest, starts: int, rng: Rng
) -> None:
    """Algorithm 1 without its final search, from each start, for what is not done."""
    if starts < 1:
        raise UserError(f"a search can't begin at {starts} points; starts is 1 or more")
    for start in range(starts):
        index = found.open()
        x_adv = _begin(found, index, rng.take(index).at(restart=rng.restart * starts + start))
        for _ in range(walk.steps):
            if len(index) == 0:
                break
            x, label = found.x[index], y[index]
            at = rivals if isinstance(rivals, int) else rivals[index]
            leaf, logits = traced(model, x_adv)
            hit = fooled(logits, label)
            found.offer(index, x_adv, hit)
            if isinstance(at, int) and hit.any():
                x_adv, hit = walk.back(x_adv, x, hit), torch.zeros_like(hit)
                leaf, logits = traced(model, x_adv)
            x_adv = walk.ahead(x_adv, x, hit, *boundaries(leaf, logits, label, at))
            rest = ~found.done[index]
            index, x_adv = index[rest], x_adv[rest]
        if len(index) > 0:
            with torch.no_grad():
                found.offer(index, x_adv, fooled(model(x_adv), y[index]))


def _begin(found: Smallest, index: Tensor, rng: Rng) -> Tensor:
    """The clean image for restart 0 and where no radius is known, else a random point at half of the radius."""
    x = found.x[index]
    radius = found.distance[index].clamp(max=math.inf if found.eps is None else found.eps)
    if rng.restart == 0:
        return x
    ball = ThreatModel(norm=found.threat.norm, eps=1.0, bounds=(-math.inf, math.inf))
    offset = ball.sample(torch.zeros_like(x), rng)
    length = radius.nan_to_num(posinf=0.0) / 2 / ball.distance(offset, torch.zeros_like(x)).clamp(min=1e-30)
    return (x + offset * over_pixels(length, x)).clamp(*found.threat.bounds)


def _shorten(model: Classifier, y: Tensor, found: Smallest, steps: int = 3) -> None:
    """The final search (eq. 11): between the clean image and what was found, where a line through both margins crosses
    zero, three times. Differs by beginning 0.1 % behind what was found and going 70 % of each way: on the crossing
    itself, the rounding of another batch would decide.
    """
    index = (found.distance.isfinite() & ~found.done).nonzero().squeeze(1)
    if len(index) == 0:
        return
    x, label = found.x[index], y[index]
    right, wrong = x, (x + 1.001 * (found.x_adv[index] - x)).clamp(*found.threat.bounds)
    with torch.no_grad():
        below, above = margin(model(right), label), margin(model(wrong), label)
        clear = above > 0
        for _ in range(steps):
            share = (0.7 * above / (above - below).clamp(min=1e-30)).clamp(0.0, 1.0).to(right.dtype)
            between = wrong + over_pixels(share, right) * (right - wrong)
            logits = model(between)
            value = margin(logits, label)
            hit = value > 1e-5 * logits.abs().amax(1)
            found.offer(index, between, hit)
            picked = over_pixels(hit, right)
            right, wrong = torch.where(picked, right, between), torch.where(picked, between, wrong)
            below, above = torch.where(hit, below, value), torch.where(hit, value, above)
    clear &= ~found.done[index]
    found.x_adv[index[clear]], found.distance[index[clear]] = wrong[clear], found.threat.distance(wrong, x)[clear]


def _deepen(model: Classifier, y: Tensor, found: Smallest) -> None:
    """For a verdict at one eps: as far as eps in the direction of what was found, where that fools by more; on the
    boundary itself, the rounding of another batch or precision would decide.
    """
    index = (found.done & (found.distance > 0)).nonzero().squeeze(1)
    if found.eps is None or len(index) == 0:
        return
    x, near, label = found.x[index], found.x_adv[index], y[index]
    stretch = over_pixels(found.eps / found.distance[index], x)
    far = (x + stretch * (near - x)).clamp(*found.threat.bounds)
    with torch.no_grad():
        here, there = margin(model(torch.cat([near, far])), torch.cat([label, label])).chunk(2)
    deeper = (there > here) & found.threat.contains(far, x)
    found.x_adv[index[deeper]] = far[deeper]
