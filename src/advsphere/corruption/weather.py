"""Weather: snow, frost, fog, brightness, and drops of water or mud on the lens (spatter).

Frost blends photographs of frosted windows into an image. We may not distribute the published photographs, so five
procedural textures of needles replace them, with the same means, spreads and spectra. Users who have the published
files (frost1.png, frost2.png, frost3.png, frost4.jpg and frost5.jpg of hendrycks/robustness) can name their folder.

The relief of spattered water is computed by a chain of 8-bit image operations of OpenCV: Canny edges, distances to
them, histogram equalisation, embossing. They are implemented here for whole batches, with OpenCV's conventions for
borders and rounding.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from advsphere.corruption.blur import correlate, gaussian_filter, motion_filter, side_by_side, zoomed
from advsphere.corruption.noise import normal, symmetric
from advsphere.corruption.severity import table_for
from advsphere.errors import UserError
from advsphere.rng import Rng

_GREY = (0.299, 0.587, 0.114)


def snow(
    images: Tensor,
    rng: Rng,
    mean: float,
    sigma: float,
    zoom: float,
    threshold: float,
    radius: float,
    width: float,
    keep: float,
) -> Tensor:
    """Whiten the image and add flakes: enlarged, thresholded and smeared noise plus its rotation by 180 degrees.

    The noise has this mean and sigma. `radius` and `width` belong to the motion blur, at -135 to -45 degrees. `keep` is
    the weight of the original image against the whitened one.
    """
    flakes = zoomed(normal(rng, (1, *images.shape[2:]), "snow").mul_(sigma).add_(mean), zoom)
    flakes = F.threshold(flakes, threshold, 0).clamp_(0, 1).mul_(255).floor_()
    angle = rng.uniform((), "snow angle").mul(90).sub(135)
    flakes = motion_filter(flakes, angle, radius, width)
    x = images.float()
    grey = (x * torch.tensor(_GREY, device=x.device)[:, None, None]).sum(1, keepdim=True)
    return x.mul(keep).add_(torch.maximum(x, grey.mul_(1.5).add_(127.5)), alpha=1 - keep) + (flakes + flakes.flip(2, 3))


def fog(images: Tensor, rng: Rng, thickness: float, decay: float) -> Tensor:
    """Add a plasma fractal to the image, and darken it so that its brightest value does not change."""
    x = images.float()
    side, layer = images.shape[-1], 255 * thickness
    brightest = x.amax((1, 2, 3), keepdim=True)
    x += plasma(rng, side, decay)[:, None, :side, :side].mul_(layer)
    return x.mul_(brightest / (brightest + layer))


def brightness(images: Tensor, rng: Rng, more: float) -> Tensor:
    """Raise V of HSV. Hue and saturation stay, so all channels grow by the same factor, and black becomes grey."""
    x = images.float()
    v = x.amax(1, keepdim=True)
    x += (v < 1).float()  # black becomes grey level 1, because the next line divides by v
    return x.mul_((v + 255 * more).clamp_(max=255).div_(v.clamp_(min=1)))


def plasma(rng: Rng, side: int, decay: float) -> Tensor:
    """(B, M, M) float32 with values from 0 to 1, M the power of two from `side` on: midpoint displacement on a torus.

    Each round halves the grid: centres of squares, then of diamonds, get the mean of their four neighbours plus a
    uniform random number of amplitude w^2, where w starts at 100 and is divided by `decay` in each round.
    """
    m = 1 << (side - 1).bit_length()
    noise = symmetric(rng, (m, m), "fog")
    field = torch.zeros_like(noise)
    step, wobble = m, 100.0
    while step >= 2:
        half, amplitude = step // 2, wobble * wobble
        corners, between = slice(0, m, step), slice(half, m, step)
        at = field[:, corners, corners]
        pairs = at + at.roll(-1, 1)
        centres = (pairs + pairs.roll(-1, 2)).div_(4).add_(noise[:, between, between], alpha=amplitude)
        field[:, between, between] = centres
        above = at + at.roll(-1, 2) + centres + centres.roll(1, 1)
        field[:, corners, between] = above.div_(4).add_(noise[:, corners, between], alpha=amplitude)
        beside = at + at.roll(-1, 1) + centres + centres.roll(1, 2)
        field[:, between, corners] = beside.div_(4).add_(noise[:, between, corners], alpha=amplitude)
        step, wobble = half, wobble / decay
    field -= field.amin((1, 2), keepdim=True)
    return field.div_(field.amax((1, 2), keepdim=True))


FROST_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The published textures. The published code never uses its sixth file."""

_STATISTICS = (  # of each published file: means and spreads of red, green and blue, slope of the power spectrum
    ((78, 149, 166), (27, 16, 15), -1.5),
    ((201, 205, 214), (21, 22, 23), -2.2),
    ((201, 205, 214), (21, 22, 23), -2.2),
    ((138, 153, 166), (29, 29, 30), -1.85),
    ((112, 123, 135), (44, 43, 42), -2.0),
)
_SCALE = {32: 0.2, 64: 0.3, 224: 1.0}
"""The factor by which the published generators scale the files, by the side of the images."""
_SIZE, _DIRECTIONS = 400, 6


def frost(images: Tensor, rng: Rng, image_share: float, frost_share: float, folder: Path | str | None = None) -> Tensor:
    """Blend the image with a random part of one of five textures."""
    side = images.shape[-1]
    pick = rng.uniform((3,), "frost")
    x = images.float().mul_(image_share)
    within = torch.arange(side, device=images.device)
    for number, texture in enumerate(frost_textures(folder, side)):
        members = (pick[:, 0].mul(len(FROST_FILES)).floor() == number).nonzero().squeeze(1)
        height, width = texture.shape[1:]
        row = pick[members, 1].mul(height - side).long()[:, None] + within
        column = pick[members, 2].mul(width - side).long()[:, None] + within
        part = texture.to(images.device)[:, row[:, :, None], column[:, None, :]].transpose(0, 1)
        x[members] += frost_share * part
    return x


def frost_source(folder: Path | str | None) -> str:
    """The source of the frost textures for a record: "procedural", or the SHA-256 of the files."""
    if folder is None:
        return "procedural"
    digest = hashlib.sha256()
    for name in FROST_FILES:
        digest.update(_frost_file(folder, name).read_bytes())
    return digest.hexdigest()


@cache
def frost_textures(folder: Path | str | None, side: int) -> tuple[Tensor, ...]:
    """Five textures, (3, H, W) float32 in 0..255 with H and W above `side`, scaled for images of this side.

    Without a folder of published files they are procedural. Raises UserError for a missing or broken file.
    """
    whole = [_needles(number) for number in range(5)] if folder is None else [_read(folder, n) for n in FROST_FILES]
    resized = []
    for texture in whole:
        scale = max(_SCALE[table_for(side)], (side + 1.5) / min(texture.shape[1:]))
        resized.append(F.interpolate(texture[None], scale_factor=scale, mode="bilinear")[0].round_())
    return tuple(resized)


def _frost_file(folder: Path | str, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise UserError(f"there is no {name} in {folder}: give a folder with {', '.join(FROST_FILES)}, or none")
    return path


def _read(folder: Path | str, name: str) -> Tensor:
    path = _frost_file(folder, name)
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()
    except Exception as error:  # decoders may raise any exception
        raise UserError(f"cannot read the image {path} ({error}): replace it") from error


@cache
def _needles(number: int) -> Tensor:
    """(3, 400, 400) float32 of whole numbers: patches of needles, each patch with its own direction.

    White noise is smeared along each of several directions. Of as many smooth random fields, the highest one selects
    the direction at each pixel. The spectrum is then scaled to the published slope, the colours to the published means
    and spreads.
    """
    rng = Rng(number, torch.arange(_DIRECTIONS))
    noise = torch.fft.fft2(rng.uniform((_SIZE, _SIZE), "frost texture").double() - 0.5)
    along = torch.fft.fftfreq(_SIZE, dtype=torch.float64)
    v, u = torch.meshgrid(along, along, indexing="ij")
    frequency = torch.hypot(u, v).clamp(min=1 / _SIZE)
    angle = rng.uniform((), "frost direction").double()[:, None, None] * math.pi
    length, width, patch = 12.0, 0.5, 20.0
    smear = torch.exp(
        -2 * (math.pi**2) * ((length * (u * angle.cos() + v * angle.sin())) ** 2 + (width * frequency) ** 2)
    )
    needles = torch.fft.ifft2(noise * smear).real
    needles /= needles.std((1, 2), keepdim=True)
    patches = torch.fft.ifft2(noise.roll(1, 0) * torch.exp(-2 * (math.pi * patch * frequency) ** 2)).real
    field = torch.fft.fft2(needles.gather(0, patches.argmax(0, keepdim=True))[0])
    means, spreads, slope = _STATISTICS[number]
    # Scale the mean power of each ring of frequencies to frequency^slope.
    ring = (frequency * _SIZE).round().long().flatten()
    power = torch.zeros(int(ring.max()) + 1, dtype=torch.float64)
    power = power.scatter_reduce(0, ring, field.abs().square().flatten(), "mean", include_self=False)
    field = field * frequency.pow(slope / 2) / power[ring].view_as(frequency).sqrt()
    field[0, 0] = 0
    grey = torch.fft.ifft2(field).real
    grey /= grey.std()
    colours = [(m + s * grey) for m, s in zip(means, spreads, strict=True)]
    return torch.stack(colours).clamp_(0, 255).round_().float()


_WATER = (175.0, 238.0, 238.0)
_MUD = (63.0, 42.0, 20.0)
_FARTHEST = 20.0
_EMBOSS = ((-2.0, -1.0, 0.0), (-1.0, 1.0, 1.0), (0.0, 1.0, 2.0))
_STEPS = [
    *(((i, j), 1.0) for i, j in ((0, 1), (1, 0))),
    *(((i, j), 1.4) for i, j in ((1, 1), (1, -1))),
    *(((i, j), 2.1969) for i, j in ((1, 2), (1, -2), (2, 1), (2, -1))),
]
"""The steps, with their lengths, that make up OpenCV's 5x5 distance (Borgefors 1986)."""


def spatter(
    images: Tensor, rng: Rng, mean: float, sigma: float, blur: float, threshold: float, strength: float, mud: float
) -> Tensor:
    """Cover the image with liquid where smoothed noise exceeds a threshold: mud if `mud` is 1, water if it is 0.

    The noise has this mean, sigma and blur. `strength` is the opacity of water, or the blur of the edges of mud.
    """
    x = images.float()
    layer = gaussian_filter(normal(rng, (1, *images.shape[2:]), "spatter").mul_(sigma).add_(mean), blur)
    if mud:
        cover = gaussian_filter((layer > threshold).float(), strength)
        cover = F.threshold(cover, 0.8, 0)
        return x * (1 - cover) + cover * _colour(_MUD, x)
    liquid = F.threshold(side_by_side(layer), threshold, 0).mul_(255).clamp_(0, 255).floor_()
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

    # A crest exceeds both neighbours across the edge. Along rows and columns it may equal the later one (hence - 0.5).
    # Float masks select by arithmetic, which is exact for whole and half numbers. torch's `where` is ten times as slow.
    around_half = around - 0.5
    beside = torch.maximum(_shifted(around, 1, 0, size), _shifted(around_half, 1, 2, size))
    above = torch.maximum(_shifted(around, 0, 1, size), _shifted(around_half, 2, 1, size))
    falling, rising = larger(-1, -1, 1, 1), larger(-1, 1, 1, -1)
    opposite = (dx * dy).lt_(0)
    across_it = falling.add_(rising.sub_(falling).mul_(opposite))
    flat = (height - width * 0.41421356).lt_(0)  # tan(22.5 degrees)
    steep = (height - width * 2.41421356).gt_(0)  # tan(67.5 degrees)
    across_it.add_(beside.sub_(across_it).mul_(flat))
    across_it.add_(above.sub_(across_it).mul_(steep))
    crest = size > across_it.clamp_(min=low)
    found = F.pad(crest & (size > high), [1] * 4).movedim(1, -1).contiguous()
    # A weak pixel that touches an edge becomes an edge. There are few weak pixels, so a loop visits them one by one.
    weak = F.pad(crest & (size <= high), [1] * 4).movedim(1, -1).flatten().nonzero()
    row, pixel = found.stride(1), found.stride(2)
    steps = torch.tensor([i * row + j * pixel for i in (-1, 0, 1) for j in (-1, 0, 1)], device=grey.device)
    flat_found = found.view(-1)
    while len(weak) and bool((touching := flat_found[weak + steps].any(1)).any()):
        flat_found[weak[touching]] = True
        weak = weak[~touching]
    return found.movedim(-1, 1)[..., 1:-1, 1:-1]


def distances(edge: Tensor) -> Tensor:
    """(1, B, H, W) float32: length of the shortest path to an edge by _STEPS, at most 20.

    The order of the steps in a shortest path does not matter. So one kind of step is applied after the other, with 1,
    2, 4, 8 and 16 steps at once.
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
    """(1, B, H, W), whole numbers in 0..255: the light that the water reflects at each pixel."""
    away = equalised(_mean3(distances(edges(liquid))).floor_())
    embossed = correlate(away, torch.tensor(_EMBOSS)).clamp_(0, 255)
    return _mean3(embossed).round_()


def _mean3(planes: Tensor) -> Tensor:
    return correlate(planes, torch.full((3, 3), 1 / 9))


def _shifted(padded: Tensor, i: int, j: int, like: Tensor) -> Tensor:
    return padded[..., i : i + like.shape[2], j : j + like.shape[3]]


def _colour(rgb: tuple[float, float, float], x: Tensor) -> Tensor:
    return torch.tensor(rgb, device=x.device)[:, None, None]
