"""Blur against SciPy, and against loops that do what is written, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from advsphere.corruption import blur, corrupt
from advsphere.corruption.severity import strength
from advsphere.rng import Rng
from tests.corruption.pictures import pictures

X = pictures(3, 32)
DRAWS = Rng(1, torch.arange(3))


def close(ours: Tensor, theirs: np.ndarray, share: float = 0.95) -> bool:
    """Grey levels at most one apart, nearly all equal."""
    apart = np.abs(ours.numpy().astype(int) - np.floor(theirs + 1e-6).astype(int))
    return apart.max() <= 1 and (apart == 0).mean() > share


@pytest.mark.parametrize(("border", "scipy"), [("nearest", "nearest"), ("reflect", "reflect")])
@pytest.mark.parametrize("sigma", [0.3, 1.5, 40.0])
def test_the_gaussian_is_scipys(sigma: float, border: blur.Border, scipy: str) -> None:
    ours = blur.gaussian_filter(X.float(), sigma, border=border, truncate=3.0)
    theirs = ndimage.gaussian_filter(X.double().numpy(), sigma, axes=(2, 3), mode=scipy, truncate=3.0)
    assert np.abs(ours.numpy() - theirs).max() < 1e-3


@pytest.mark.parametrize("severity", [1, 5])
def test_gaussian_blur(severity: int) -> None:
    (sigma,) = strength("gaussian_blur", severity, 32)
    theirs = ndimage.gaussian_filter(X.double().numpy(), sigma, axes=(2, 3), mode="nearest", truncate=4.0)
    assert close(corrupt(X, "gaussian_blur", severity), theirs)


@pytest.mark.parametrize(("severity", "side"), [(3, 32), (5, 32), (5, 64), (1, 224), (5, 224)])
def test_defocus_is_a_soft_disk(severity: int, side: int) -> None:
    radius, softness = strength("defocus_blur", severity, side)
    reach, width = (8, 1) if radius <= 8 else (int(radius), 2)
    row, column = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (row**2 + column**2 <= radius**2).astype(float)
    disk /= disk.sum()
    taps = np.exp(-0.5 * (np.arange(-width, width + 1) / softness) ** 2)
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, taps / taps.sum(), axis=axis, mode="mirror")
    x = pictures(1, side)
    theirs = ndimage.correlate(x.double().numpy(), disk[None, None], mode="mirror")
    assert close(corrupt(x, "defocus_blur", severity), theirs)


@pytest.mark.parametrize(("severity", "side"), [(2, 32), (5, 32), (4, 64)])
def test_zoom_blur_is_scipys_zoom(severity: int, side: int) -> None:
    x = pictures(2, side)
    factors = np.arange(1, *strength("zoom_blur", severity, side))
    total = x.double().numpy()
    for factor in factors:
        part = math.ceil(side / factor)
        top = (side - part) // 2
        middle = x.double().numpy()[..., top : top + part, top : top + part]
        larger = ndimage.zoom(middle, (1, 1, factor, factor), order=1)
        trim = (larger.shape[-1] - side) // 2
        total = total + larger[..., trim : trim + side, trim : trim + side]
    assert close(corrupt(x, "zoom_blur", severity), total / (len(factors) + 1))


def smeared(image: np.ndarray, angle: float, radius: float, sigma: float) -> np.ndarray:
    """ImageMagick's motion blur of one plane, as its documentation has it."""
    taps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    out = np.zeros(image.shape)
    size = len(image)
    for tap, weight in zip(taps, weights / weights.sum(), strict=True):
        down = math.ceil(tap * math.sin(math.radians(angle)) - 0.5)
        right = math.ceil(tap * math.cos(math.radians(angle)) - 0.5)
        rows, columns = (np.clip(np.arange(size) + shift, 0, size - 1) for shift in (down, right))
        out += weight * image[np.ix_(rows, columns)]
    return out


@pytest.mark.parametrize("angles", [(-44.0, 3.0, 44.9), (-130.0, -90.0, -50.0), (20.0, 20.0, -20.0)])
def test_motion_smears_each_image_along_its_own_line(angles: tuple[float, ...]) -> None:
    ours = blur.motion_filter(X, torch.tensor(angles), 8, 2.5)
    theirs = [[smeared(plane, a, 8, 2.5) for plane in image] for image, a in zip(X.numpy(), angles, strict=True)]
    assert close(ours, np.array(theirs), 0.99)


def test_motion_of_a_point_is_the_line() -> None:
    point = torch.zeros(1, 1, 31, 31)
    point[..., 15, 15] = 255
    line = blur.motion_filter(point, torch.tensor([0.0]), 3, 100.0)[0, 0]
    assert line[15, 9:16].tolist() == [36.0] * 7 and int((line > 0).sum()) == 7  # towards the point, not from it


@pytest.mark.parametrize(("severity", "side"), [(1, 32), (5, 32), (4, 64)])
def test_glass_takes_pixels_one_after_the_other(severity: int, side: int) -> None:
    x = pictures(2, side)
    rng = Rng(2, torch.arange(2)).at(step=severity)
    sigma, reach, passes = strength("glass_blur", severity, side)
    d = int(reach)
    theirs = []
    for number, image in enumerate(x.double().numpy()):
        grey = np.floor(ndimage.gaussian_filter(image, sigma, axes=(1, 2), mode="nearest") + 1e-6)
        for turn in range(int(passes)):
            u = rng.at(restart=turn).integers((2, side, side), "glass_blur")[number].numpy() / 65536
            offsets = np.floor(u * 2 * d).astype(int) - d
            for h in range(side - d, d, -1):
                for w in range(side - d, d, -1):
                    dy, dx = offsets[:, h, w]
                    grey[:, h, w] = grey[:, h + dy, w + dx]
        theirs.append(ndimage.gaussian_filter(grey, sigma, axes=(1, 2), mode="nearest"))
    ours = corrupt(x, "glass_blur", severity, rng=Rng(2, torch.arange(2)))
    assert close(ours, np.array(theirs), 0.97)


def test_glass_moves_no_pixel_farther_than_its_chain_allows() -> None:
    sources = blur._sources(Rng(0, torch.arange(4)), 32, 1)
    row, column = torch.arange(1024) // 32, torch.arange(1024) % 32
    border = (row <= 1) | (column <= 1) | (row > 31) | (column > 31)
    assert torch.equal(sources[:, border], torch.arange(1024)[border].expand(4, -1))
    assert float((sources != torch.arange(1024)).float().mean()) > 0.6
