"""RayS: a hard-label attack that searches the corners of the linf ball and sees predictions alone.

No gradient and no logit is used, so an accuracy that white-box attacks leave and RayS takes is a sign of masked
gradients.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from advsphere.attacks.combine import attack_kind
from advsphere.attacks.smallest import Smallest
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
    """The ray-searching attack (Chen & Gu 2020, arXiv 2006.12792): hierarchical search (Algorithm 3) over the signs of
    blocks of pixels, with the fast check and the binary search of the radius (Algorithm 2).

    x: (B, C, H, W) in bounds -> the adversarial image of the smallest linf norm that was found, the clean image where
    none was. y: (B,) labels. queries: the most images of one example that the model sees, >= 1. tolerance: where the
    binary search ends, as the published length of the ray, ||x_adv - x||_2 before the box: tolerance / sqrt(C H W) in
    pixel units. eps: for a verdict at this radius: an example is done once it is fooled within eps, and what is larger
    is not returned. rng: not needed, nothing is random. Raises UserError for queries < 1, and for bounds or eps that
    make no sense.

    The search of one example never waits for another's: in each forward, every example that is not done asks its own
    next question. Differs from the official code (github.com/uclaml/RayS): a misclassified image is its own answer;
    where the direction of all -1 fools nothing, that of all +1 is asked, there never; the limit of queries is exact; a
    search stops once a whole pass over single pixels has changed nothing, from where the published one would ask the
    same questions again; with eps, examples inside the ball ask nothing more.
    """
    if queries < 1:
        raise UserError(f"RayS can't work with {queries} queries; it needs at least 1, and 10000 is usual")
    found = Smallest(x, norm="linf", bounds=bounds, eps=eps)
    index = found.open()
    found.offer(index, found.x, fooled(model(found.x), y))
    index = found.open()
    x, y, search = found.x[index], y[index], _begin(found.x[index])
    for _ in range(queries - 1):
        if len(index) == 0:
            break
        radius = _question(search, bounds[1] - bounds[0])
        candidate = (x + (search.attempt * radius[:, None]).view_as(x)).clamp(*bounds)
        hit = fooled(model(candidate), y)
        found.offer(index[hit], candidate[hit], hit[hit])
        search = _answered(search, radius, hit, tolerance / math.sqrt(x[0].numel()))
        rest = ~(search.converged | found.done[index])
        if not rest.all():
            index, x, y, search = index[rest], x[rest], y[rest], _Search(*(part[rest] for part in search))
    return found.result()


class _Search(NamedTuple):
    """How far the search of each example is; all (b, ...).

    sign, attempt: (b, D) of +-1, the best direction so far and the one in question. best: the radius at which `sign`
    fools, inf before the first success. low, high: where the radius of `attempt` is looked for while `searching`.
    level, block: `attempt` is `sign` with block number `block` of 2**level flipped. improved: at this level.
    """

    sign: Tensor
    attempt: Tensor
    best: Tensor
    low: Tensor
    high: Tensor
    searching: Tensor
    level: Tensor
    block: Tensor
    improved: Tensor
    converged: Tensor


def _begin(x: Tensor) -> _Search:
    ones, zero = torch.ones_like(x).flatten(1), x.new_zeros(len(x))
    no, start = torch.zeros(len(x), dtype=torch.bool, device=x.device), torch.zeros_like(zero, dtype=torch.long)
    return _Search(ones, -ones, zero + torch.inf, zero, zero, no, start, start, no, no)


def _question(search: _Search, width: float) -> Tensor:
    """(b,): the radius to ask about, the middle of a binary search or, as the fast check, the best one so far.

    width: of the box; a longer ray ends in the same corner.
    """
    return torch.where(search.searching, (search.low + search.high) / 2, search.best.clamp(max=width))


def _answered(search: _Search, radius: Tensor, hit: Tensor, tolerance: float) -> _Search:
    """The search after `attempt` was asked at `radius`: a hit narrows the radius down or begins to, a miss of the fast
    check goes on to the next block.
    """
    better = hit & (radius < search.best)
    best = torch.where(better, radius, search.best)
    sign = torch.where(better[:, None], search.attempt, search.sign)
    low = torch.where(hit, search.low * search.searching, radius)
    high = torch.where(hit, radius, search.high)
    searching = (search.searching | hit) & (high - low > tolerance)
    improved = search.improved | better

    blocks, size = _blocks(search.level, sign.shape[1])
    # Where the first flip, of everything, fools nothing, block 1 of level 0 lies outside: the same without a flip.
    blocks = blocks + ((search.level == 0) & best.isinf())
    last = ~searching & (search.block >= blocks - 1)
    converged = last & (size == 1) & ~improved
    # Blocks of one pixel can't be halved: from there on the same level is passed over again.
    level = search.level + (last & (size > 1))
    block = torch.where(last, 0, search.block + (~searching).long())
    attempt = torch.where(searching[:, None], search.attempt, _flipped(sign, level, block))
    return _Search(sign, attempt, best, low, high, searching, level, block, improved & ~last, converged)


def _blocks(level: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Number and length of the blocks at each level: 2**level of them, fewer where their rounded length fills `size`
    sooner.
    """
    length = -(-size // 2**level)
    return -(-size // length), length


def _flipped(sign: Tensor, level: Tensor, block: Tensor) -> Tensor:
    pixel = torch.arange(sign.shape[1], device=sign.device)
    _, length = _blocks(level, sign.shape[1])
    first = (block * length)[:, None]
    return torch.where((pixel >= first) & (pixel < first + length[:, None]), -sign, sign)
