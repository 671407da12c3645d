"""Noise against its distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from advsphere.corruption import corrupt, noise
from advsphere.rng import Rng

GREY = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)


def test_normal_draws_are_standard_normal() -> None:
    z = noise.normal(Rng(0, torch.arange(50)), (3, 41), "x").flatten().double()
    assert stats.kstest(z.numpy(), "norm").pvalue > 0.01
    wide = noise.normal(Rng(0, torch.arange(64)), (20_000,), "x").double()
    assert abs(float(wide.mean())) < 3e-3 and float(wide.std()) == pytest.approx(1, abs=3e-3)
    assert 4.0 < float(wide.abs().max()) < 4.4  # as far as 65536 places reach
    neighbours = np.corrcoef(wide[:, ::2].flatten().numpy(), wide[:, 1::2].flatten().numpy())[0, 1]
    halves = np.corrcoef(wide[:, :10_000].flatten().numpy(), wide[:, 10_000:].flatten().numpy())[0, 1]
    assert abs(neighbours) < 4e-3 and abs(halves) < 4e-3


def test_gaussian_and_speckle_noise_have_the_published_spread() -> None:
    for name, spread in (("gaussian_noise", 0.08 * 255), ("speckle_noise", 0.12 * 128)):
        x = corrupt(GREY[..., :32, :32], name, 3).double()
        assert float(x.std()) == pytest.approx(spread, rel=0.02)
        assert float(x.mean()) == pytest.approx(127.5, abs=0.4)  # half a grey level is cut off


def test_symmetric_draws_fill_their_interval_evenly() -> None:
    u = noise.symmetric(Rng(0, torch.arange(64)), (5_000,), "x").flatten().double().numpy()
    assert -1 < u.min() < -0.999 and 0.999 < u.max() < 1
    assert stats.kstest(u, "uniform", (-1, 2)).pvalue > 0.01


def test_impulse_noise_is_black_or_white_half_each() -> None:
    x = corrupt(GREY[..., :32, :32], "impulse_noise", 5)
    for value in (0, 255):
        assert float((x == value).double().mean()) == pytest.approx(0.035, abs=0.003)
    assert ((x == 0) | (x == 128) | (x == 255)).all()


def test_impulses_are_anywhere_and_independent_of_each_other() -> None:
    hit = (corrupt(GREY[:1, :, :32, :32].expand(2000, -1, -1, -1), "impulse_noise", 5) != 128).flatten(1).double()
    share, images = 0.07, len(hit)
    spread = (share * (1 - share) / images) ** 0.5
    # Each place is hit as often, at the first and the last, and so are neighbours together.
    assert float((hit.mean(0) - share).abs().max()) < 5 * spread
    assert float((hit.mean(0) - share).std()) == pytest.approx(spread, rel=0.06)
    together = (hit[:, 1:] * hit[:, :-1]).mean()
    assert float(together) == pytest.approx(share**2, rel=0.02)
    assert float(hit.sum(1).var()) == pytest.approx(hit.shape[1] * share * (1 - share), rel=0.12)


@pytest.mark.parametrize("photons", [3, 25, 500])
def test_shot_noise_draws_each_count_as_often_as_poisson_says(photons: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 65536 draws at every mean: no count comes up more than one draw too often, or too seldom."""
    every = torch.arange(65536, dtype=torch.int32).view(1, 1, 256, 256)
    monkeypatch.setattr(Rng, "integers", lambda *_: every.clone())
    rng, counts = Rng(5, torch.arange(1)), np.arange(800)
    for value in (0, 1, 2, 100, 254, 255):
        image = torch.full((1, 1, 256, 256), value, dtype=torch.uint8)
        found = np.bincount(noise.poisson(image, rng, photons).flatten().numpy(), minlength=800)
        assert np.abs(found - 65536 * stats.poisson.pmf(counts, value * photons / 255)).max() <= 1
        assert (found * counts).sum() / 65536 == pytest.approx(value * photons / 255, abs=2e-4)


def test_shot_noise_is_poisson_over_the_draws() -> None:
    count = noise.poisson(GREY, Rng(5, torch.arange(8)), 60).flatten().double()
    mean = 128 * 60 / 255
    assert float(count.mean()) == pytest.approx(mean, abs=0.1)
    assert float(count.var()) == pytest.approx(mean, rel=0.02)
