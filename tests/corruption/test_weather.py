"""Weather against the published definitions, written as loops."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from advsphere.corruption import corrupt, weather
from advsphere.corruption.noise import normal, symmetric
from advsphere.corruption.severity import strength
from advsphere.errors import UserError
from advsphere.rng import Rng
from tests.corruption.pictures import pictures
from tests.corruption.test_blur import close, smeared

X = pictures(3, 32)
DRAWS = Rng(0, torch.arange(3))


def plasma(noise: np.ndarray, decay: float) -> np.ndarray:
    """Diamond-square on a torus, one point at a time."""
    size = step = len(noise)
    field = np.zeros((size, size))
    wobble = 100.0

    def put(i: int, j: int, around: list[tuple[int, int]]) -> None:
        mean = sum(field[a % size, b % size] for a, b in around) / 4
        field[i, j] = mean + wobble**2 * noise[i, j]

    while step >= 2:
        h = step // 2
        for i in range(0, size, step):
            for j in range(0, size, step):
                put(i + h, j + h, [(i, j), (i + step, j), (i, j + step), (i + step, j + step)])
        for i in range(0, size, step):
            for j in range(0, size, step):
                put(i, j + h, [(i, j), (i, j + step), (i + h, j + h), (i - h, j + h)])
                put(i + h, j, [(i, j), (i + step, j), (i + h, j + h), (i + h, j - h)])
        step, wobble = h, wobble / decay
    field -= field.min()
    return field / field.max()


def test_fog_is_plasma_over_the_image() -> None:
    thickness, decay = strength("fog", 3, 32)
    noise = symmetric(DRAWS.at(step=3), (32, 32), "fog").double().numpy()
    x = X.double().numpy() / 255
    top = x.max((1, 2, 3), keepdims=True)
    layer = np.stack([plasma(n, decay) for n in noise])[:, None]
    assert close(corrupt(X, "fog", 3, rng=DRAWS), 255 * (x + thickness * layer) * top / (top + thickness))


def test_fog_of_a_side_that_is_no_power_of_two_is_cut_from_the_next() -> None:
    assert weather.plasma(DRAWS, 40, 2.0).shape == (3, 64, 64)
    field = weather.plasma(DRAWS, 32, 2.0)
    assert field.amin((1, 2)).tolist() == [0] * 3 and field.amax((1, 2)).tolist() == [1] * 3


def test_brightness_raises_v_of_hsv() -> None:
    theirs = np.empty(X.shape)
    for b, i, j in np.ndindex(3, 32, 32):
        h, s, v = colorsys.rgb_to_hsv(*(X[b, :, i, j].double() / 255).tolist())
        theirs[b, :, i, j] = 255 * np.array(colorsys.hsv_to_rgb(h, s, min(v + 0.2, 1)))
    assert close(corrupt(X, "brightness", 4), theirs, 0.9)
    assert corrupt(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "brightness", 4).unique().tolist() == [51]


def test_snow_is_smeared_noise_on_a_whitened_image() -> None:
    mean, sigma, factor, threshold, radius, width, keep = strength("snow", 3, 32)
    rng = DRAWS.at(step=3)
    noise = mean + sigma * normal(rng, (1, 32, 32), "snow")[:, 0].double().numpy()
    angles = (rng.uniform((), "snow angle") * 90 - 135).tolist()
    x = X.double().numpy() / 255
    theirs = []
    for image, layer, angle in zip(x, noise, angles, strict=True):
        part = math.ceil(32 / factor)
        top = (32 - part) // 2
        layer = ndimage.zoom(layer[top : top + part, top : top + part], factor, order=1)
        trim = (len(layer) - 32) // 2
        layer = layer[trim : trim + 32, trim : trim + 32]
        layer = np.floor(255 * np.clip(np.where(layer < threshold, 0, layer), 0, 1))
        layer = np.floor(smeared(layer, angle, radius, width) + 1e-6) / 255
        grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        image = keep * image + (1 - keep) * np.maximum(image, 1.5 * grey + 0.5)
        theirs.append(255 * np.clip(image + layer + np.rot90(layer, 2), 0, 1))
    assert close(corrupt(X, "snow", 3, rng=DRAWS), np.array(theirs))


@pytest.fixture
def textures(tmp_path: Path) -> Path:
    """Five files under the published names, each of one colour: grey 0, 50, 100, 150, 200."""
    for number, name in enumerate(weather.FROST_FILES):
        Image.new("RGB", (400, 300), (50 * number,) * 3).save(tmp_path / name, quality=100)
    return tmp_path


def test_frost_of_given_textures(textures: Path) -> None:
    grey = torch.full((200, 3, 32, 32), 100, dtype=torch.uint8)
    x = corrupt(grey, "frost", 5, frost_folder=textures)
    found = x.flatten(1).double()
    assert float(found.std(1).max()) < 1.5  # all of one texture
    levels = (found.mean(1) / 22.5).round() * 22.5
    assert sorted(set(levels.tolist())) == [67.5, 90, 112.5, 135, 157.5]  # 0.75 * 100 + 0.45 * texture
    assert weather.frost_source(textures) != weather.frost_source(None) == "procedural"


def test_missing_and_broken_textures_are_named(textures: Path) -> None:
    (textures / "frost5.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"frost5\.jpg"):
        corrupt(X, "frost", 1, frost_folder=textures)
    (textures / "frost2.png").unlink()
    with pytest.raises(UserError, match=r"no frost2\.png"):
        weather.frost_source(textures)


def test_our_textures_have_the_published_colours_and_are_no_flat_noise() -> None:
    for texture, (means, spreads, _) in zip(weather.frost_textures(None, 224), weather._STATISTICS, strict=True):
        assert texture.mean((1, 2)).tolist() == pytest.approx(means, abs=0.5)
        assert texture.std((1, 2)).tolist() == pytest.approx(spreads, abs=1)
        grey = texture.mean(0) - texture.mean()
        assert float((grey[:, 1:] * grey[:, :-1]).mean() / grey.square().mean()) > 0.25  # neighbours are alike
