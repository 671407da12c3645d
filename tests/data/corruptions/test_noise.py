"""Noise against its distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from advsphere.data.corruptions import corrupt, noise
from advsphere.draws import Draws

GREY = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)


def test_normal_draws_are_standard_normal() -> None:
    z = noise.normal(Draws(0, torch.arange(50)), (3, 41), "x").flatten().double()
    assert stats.kstest(z.numpy(), "norm").pvalue > 0.01
    wide = noise.normal(Draws(0, torch.arange(64)), (20_000,), "x").double()
    assert abs(float(wide.mean())) < 3e-3 and float(wide.std()) == pytest.approx(1, abs=3e-3)
    assert 4.5 < float(wide.abs().max()) < 5.9
    neighbours = np.corrcoef(wide[:, ::2].flatten().numpy(), wide[:, 1::2].flatten().numpy())[0, 1]
    halves = np.corrcoef(wide[:, :10_000].flatten().numpy(), wide[:, 10_000:].flatten().numpy())[0, 1]
    assert abs(neighbours) < 4e-3 and abs(halves) < 4e-3


def test_gaussian_and_speckle_noise_have_the_published_spread() -> None:
    for name, spread in (("gaussian_noise", 0.08 * 255), ("speckle_noise", 0.12 * 128)):
        x = corrupt(GREY[..., :32, :32], name, 3).double()
        assert float(x.std()) == pytest.approx(spread, rel=0.02)
        assert float(x.mean()) == pytest.approx(127.5, abs=0.4)  # half a grey level is cut off


def test_impulse_noise_is_black_or_white_half_each() -> None:
    x = corrupt(GREY[..., :32, :32], "impulse_noise", 5)
    for value in (0, 255):
        assert float((x == value).double().mean()) == pytest.approx(0.035, abs=0.003)
    assert ((x == 0) | (x == 128) | (x == 255)).all()


@pytest.mark.parametrize("photons", [3, 25, 500])
def test_shot_noise_is_the_inverse_of_poissons_distribution(photons: float) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(256).view(1, 1, 256, 256)
    draws = Draws(5, torch.arange(1))
    count = noise.poisson(images, draws, photons).flatten().numpy()
    u = draws.uniform((1, 256, 256), "shot_noise").flatten().numpy().astype(np.float64)
    mean = images.flatten().double().numpy() * photons / 255
    # The table's entries are float32, so a draw that close to a step may fall on either side of it.
    low, high = (stats.poisson.ppf(np.clip(u + d, 0, 1), mean) for d in (-3e-7, 3e-7))
    assert ((np.maximum(low, 0) <= count) & (count <= high)).all()


def test_the_rarest_draws_of_shot_noise_find_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.tensor([0, 1, 128, 255], dtype=torch.uint8).repeat(2).view(1, 1, 2, 4)
    extreme = torch.tensor([2.0**-24] * 4 + [1 - 2.0**-24] * 4).view(1, 1, 2, 4)
    monkeypatch.setattr(Draws, "uniform", lambda *_: extreme)
    count = noise.poisson(images, Draws(0, torch.arange(1)), 500).flatten().tolist()
    mean = images.flatten().double().numpy() * 500 / 255
    expected = stats.poisson.ppf(extreme.flatten().double().numpy(), mean)
    assert count[0] == count[4] == 0
    assert np.abs(np.array(count) - np.maximum(expected, 0)).max() <= 2  # of 600
