"""Digital corruptions against Pillow, SciPy and the definition of HSV."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from advsphere.corruption import corrupt
from advsphere.corruption.noise import symmetric
from advsphere.corruption.severity import strength
from advsphere.rng import Rng
from tests.corruption.pictures import pictures
from tests.corruption.test_blur import close

X = pictures(3, 32)


def as_pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def as_array(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_pixelate_is_pillows_box(severity: int, side: int) -> None:
    x = pictures(40 if side == 32 else 5, side)
    small = int(side * strength("pixelate", severity, side)[0])
    shrunk = [as_pillow(image).resize((small, small), Image.Resampling.BOX) for image in x]
    theirs = as_array([image.resize((side, side), Image.Resampling.BOX) for image in shrunk])
    apart = np.abs(corrupt(x, "pixelate", severity).numpy().astype(int) - theirs)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.06  # where a mean ends in a half, and hardly elsewhere


@pytest.mark.parametrize("threads", [1, 2])
def test_jpeg_goes_through_a_codec(threads: int) -> None:
    def through(image: Image.Image, quality: int) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for severity in (1, 5):
            quality = int(strength("jpeg_compression", severity, 32)[0])
            theirs = as_array([through(as_pillow(image), quality) for image in X])
            # Pillow and torchvision may carry different releases of libjpeg.
            assert np.abs(corrupt(X, "jpeg_compression", severity).numpy().astype(int) - theirs).mean() < 0.5
    finally:
        torch.set_num_threads(before)


def test_contrast_draws_each_channel_to_its_mean() -> None:
    x = X.double().numpy()
    mean = x.mean((2, 3), keepdims=True)
    assert close(corrupt(X, "contrast", 4), 0.3 * (x - mean) + mean)


@pytest.mark.parametrize("severity", [1, 4, 5])
def test_saturate_changes_s_of_hsv(severity: int) -> None:
    factor, offset = strength("saturate", severity, 32)
    theirs = np.empty(X.shape)
    for b, i, j in np.ndindex(3, 32, 32):
        h, s, v = colorsys.rgb_to_hsv(*(X[b, :, i, j].double() / 255).tolist())
        theirs[b, :, i, j] = 255 * np.array(colorsys.hsv_to_rgb(h, min(max(s * factor + offset, 0), 1), v))
    assert close(corrupt(X, "saturate", severity), theirs, 0.9)


@pytest.mark.parametrize(("severity", "side"), [(1, 32), (4, 32), (2, 64), (1, 224)])
def test_elastic_is_an_affine_map_and_smooth_displacements(severity: int, side: int) -> None:
    x = pictures(2, side)
    amplitude, smoothness, jitter = strength("elastic_transform", severity, side)
    base = Rng(4, torch.arange(2))
    rng = base.at(step=severity)
    centre, arm = side // 2, side // 3
    points = np.array([[centre + arm] * 2, [centre + arm, centre - arm], [centre - arm] * 2], float)
    moves = (2 * rng.uniform((3, 2), "elastic_transform affine").double().numpy() - 1) * jitter
    shifts = symmetric(rng, (2, side, side), "elastic_transform displacement").double().numpy()
    grid = np.mgrid[0:side, 0:side].astype(float)
    theirs = []
    for image, move, shift in zip(x.double().numpy(), moves, shifts, strict=True):
        # (x, y, 1) of the result -> (x, y) of the image: what brings the moved points back
        back = np.linalg.solve(np.column_stack([points + move, np.ones(3)]), points)
        at = np.stack([grid[1], grid[0], np.ones_like(grid[0])], -1) @ back
        image = np.stack([ndimage.map_coordinates(p, (at[..., 1], at[..., 0]), order=1, mode="mirror") for p in image])
        if amplitude:
            dx, dy = (amplitude * ndimage.gaussian_filter(s, smoothness, mode="reflect", truncate=3.0) for s in shift)
            at = np.stack([grid[0] + dy, grid[1] + dx])
            image = np.stack([ndimage.map_coordinates(p, at, order=1, mode="reflect") for p in image])
        theirs.append(image)
    assert close(corrupt(x, "elastic_transform", severity, rng=base), np.array(theirs))
