"""FAB: the fast adaptive boundary attack, which walks along the decision boundary and is pulled to the clean image."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from advsphere.attacks.active import Active, put, reads_are_free, targets_at_once
from advsphere.attacks.combine import attack_kind, prepared
from advsphere.attacks.hyperplane import boundaries, most_likely_rivals, nearest, project, traced
from advsphere.attacks.records import Smallest
from advsphere.classifier import Classifier, fooled
from advsphere.errors import UserError
from advsphere.losses import margin
from advsphere.rng import Rng
from advsphere.threat import Norm, ThreatModel, over_pixels


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
    """Fast adaptive boundary attack: walk along the nearest decision boundary, pulled towards the clean image.

    Source: Croce & Hein 2020 (arXiv 1907.02044, Algorithm 1). A step costs classes - 1 backwards and one forward, or
    two where an example of the batch was just fooled (on a GPU always two). Seven more forwards begin and end the
    search.

    Differs from the paper, which linearises all classes: only the `classes` most likely ones are linearised.

    Args:
        model: Maps images to logits (B, K).
        x: Clean images (B, C, H, W), within the bounds.
        y: Labels (B,).
        norm: "linf", "l2" or "l1".
        bounds: Lowest and highest value of a pixel.
        steps: Number of steps of each walk.
        starts: Number of walks, at least 1. The first begins at the clean image. The others begin at a random point,
            at half the norm of the best example so far (at most eps / 2).
        alpha_max: Largest weight of the pull towards the clean image.
        eta: Length of a step relative to the way to the boundary; above 1 it lands beyond.
        beta: Share of the perturbation that is kept after a success.
        classes: Number of most likely classes to linearise at each step, including the label; at least 2.
        eps: If given, return only adversarial examples within this radius. An example is then done once one is found,
            and moves as far beyond the boundary as its direction leads inside the ball.
        rng: Random numbers for the starts after the first; by default of seed 0 and ids 0 to B - 1.

    Returns:
        The smallest adversarial images found, same shape as `x`, or the clean image where none was found.

    Raises:
        UserError: If norm, bounds, eps, starts or classes are invalid.
    """
    model = prepared(model, x, bounds, y)
    found = Smallest(x, norm=norm, bounds=bounds, eps=eps)
    walk = _Walk(model, y, found, steps, starts, alpha_max, eta, beta)
    walk.clean_logits()
    walk.run(classes - 1, rng or Rng.of(x))
    return walk.result()


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
    """FAB-T: `fab` along the boundary to one wrong class at a time, for the most likely ones of the clean image.

    Source: Croce & Hein 2020 (arXiv 2003.01690, section 4). The result is still untargeted, the smallest adversarial
    image of any wrong class. A step costs one forward and one backward for any number of classes, so use it
    instead of `fab` for many classes. With `eps` and one start, the classes after the first one run side by side, as
    many as fit into a batch of the size that the outermost attack was given.

    Differs from the paper, which goes back towards the clean image after a success and linearises there. Here the
    boundary seen at the success is kept, because it is nearer. That saves a forward per step and ends nearer (measured
    0.3 % or more in the median). `fab`, which has many boundaries to choose from, ends farther away with it.

    Args:
        model: Maps images to logits (B, K).
        x: Clean images (B, C, H, W), within the bounds.
        y: Labels (B,).
        norm: "linf", "l2" or "l1".
        bounds: Lowest and highest value of a pixel.
        steps: Number of steps of each walk.
        starts: Number of walks for each target, as in `fab`.
        alpha_max: As in `fab`.
        eta: As in `fab`.
        beta: As in `fab`.
        targets: Number of wrong classes, at least 1; at most K - 1 of them exist.
        eps: As in `fab`.
        rng: As in `fab`.

    Returns:
        The smallest adversarial images found, same shape as `x`, or the clean image where none was found.

    Raises:
        UserError: If norm, bounds, eps, starts or targets are invalid.
    """
    model = prepared(model, x, bounds, y)
    found, rng = Smallest(x, norm=norm, bounds=bounds, eps=eps), rng or Rng.of(x)
    walk = _Walk(model, y, found, steps, starts, alpha_max, eta, beta)
    rivals = most_likely_rivals(walk.clean_logits(), y, targets)
    # All other walks begin at random, at a distance that earlier targets have found.
    clean = starts == 1 and rng.restart == 0
    for ranks, index in targets_at_once(rivals.shape[1], model.room if clean else 0, found.done):
        rows = index.repeat(len(ranks))
        side = walk._replace(y=y[rows], found=found.take(rows))
        side.run(rivals[index, ranks.start : ranks.stop].T.reshape(-1, 1), rng.take(rows).at(step=ranks.start))
        results = side.found.x_adv.chunk(len(ranks)), side.found.distance.chunk(len(ranks))
        for x_adv, distance in zip(*results, strict=True):
            found.offer(index, x_adv, distance.isfinite() & ~found.done[index])
    return walk.result()


class _Walk(NamedTuple):
    """A search with the settings of Algorithm 1, under the paper's names."""

    model: Classifier
    y: Tensor
    found: Smallest
    steps: int
    starts: int
    alpha_max: float
    eta: float
    beta: float

    def clean_logits(self) -> Tensor:
        """The logits of the clean images. Misclassified images are noted as found."""
        with torch.no_grad():
            logits = self.model(self.found.x)
        self.found.offer_clean(fooled(logits, self.y))
        return logits

    def run(self, rivals: Tensor | int, rng: Rng) -> None:
        """Algorithm 1 without its final search, from each start, for the examples that are not done."""
        found = self.found
        if self.starts < 1:
            raise UserError(f"starts is {self.starts}; it must be 1 or more")
        for start in range(self.starts):
            active = Active(found.open())
            x_adv = self.begin(active.index, rng.take(active.index).at(restart=rng.restart * self.starts + start))
            for _ in range(self.steps):
                if len(active) == 0:
                    break
                x, y = found.x[active.index], self.y[active.index]
                others = rivals if isinstance(rivals, int) else rivals[active.index]
                leaf, logits = traced(self.model, x_adv)
                hit = fooled(logits, y) & active.open
                found.offer(active.index, x_adv, hit)
                # Where a look at the hits takes a wait, run the second forward without one.
                if isinstance(others, int) and (not reads_are_free(hit.device) or hit.any()):
                    x_adv, hit = self.back(x_adv, x, hit), torch.zeros_like(hit)
                    leaf, logits = traced(self.model, x_adv)
                x_adv = self.ahead(x_adv, x, hit, *boundaries(leaf, logits, y, others))
                if (rows := active.drop(found.done[active.index])) is not None:
                    x_adv = x_adv[rows]
            if len(active) > 0:
                with torch.no_grad():
                    hit = fooled(self.model(x_adv), self.y[active.index]) & active.open
                found.offer(active.index, x_adv, hit)

    def begin(self, index: Tensor, rng: Rng) -> Tensor:
        """The clean image for restart 0 or if no radius is known, else a random point at half of the radius."""
        found, x = self.found, self.found.x[index]
        if rng.restart == 0:
            return x
        radius = found.distance[index].clamp(max=math.inf if found.eps is None else found.eps)
        ball = ThreatModel(norm=found.threat.norm, eps=1.0, bounds=(-math.inf, math.inf))
        offset = ball.sample(torch.zeros_like(x), rng)
        length = radius.nan_to_num(posinf=0.0) / 2 / ball.distance(offset, torch.zeros_like(x)).clamp(min=1e-30)
        return (x + offset * over_pixels(length, x)).clamp(*found.threat.bounds)

    def back(self, x_adv: Tensor, x: Tensor, hit: Tensor) -> Tensor:
        """Move towards the clean image x where x_adv is a hit."""
        return torch.where(over_pixels(hit, x), x + self.beta * (x_adv - x), x_adv)

    def ahead(self, x_adv: Tensor, x: Tensor, hit: Tensor, values: Tensor, gradients: Tensor) -> Tensor:
        """Step onto the nearest boundary, mixed with the boundary's point nearest to the clean image x (eq. 8 to 10).

        The step begins at x_adv, or if that is a hit, at the point that `back` returns. values and gradients describe
        the boundaries at x_adv.
        """
        norm, bounds = self.found.threat.norm, self.found.threat.bounds
        value, _, gradient = nearest(values, gradients, norm)
        points = torch.cat([self.back(x_adv, x, hit), x])
        gradient = torch.cat([gradient] * 2)
        value = torch.cat([value] * 2) + (gradient * (points - torch.cat([x_adv] * 2))).flatten(1).sum(1)
        on_plane = project(points, value, gradient, norm, bounds)
        size_here, size_clean = self.found.threat.distance(on_plane, points).chunk(2)
        share = size_here / (size_here + size_clean).clamp(min=torch.finfo(x.dtype).tiny)
        here, clean = points.lerp(on_plane, self.eta).chunk(2)
        return here.lerp(clean, over_pixels(share.clamp(max=self.alpha_max), x)).clamp(*bounds)

    def result(self) -> Tensor:
        """The images to return, after the searches along the line between the clean image and the best example."""
        self.shorten()
        self.deepen()
        return self.found.result()

    def shorten(self) -> None:
        """The final search (eq. 11): move three times to where the line through both margins crosses zero.

        Differs from the paper: it begins 0.1 % beyond the best example and goes 70 % of each way. At the crossing
        itself the rounding of another batch would decide.
        """
        found = self.found
        index = (found.distance.isfinite() & ~found.done).nonzero().squeeze(1)
        if len(index) == 0:
            return
        x, y = found.x[index], self.y[index]
        right, wrong = x, (x + 1.001 * (found.x_adv[index] - x)).clamp(*found.threat.bounds)
        with torch.no_grad():
            below, above = margin(self.model(right), y), margin(self.model(wrong), y)
            clear = above > 0
            for _ in range(3):
                share = (0.7 * above / (above - below).clamp(min=1e-30)).clamp(0.0, 1.0).to(right.dtype)
                between = wrong + over_pixels(share, right) * (right - wrong)
                logits = self.model(between)
                value = margin(logits, y)
                hit = value > 1e-5 * logits.abs().amax(1)
                found.offer(index, between, hit)
                picked = over_pixels(hit, right)
                right, wrong = torch.where(picked, right, between), torch.where(picked, between, wrong)
                below, above = torch.where(hit, below, value), torch.where(hit, value, above)
        clear &= ~found.done[index]
        put(found.x_adv, index, clear, wrong)
        put(found.distance, index, clear, found.threat.distance(wrong, x))

    def deepen(self) -> None:
        """If eps is given, move the best example out to eps if that raises the margin, away from rounding errors."""
        found = self.found
        index = (found.done & (found.distance > 0)).nonzero().squeeze(1)
        if found.eps is None or len(index) == 0:
            return
        x, near, y = found.x[index], found.x_adv[index], self.y[index]
        stretch = over_pixels(found.eps / found.distance[index], x)
        far = (x + stretch * (near - x)).clamp(*found.threat.bounds)
        with torch.no_grad():
            here, there = margin(self.model(torch.cat([near, far])), torch.cat([y, y])).chunk(2)
        deeper = (there > here) & found.threat.contains(far, x)
        put(found.x_adv, index, deeper, far)
