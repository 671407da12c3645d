"""Spatter: drops of water, or of mud, on the lens.

The water's relief is drawn by a chain of 8-bit image operations of OpenCV: edges by Canny, distances to them, histogram
equalisation, embossing. They are written here for whole batches, with OpenCV's conventions at borders and in rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advsphere.data.corruptions import filters
from advsphere.data.corruptions.noise import normal
from advsphere.draws import Draws

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
    images: Tensor, draws: Draws, mean: float, sigma: float, blur: float, threshold: float, strength: float, mud: float
) -> Tensor:
    """Smoothed noise above a threshold is liquid. mean, sigma, blur: of the noise. strength: of water, its opacity; of
    mud, the blur of its edges. mud: 1 for mud, 0 for water.
    """
    x = images.float()
    layer = filters.gaussian_blur(normal(draws, (1, *images.shape[2:]), "spatter").mul_(sigma).add_(mean), blur)
    if mud:
        cover = filters.gaussian_blur((layer > threshold).float(), strength)
        cover = torch.where(cover < 0.8, 0, cover)
        return x * (1 - cover) + cover * _colour(_MUD, x)
    layer = filters.side_by_side(layer)
    liquid = torch.where(layer < threshold, 0, layer).mul_(255).clamp_(0, 255).floor_()
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
    size = dx.abs() + dy.abs()
    around = F.pad(size, [1] * 4)

    def at(i: int, j: int) -> Tensor:
        return _shifted(around, 1 + i, 1 + j, size)

    flat = dy.abs() < dx.abs() * 0.41421356  # tan(22.5 degrees)
    steep = dy.abs() > dx.abs() * 2.41421356
    diagonal = torch.where(
        (dx < 0) ^ (dy < 0), (size > at(-1, 1)) & (size > at(1, -1)), (size > at(-1, -1)) & (size > at(1, 1))
    )
    crest = torch.where(flat, (size > at(0, -1)) & (size >= at(0, 1)), diagonal)
    crest = torch.where(steep, (size > at(-1, 0)) & (size >= at(1, 0)), crest) & (size > low)
    found = (crest & (size > high)).float()
    weak = crest.float()
    while True:  # what touches an edge and is weak becomes an edge
        grown = F.max_pool2d(found, 3, 1, 1).mul_(weak)
        if torch.equal(grown, found):
            return found.bool()
        found = grown


def distances(edge: Tensor) -> Tensor:
    """(1, B, H, W) float32: length of the shortest way to an edge by _STEPS, 20 where it is longer or there is none.

    A shortest way uses each kind of step some number of times, in any order; so one kind after the other, and 1, 2, 4,
    8 and 16 steps of each.
    """
    found = torch.full(edge.shape, _FARTHEST, device=edge.device).masked_fill_(edge, 0.0)
    reach = 32
    height, width = edge.shape[2:]
    padded = F.pad(found, [reach] * 4, value=_FARTHEST)
    inside = padded[..., reach : reach + height, reach : reach + width]
    for (i, j), length in _STEPS:
        times = 1
        while times * length < _FARTHEST:
            ahead = _shifted(padded, reach + times * i, reach + times * j, inside)
            behind = _shifted(padded, reach - times * i, reach - times * j, inside)
            inside.copy_(torch.minimum(inside, torch.minimum(ahead, behind).add_(times * length)))
            times *= 2
    return inside.contiguous()


def equalised(grey: Tensor) -> Tensor:
    """Histogram equalisation of each plane of grey (1, B, H, W), whole numbers in 0..255 as float32."""
    flat = grey[0].flatten(1).long()
    counts = torch.zeros(len(flat), 256, device=grey.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32))
    total, lowest = flat.shape[1], flat.amin(1, keepdim=True)
    first = counts.gather(1, lowest)
    table = ((counts.cumsum(1) - first) * (255 / (total - first).clamp(min=1))).round_().clamp_(0, 255)
    table = torch.where(first == total, lowest.float(), table)
    return table.gather(1, flat).view(grey.shape).contiguous(memory_format=torch.channels_last)


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
