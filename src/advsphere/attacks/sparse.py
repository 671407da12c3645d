"""sigma-zero: change as few values as possible, by a smooth count of the changed ones and a threshold that adapts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advsphere.attacks.active import Active, put
from advsphere.attacks.combine import attack_kind, prepared
from advsphere.classifier import Classifier, fooled, input_gradient
from advsphere.errors import UserError
from advsphere.losses import margin
from advsphere.rng import Rng
from advsphere.threat import over_pixels

LAST_STEP = 0.1
"""The last step as a share of the first."""
THRESHOLD_RATE = 0.01
"""A step changes the threshold by this share of the step size."""
CHANGED = 0.3
"""Share of the values that a random start changes."""


@attack_kind("minimal-norm")
def sigma_zero(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    /,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    steps: int = 1000,
    starts: int = 1,
    step_size: float = 1.0,
    sigma: float = 1e-3,
    threshold: float = 0.3,
    eps: int | None = None,
    rng: Rng | None = None,
) -> Tensor:
    """sigma-zero: Adam on the margin plus a smooth count of the changed values, where small changes are undone.

    Source: Cina et al. 2025 (arXiv 2402.01879, Algorithm 1). The count of delta is the mean of
    delta^2 / (delta^2 + sigma). After each step, changes below a threshold are set to 0. The threshold rises after a
    success and falls after a failure. A step costs one forward and one backward. The norm is l0 over all pixels and
    channels: the number of values that change, by any amount within the bounds.

    Differs from the paper with `starts` above 1. Walks from different starts end at different values, and eight walks
    of 125 steps change fewer values than one of 1000 (benchmarks/README.md, "Optimality of the minimal norms").

    Args:
        model: Maps images to logits (B, K).
        x: Clean images (B, C, H, W), within the bounds.
        y: Labels (B,).
        bounds: Lowest and highest value of a pixel.
        steps: Number of steps of each walk, at least 1. The first one measures the start.
        starts: Number of walks, at least 1. The first begins at the clean image. The others begin where 30 % of the
            values are changed at random.
        step_size: Adam's first step size, above 0, in widths of the box; it falls along a cosine to a tenth.
        sigma: Smoothness of the count, above 0, in squared widths of the box.
        threshold: The first threshold, from 0 to 1, in widths of the box.
        eps: If given, return only adversarial examples with at most this many changed values, and stop at the first.
        rng: Random numbers for the starts after the first; by default of seed 0 and ids 0 to B - 1.

    Returns:
        The adversarial images found that change the fewest values, same shape as `x`, or the clean image where none
        was found.

    Raises:
        UserError: If bounds or a setting are invalid.
    """
    model = prepared(model, x, bounds, y)
    if not (
        min(steps, starts) >= 1 and min(step_size, sigma) > 0 and 0 <= threshold <= 1 and (eps is None or eps >= 0)
    ):
        raise UserError(
            f"steps is {steps}, starts {starts}, step_size {step_size}, sigma {sigma}, threshold {threshold} and eps "
            f"{eps}; steps and starts must be at least 1, step_size and sigma above 0, threshold from 0 to 1, and eps "
            "at least 0"
        )
    (low, high), clean, rng = bounds, x.detach(), rng or Rng.of(x)
    result, fewest = clean.clone(), torch.full((len(x),), x[0:1].numel() + 1, device=x.device)
    enough = max(1, eps or 0)  # an image that is fooled by one value can't be fooled by fewer
    for start in range(starts):
        active = Active((fewest > enough).nonzero().squeeze(1))
        x, labels = clean[active.index], y[active.index]
        delta, mean, square = (torch.zeros_like(x) for _ in range(3))  # in widths of the box
        if start > 0:
            delta = scattered(x, bounds, rng.take(active.index).at(restart=rng.restart * starts + start))
        least = torch.full((len(x),), threshold, dtype=x.dtype, device=x.device)
        for i in range(steps):
            if len(active) == 0:
                break
            x_adv = torch.where(delta == 0, x, (x + (high - low) * delta).clamp(low, high))
            logits, value, gradient = input_gradient(model, x_adv, labels, margin)
            hit = fooled(logits, labels)
            count = (x_adv != x).flatten(1).sum(1)
            better = hit & (count < fewest[active.index]) & active.open
            put(result, active.index, better, x_adv)
            put(fewest, active.index, better, count)

            uphill = over_pixels(value < 0, x) * gradient.nan_to_num(0.0, 0.0, 0.0) * (high - low)
            slope = 2 * sigma * delta / (delta.square() + sigma).square() / x[0].numel() - uphill
            slope = slope / over_pixels(slope.abs().flatten(1).amax(1), x).clamp(min=torch.finfo(x.dtype).tiny)
            mean, square = mean.lerp(slope, 0.1), square.lerp(slope.square(), 0.001)
            rate = step_size * (LAST_STEP + (1 - LAST_STEP) * (1 + math.cos(math.pi * i / steps)) / 2)
            moved = delta - rate * (mean / (1 - 0.9 ** (i + 1))) / ((square / (1 - 0.999 ** (i + 1))).sqrt() + 1e-8)
            moved = moved.clamp((low - x) / (high - low), (high - x) / (high - low))
            least = (least + THRESHOLD_RATE * torch.where(hit, rate, -rate)).clamp(0.0, 1.0)
            delta = moved * (moved.abs() >= over_pixels(least, x))
            if (rows := active.drop(fewest[active.index] <= enough)) is not None:
                x, labels, delta, mean, square, least = (part[rows] for part in (x, labels, delta, mean, square, least))
    return result if eps is None else torch.where(over_pixels(fewest <= eps, clean), result, clean)


def scattered(x: Tensor, bounds: tuple[float, float], rng: Rng) -> Tensor:
    """Changes of random values, each by up to the width of the box and within it: delta in widths of the box."""
    (low, high), number = bounds, rng.uniform(x.shape[1:], "start").to(x.dtype)
    delta = torch.where(number < CHANGED, 2 * number / CHANGED - 1, 0.0)
    return delta.clamp((low - x) / (high - low), (high - x) / (high - low))
