"""The Square attack: random search over square windows.

It uses logits only, so it works on networks whose gradients are masked or do not exist.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from advsphere.attacks.active import Active, put
from advsphere.attacks.combine import attack_kind, prepared
from advsphere.classifier import Classifier, fooled
from advsphere.errors import UserError
from advsphere.losses import Loss, margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel, over_pixels

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, out of 10,000, after which the area of the windows is halved (the published schedule of p)."""

BLOCK = 64
"""Queries whose random numbers are drawn at once. Drawn one by one they would cost more than a small network."""


@attack_kind("black-box")
@torch.no_grad()
def square(
    model: Classifier,
    x: Tensor,
    target: Tensor,
    /,
    *,
    threat: ThreatModel,
    queries: int = 5000,
    p: float = 0.8,
    horizon: int | None = None,
    loss: Loss = margin,
    targeted: bool = False,
    rng: Rng | None = None,
) -> Tensor:
    """Square attack: random search over square windows of the image, without gradients.

    Source: Andriushchenko et al. 2020 (arXiv 1912.00049, Algorithms 1 to 3); for l1 Croce & Hein 2021 (arXiv
    2103.01208, appendix). Each example is done at its first success.

    Differs from the official code: windows and signs are drawn for each example (instead of one window for the batch,
    and for linf one sign pattern), and windows reach the last row and column, as in the paper. For l1 the radius is
    shortened by 1e-5 against rounding (instead of 1e-6).

    Args:
        model: Maps images to logits (B, K).
        x: Clean images (B, C, H, W), within the bounds.
        target: Labels (B,), or the classes to reach if `targeted`.
        threat: Norm, radius and bounds.
        queries: Largest number of forwards of each image, at least 1. The first one tries the initial pattern.
        p: Share of the image that the first windows cover, in (0, 1].
        horizon: Number of queries over which the windows shrink; `queries` if not given. AutoAttack runs 5,000 queries
            with a horizon of 10,000.
        loss: A window is kept if it raises this loss.
        targeted: Lower the loss instead, so that the prediction moves towards `target`. The paper uses
            `cross_entropy` there.
        rng: Random numbers for windows and signs; by default of seed 0 and ids 0 to B - 1.

    Returns:
        The adversarial images, same shape as `x`, or where nothing succeeds the point with the highest loss.

    Raises:
        UserError: If `x` is not (B, C, H, W), queries < 1 or p is outside (0, 1].
    """
    model = prepared(model, x, threat, target)
    if x.dim() != 4:
        raise UserError(f"square windows need images (B, C, H, W), the input has shape {tuple(x.shape)}")
    if queries < 1 or not 0 < p <= 1:
        raise UserError(f"queries is {queries} and p is {p}; queries must be at least 1 and p in (0, 1]")
    x, rng = x.detach(), rng or Rng.of(x)
    if threat.norm == "l1":
        # Every pixel changes, and their rounding errors add up.
        threat = replace(threat, eps=threat.eps * (1 - 1e-5))
    propose, first = (_recoloured, _stripes) if threat.norm == "linf" else (_rearranged, _tiles)
    candidate = threat.project(x + first(x, threat, rng), x)
    result, x_best = candidate.clone(), candidate
    active = Active(torch.arange(len(x), device=x.device))
    best = torch.full((len(x),), -torch.inf, device=x.device)
    for i in range(queries):
        logits = model(candidate)
        value = -loss(logits, target) if targeted else loss(logits, target)
        done = fooled(logits, target) != targeted
        better = done | (value > best)
        x_best = torch.where(over_pixels(better, x), candidate, x_best)
        best = torch.where(better, value, best)
        if i % BLOCK == 0:
            numbers = rng.at(step=i // BLOCK).uniform((BLOCK, 5 + x.shape[1]), "window")
        put(result, active.index, done & active.open, candidate)
        if (rows := active.drop(done)) is not None:
            x, x_best, target, best = x[rows], x_best[rows], target[rows], best[rows]
            rng, numbers = rng.take(rows), numbers[rows]
        if len(active) == 0:
            break
        area = p / 2 ** bisect_left(HALVINGS, i * 10_000 // (horizon or queries)) * x.shape[2] * x.shape[3]
        candidate = threat.project(propose(x, x_best, area, threat, numbers[:, i % BLOCK]), x)
    put(result, active.index, active.open, x_best)
    return result


def _stripes(x: Tensor, threat: ThreatModel, rng: Rng) -> Tensor:
    """The initial pattern for linf: columns of +-eps in each channel."""
    _, channels, _, width = x.shape
    return threat.eps * _signs(rng.uniform((channels, 1, width), "start")).to(x.dtype)


def _tiles(x: Tensor, threat: ThreatModel, rng: Rng) -> Tensor:
    """The initial pattern for l2 and l1: five by five tiles around the middle, each a bump of random sign.

    Its norm is eps for l2; for l1 it has to be projected. An image that is not square or smaller than five pixels has
    another number of tiles.
    """
    _, channels, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    bump = _bump(side, 1 if threat.norm == "l1" else 2, x.dtype, x.device)
    turned = rng.uniform((1, rows, columns, 1, 1), "turn") < 0.5
    signs = _signs(rng.uniform((channels, rows, columns, 1, 1), "start")).to(x.dtype)
    tiles = torch.where(turned, bump, bump.T) * signs
    grid = tiles.transpose(3, 4).flatten(4, 5).flatten(2, 3)
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    delta = F.pad(grid, (left, width - columns * side - left, top, height - rows * side - top))
    if threat.norm == "l1":
        return delta
    return threat.eps * delta / over_pixels(delta.flatten(1).norm(dim=1), x)


def _recoloured(x: Tensor, x_best: Tensor, area: float, threat: ThreatModel, numbers: Tensor) -> Tensor:
    """Set a window to +-eps from the clean image, one sign per channel (Algorithm 2, linf)."""
    height, width = x.shape[2:]
    side = min(max(round(area**0.5), 1), height, width)
    rows, columns = _spans(numbers[:, :2], side, height, width)
    inside = x.new_zeros((len(x), height), dtype=torch.bool).scatter_(1, rows, True)[:, None, :, None]
    inside = inside & x.new_zeros((len(x), width), dtype=torch.bool).scatter_(1, columns, True)[:, None, None, :]
    signs = _signs(numbers[:, 5:, None, None]).to(x.dtype)
    return torch.where(inside, x + threat.eps * signs, x_best)


def _rearranged(x: Tensor, x_best: Tensor, area: float, threat: ThreatModel, numbers: Tensor) -> Tensor:
    """Add a bump to a window, and take its budget from a second window (Algorithm 3, l2 and l1).

    The l1 form gives a window the budget of all channels and leaves the rest to the projection.
    """
    channels, height, width = x.shape[1:]
    order = 1 if threat.norm == "l1" else 2
    side = min(max(round(area**0.5), 3) // 2 * 2 + 1, height, width)
    delta = (x_best - x).flatten(2)
    target, source = (
        (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None].expand(-1, channels, -1)
        for rows, columns in (_spans(part, side, height, width) for part in (numbers[:, :2], numbers[:, 2:4]))
    )
    emptied = delta.scatter(2, source, 0.0).scatter(2, target, 0.0)
    unused = (threat.eps**order - delta.abs().pow(order).sum((1, 2))).clamp(min=0.0)[:, None, None]
    given = (delta - emptied).abs().pow(order).sum(2, keepdim=True) + unused / channels
    budget = given * channels if order == 1 else given.sqrt()
    bump = _bump(side, order, x.dtype, x.device)
    turned = torch.where(numbers[:, 4, None, None] < 0.5, bump, bump.T).flatten(1)[:, None]
    fresh = turned * _signs(numbers[:, 5:, None]).to(x.dtype) + _unit(delta.gather(2, target), order)
    return x + emptied.scatter(2, target, _unit(fresh, order) * budget).view_as(x)


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0)


def _spans(numbers: Tensor, side: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The rows and columns, (b, side) each, of random windows inside the image; numbers: (b, 2) in (0, 1)."""
    top, left = (numbers[:, :1] * (height - side + 1)).long(), (numbers[:, 1:] * (width - side + 1)).long()
    span = torch.arange(side, device=numbers.device)
    return top + span, left + span


def _unit(vectors: Tensor, order: int) -> Tensor:
    length = torch.linalg.vector_norm(vectors, order, dim=-1, keepdim=True)
    return vectors / length.clamp(min=1e-12)


@lru_cache(maxsize=64)
def _bump(side: int, order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Two pyramids of opposite sign above each other (eq. 2), of norm 1 in `order`: (side, side)."""
    half = side // 2
    bump = torch.cat([_pyramid(half, side, order), -_pyramid(side - half, side, order)])
    return _unit(bump.flatten(), order).view_as(bump).to(device, dtype)


def _pyramid(height: int, width: int, order: int) -> Tensor:
    """For each cell the sum of 1 / k^2 (l1: 1 / k^4) over the concentric squares k that contain it, of norm 1."""
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    ring = torch.maximum(rows[:, None], columns[None, :])
    steps = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** (-4 if order == 1 else -2)
    pyramid = steps.flip(0).cumsum(0).flip(0)[ring]
    return _unit(pyramid.flatten(), order).view_as(pyramid)
