"""The bootstrap against what theory says of a mean."""

from __future__ import annotations

import pytest
import torch

from advsphere.rng import Rng
from advsphere.stats import bootstrap


def test_the_interval_of_a_mean_is_that_of_normal_theory() -> None:
    values = Rng(0, torch.arange(400)).normal((), "values").double()
    found = bootstrap(lambda w: w @ values / w.sum(1), 400, repeats=8000)
    mean, error = float(values.mean()), float(values.std()) / 20
    assert found.value == pytest.approx(mean)
    assert found.low == pytest.approx(mean - 1.96 * error, abs=0.08 * error)
    assert found.high == pytest.approx(mean + 1.96 * error, abs=0.08 * error)
    wider = bootstrap(lambda w: w @ values / w.sum(1), 400, confidence=0.99)
    assert wider.low < found.low and wider.high > found.high


def test_each_sample_has_as_many_examples_and_the_draws_are_addressed() -> None:
    seen = []

    def count(weights: torch.Tensor) -> torch.Tensor:
        seen.append(weights)
        return weights.sum(1)

    before = torch.random.get_rng_state()
    found = bootstrap(count, 7, seed=3, repeats=50)
    assert (found.value, found.low, found.high) == (7.0, 7.0, 7.0)
    again = []
    bootstrap(lambda w: again.append(w) or w.sum(1), 7, seed=3, repeats=50)
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))
    assert torch.equal(before, torch.random.get_rng_state())
