"""Spatter: drops of water, or of mud, on the lens.

The water's relief is drawn by a chain of 8-bit image operations of OpenCV: edges by Canny, distances to them, histogram
equalisation, embossing. They are written here for whole batches, with OpenCV's conventions at borders and in rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advsphere.corruption import filters
from advsphere.corruption.noise import normal
from advsphere.rng import Rng

_WATER = (175.0, 238.0, 238.0)
_MUD = (63.0, 42.0, 20.0)
_FARTHEST = 20.0
_EMBOSS = ((-2.0, -1.0, 0.0), (-1.0, 1.0, 1.0), (0.0, 1.0, 2.0))
_STEPS = (
    ((0, 1), 1.0),
    ((1, 0), 1.0),
    ((1, 1), 1.4),
    ((1, -1), 1.4),
    ((1, 2), 2.1969),
    ((1, -2), 2.1969),
    ((2, 1), 2.1969),
    ((2, -1), 2.1969),
)
"""The moves, and lengths, that OpenCV's 5x5 distance is made of (Borgefors 1986)."""


def spatter(
    images: Tensor, rng: Rng, mean: float, sigma: float, blur: float, threshold: float, strength: float, mud: float
) -> Tensor:
    """Smoothed noise above a threshold is liquid. mean, sigma, blur: of the noise. strength: of water, its opacity; of
    mud, the blur of its edges. mud: 1 for mud, 0 for water.
    """
    x = images.float()
    layer = filters.gaussian_blur(normal(rng, (1, *images.shape[2:]), "spatter").mul_(sigma).add_(mean), blur)
    if mud:
        cover = filters.gaussian_blur((layer > threshold).float(), strength)
        cover = F.threshold(cover, 0.8, 0)
        return x * (1 - cover) + cover * _colour(_MUD, x)
    liquid = F.threshold(filters.side_by_side(layer), threshold, 0).mul_(255).clamp_(0, 255).floor_()
    relief = liquid * _relief(liquid)
    relief *= strength / relief.amax((2, 3), keepdim=True).clamp_(min=1)
    return x + relief[0][:, None] * _colour(_WATER, x)


def edges(grey: Tensor, low: float = 50, high: float = 150) -> Tensor:
    """Canny's edges (1986) of grey (1, B, H, W), whole numbers in 0..255, as bool: Sobel, |dx| + |dy|, hysteresis."""
    padded = F.pad(grey, [1] * 4, mode="replicate")
    across = padded[..., 2:] - padded[..., :-2]
    down = padded[..., 2:, :] - padded[..., :-2, :]
    dx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    dy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    width, height = dx.abs(), dy.abs()
    size = width + height
    around = F.pad(size, [1] * 4)

    def larger(i: int, j: int, k: int, m: int) -> Tensor:
        return torch.maximum(_shifted(around, 1 + i, 1 + j, size), _shifted(around, 1 + k, 1 + m, size))

    # A crest is higher than its neighbours across; along rows and columns, than half a level below the later one.
    # Masks are floats and choose by arithmetic, exact in whole and half numbers: torch's `where` is ten times as slow.
    around_half = around - 0.5
    beside = torch.maximum(_shifted(around, 1, 0, size), _shifted(around_half, 1, 2, size))
    above = torch.maximum(_shifted(around, 0, 1, size), _shifted(around_half, 2, 1, size))
    falling, rising = larger(-1, -1, 1, 1), larger(-1, 1, 1, -1)
    opposite = (dx * dy).lt_(0)
    across_it = falling.add_(rising.sub_(falling).mul_(opposite))
    flat, steep = (
        (height - width * 0.41421356).lt_(0),
        (height - width * 2.41421356).gt_(0),
    )  # tan(22.5 degrees), tan(67.5)
    across_it.add_(beside.sub_(across_it).mul_(flat))
    across_it.add_(above.sub_(across_it).mul_(steep))
    crest = size > across_it.clamp_(min=low)
    found = F.pad(crest & (size > high), [1] * 4).movedim(1, -1).contiguous()
    # What touches an edge and is weak becomes an edge: few are weak, so they are gone through one by one.
    weak = F.pad(crest & (size <= high), [1] * 4).movedim(1, -1).flatten().nonzero()
    row, pixel = found.stride(1), found.stride(2)
    steps = torch.tensor([i * row + j * pixel for i in (-1, 0, 1) for j in (-1, 0, 1)], device=grey.device)
    flat_found = found.view(-1)
    while len(weak) and bool((touching := flat_found[weak + steps].any(1)).any()):
        flat_found[weak[touching]] = True
        weak = weak[~touching]
    return found.movedim(-1, 1)[..., 1:-1, 1:-1]


def distances(edge: Tensor) -> Tensor:
    """(1, B, H, W) float32: length of the shortest way to an edge by _STEPS, 20 where it is longer or there is none.

    A shortest way uses each kind of step some number of times, in any order; so one kind after the other, and 1, 2, 4,
    8 and 16 steps of each.
    """
    reach = 32
    padded = F.pad(_FARTHEST * (1 - edge.float()), [reach] * 4, value=_FARTHEST)
    inside = _shifted(padded, reach, reach, edge)
    nearer = torch.empty_like(inside)
    for (i, j), length in _STEPS:
        times = 1
        while times * length < _FARTHEST:
            ahead = _shifted(padded, reach + times * i, reach + times * j, edge)
            behind = _shifted(padded, reach - times * i, reach - times * j, edge)
            torch.minimum(ahead, behind, out=nearer)
            torch.minimum(inside, nearer.add_(times * length), out=inside)
            times *= 2
    return inside.contiguous(memory_format=torch.channels_last)


def equalised(grey: Tensor) -> Tensor:
    """Histogram equalisation of each plane of grey (1, B, H, W), whole numbers in 0..255 as float32."""
    levels = grey[0].permute(1, 2, 0)
    count, total = grey.shape[1], grey.shape[2] * grey.shape[3]
    which = levels.int().add_(256 * torch.arange(count, device=grey.device, dtype=torch.int32)).flatten()
    counts = torch.bincount(which, minlength=256 * count).view(count, 256).float()
    lowest = levels.amin((0, 1)).long()[:, None]
    first = counts.gather(1, lowest)
    table = ((counts.cumsum(1) - first) * (255 / (total - first).clamp(min=1))).round_().clamp_(0, 255)
    table = torch.where(first == total, lowest.float(), table)
    return table.flatten().index_select(0, which).view(levels.shape).permute(2, 0, 1)[None]


def _relief(liquid: Tensor) -> Tensor:
    """(1, B, H, W), whole numbers in 0..255: how much light each place of the water throws back."""
    away = equalised(_mean3(distances(edges(liquid))).floor_())
    embossed = filters.correlate(away, torch.tensor(_EMBOSS)).clamp_(0, 255)
    return _mean3(embossed).round_()


def _mean3(planes: Tensor) -> Tensor:
    return filters.correlate(planes, torch.full((3, 3), 1 / 9))


def _shifted(padded: Tensor, i: int, j: int, like: Tensor) -> Tensor:
    return padded[..., i : i + like.shape[2], j : j + like.shape[3]]


def _colour(rgb: tuple[float, float, float], x: Tensor) -> Tensor:
    return torch.tensor(rgb, device=x.device)[:, None, None]
