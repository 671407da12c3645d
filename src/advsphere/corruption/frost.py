"""Frost: photographs of frosted windows laid over the image; here with textures of our own, made of noise.

The published textures are photographs, which are not ours to ship. In their place stand five fields of needles with
their mean and spread in each colour and their spectra. Whoever has the published files (frost1.png, frost2.png,
frost3.png, frost4.jpg and frost5.jpg of hendrycks/robustness) can name their folder.
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

from advsphere.corruption.severity import table_for
from advsphere.errors import UserError
from advsphere.rng import Rng

PUBLISHED = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""There is a sixth file, which the published code never draws."""

_STATISTICS = (  # mean and spread of red, green and blue, and the slope of the power spectrum, of each published file
    ((78, 149, 166), (27, 16, 15), -1.5),
    ((201, 205, 214), (21, 22, 23), -2.2),
    ((201, 205, 214), (21, 22, 23), -2.2),
    ((138, 153, 166), (29, 29, 30), -1.85),
    ((112, 123, 135), (44, 43, 42), -2.0),
)
_SCALE = {32: 0.2, 64: 0.3, 224: 1.0}
"""To how much of their size the published generators shrink the files."""
_SIZE, _DIRECTIONS = 400, 6


def frost(images: Tensor, rng: Rng, image_share: float, frost_share: float, folder: Path | None = None) -> Tensor:
    """A weighted sum of the image and of a random part of one of five textures."""
    side = images.shape[-1]
    pick = rng.uniform((3,), "frost")
    x = images.float().mul_(image_share)
    within = torch.arange(side, device=images.device)
    for number, texture in enumerate(textures(folder, side)):
        members = (pick[:, 0].mul(len(PUBLISHED)).floor() == number).nonzero().squeeze(1)
        height, width = texture.shape[1:]
        row = pick[members, 1].mul(height - side).long()[:, None] + within
        column = pick[members, 2].mul(width - side).long()[:, None] + within
        part = texture.to(images.device)[:, row[:, :, None], column[:, None, :]].transpose(0, 1)
        x[members] += frost_share * part
    return x


def provenance(folder: Path | None) -> str:
    """What the textures are, for a record: "procedural", or the SHA-256 of the files."""
    if folder is None:
        return "procedural"
    digest = hashlib.sha256()
    for name in PUBLISHED:
        digest.update(_file(folder, name).read_bytes())
    return digest.hexdigest()


@cache
def textures(folder: Path | None, side: int) -> tuple[Tensor, ...]:
    """Five textures, (3, H, W) float32 in 0..255 with H and W above `side`, of a size that fits images of this side.

    folder: with the published files; None for our own. Raises UserError where a file is missing or broken.
    """
    whole = [_needles(number) for number in range(5)] if folder is None else [_read(folder, n) for n in PUBLISHED]
    resized = []
    for texture in whole:
        scale = max(_SCALE[table_for(side)], (side + 1.5) / min(texture.shape[1:]))
        resized.append(F.interpolate(texture[None], scale_factor=scale, mode="bilinear")[0].round_())
    return tuple(resized)


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise UserError(f"there is no {name} in {folder}: name a folder with {', '.join(PUBLISHED)}, or none")
    return folder / name


def _read(folder: Path, name: str) -> Tensor:
    path = _file(folder, name)
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()
    except Exception as error:  # decoders raise whatever they like
        raise UserError(f"cannot read the image {path} ({error}): replace it") from error


@cache
def _needles(number: int) -> Tensor:
    """(3, 400, 400) float32 of whole numbers: patches of needles, each patch with a direction of its own.

    White noise is smeared along each of several directions; in each place that direction shows whose patch is there
    (the highest of as many smooth random fields). The spectrum is then brought to the published slope, the colours to
    their means and spreads.
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
    # The mean power of each ring of frequencies is brought to frequency^slope.
    ring = (frequency * _SIZE).round().long().flatten()
    power = torch.zeros(int(ring.max()) + 1, dtype=torch.float64)
    power = power.scatter_reduce(0, ring, field.abs().square().flatten(), "mean", include_self=False)
    field = field * frequency.pow(slope / 2) / power[ring].view_as(frequency).sqrt()
    field[0, 0] = 0
    grey = torch.fft.ifft2(field).real
    grey /= grey.std()
    colours = [(m + s * grey) for m, s in zip(means, spreads, strict=True)]
    return torch.stack(colours).clamp_(0, 255).round_().float()
