"""RayS: a hard-label attack that searches the corners of the linf ball.

It uses predictions only, no logits and no gradients. If it breaks examples that white-box attacks leave, the gradients
are probably masked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from advsphere.attacks.active import Active
from advsphere.attacks.combine import attack_kind, prepared
from advsphere.attacks.records import Rows, Smallest
from advsphere.classifier import Classifier, fooled
from advsphere.errors import UserError
from advsphere.rng import Rng


@attack_kind("black-box")
@torch.no_grad()
def rays(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    /,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    queries: int = 10_000,
    tolerance: float = 1e-3,
    eps: float | None = None,
    rng: Rng | None = None,
) -> Tensor:
    """Ray searching attack: search the directions of signs in which the boundary is nearest in linf.

    Source: Chen & Gu 2020 (arXiv 2006.12792): hierarchical search over blocks of pixels (Algorithm 3), with the fast
    check and the binary search for the radius (Algorithm 2).

    Differs from the official code (github.com/uclaml/RayS): a misclassified image is returned unchanged. Where the
    direction of all -1 does not fool the model, that of all +1 is tried. The number of queries is never exceeded. The
    search of an example stops once a whole pass over single pixels has changed nothing, because it would repeat itself,
    or once it succeeds within `eps`. Each example asks its own next query in every forward.

    Args:
        model: Maps images to logits (B, K); only their argmax is used.
        x: Clean images (B, C, H, W), within the bounds.
        y: Labels (B,).
        bounds: Lowest and highest value of a pixel.
        queries: Largest number of forwards of each image, at least 1.
        tolerance: Precision of the binary search, measured as in the paper by the l2 length of the ray, that is
            tolerance / sqrt(C H W) in pixel units.
        eps: If given, return only adversarial examples within this radius, and stop at the first one.
        rng: Not used, because nothing is random.

    Returns:
        The adversarial images of smallest linf norm found, same shape as `x`, or the clean image where none was found.

    Raises:
        UserError: If queries < 1, or if bounds or eps are invalid.
    """
    model = prepared(model, x, bounds, y)
    if queries < 1:
        raise UserError(f"queries is {queries}, but RayS needs at least 1 (10000 is usual)")
    found = Smallest(x, norm="linf", bounds=bounds, eps=eps)
    found.offer_clean(fooled(model(found.x), y))
    active = Active(found.open())
    x, y = found.x[active.index], y[active.index]
    search = _begin(x)
    for _ in range(queries - 1):
        if len(active) == 0:
            break
        radius = _question(search, bounds[1] - bounds[0])
        candidate = (x + (search.attempt * radius[:, None]).view_as(x)).clamp(*bounds)
        hit = fooled(model(candidate), y)
        found.offer(active.index, candidate, hit & active.open)
        search = _answered(search, radius, hit, tolerance / math.sqrt(x[0].numel()))
        if (rows := active.drop(search.converged | found.done[active.index])) is not None:
            x, y, search = x[rows], y[rows], search.take(rows)
    return found.result()


@dataclass(frozen=True)
class _Search(Rows):
    """The state of each example's search."""

    sign: Tensor  # best direction so far, (b, D) of +-1
    attempt: Tensor  # direction in question: `sign` with one block flipped
    best: Tensor  # radius (b,) at which `sign` fools the model, infinite before the first success
    low: Tensor  # bounds (b,) of the binary search for the radius of `attempt`
    high: Tensor
    searching: Tensor  # whether the binary search is running, (b,) bool
    level: Tensor  # the direction is divided into 2**level blocks, (b,)
    block: Tensor  # number of the flipped block (b,)
    improved: Tensor  # whether this level has improved `best`, (b,) bool
    converged: Tensor  # (b,) bool


def _begin(x: Tensor) -> _Search:
    ones, zero = torch.ones_like(x).flatten(1), x.new_zeros(len(x))
    no, start = torch.zeros(len(x), dtype=torch.bool, device=x.device), torch.zeros_like(zero, dtype=torch.long)
    return _Search(ones, -ones, zero + torch.inf, zero, zero, no, start, start, no, no)


def _question(search: _Search, width: float) -> Tensor:
    """The radius (b,) to query: the middle of the binary search, or the best radius so far (the fast check).

    It is at most the width of the box, because a longer ray ends in the same corner.
    """
    return torch.where(search.searching, (search.low + search.high) / 2, search.best.clamp(max=width))


def _answered(search: _Search, radius: Tensor, hit: Tensor, tolerance: float) -> _Search:
    """Update the search: a hit begins or narrows a binary search, a miss of the fast check moves to the next block."""
    better = hit & (radius < search.best)
    best = torch.where(better, radius, search.best)
    sign = torch.where(better[:, None], search.attempt, search.sign)
    low = torch.where(hit, search.low * search.searching, radius)
    high = torch.where(hit, radius, search.high)
    searching = (search.searching | hit) & (high - low > tolerance)
    improved = search.improved | better

    blocks, size = _blocks(search.level, sign.shape[1])
    # If flipping everything does not fool the model, the next block of level 0 lies outside: the unflipped direction.
    blocks = blocks + ((search.level == 0) & best.isinf())
    last = ~searching & (search.block >= blocks - 1)
    converged = last & (size == 1) & ~improved
    # Blocks of one pixel can't be halved, so this level is repeated.
    level = search.level + (last & (size > 1))
    block = torch.where(last, 0, search.block + (~searching).long())
    attempt = torch.where(searching[:, None], search.attempt, _flipped(sign, level, block))
    return _Search(sign, attempt, best, low, high, searching, level, block, improved & ~last, converged)


def _blocks(level: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Number and length of the blocks at a level: 2**level, or fewer if their rounded length covers `size` sooner."""
    length = -(-size // 2**level)
    return -(-size // length), length


def _flipped(sign: Tensor, level: Tensor, block: Tensor) -> Tensor:
    pixel = torch.arange(sign.shape[1], device=sign.device)
    _, length = _blocks(level, sign.shape[1])
    first = (block * length)[:, None]
    return torch.where((pixel >= first) & (pixel < first + length[:, None]), -sign, sign)
