"""Which weight decay an arm prefers."""

from __future__ import annotations

import pytest

from advsphere.reproduce.groups import Tried, preferred


@pytest.mark.parametrize(
    ("tried", "best"),
    [
        ({}, None),
        ({5e-4: {0: 0.3}}, None),
        ({5e-4: {0: 0.3}, 2e-4: {1: 0.4}}, None),
        ({5e-4: {0: 0.3}, 2e-4: {0: 0.4}}, 2e-4),
        ({5e-4: {0: 0.3}, 2e-4: {0: 0.3}}, 5e-4),
        ({5e-4: {0: 0.3, 1: 0.9}, 2e-4: {0: 0.4}}, 2e-4),
        ({5e-4: {0: 0.3, 1: 0.9}, 2e-4: {0: 0.4, 1: 0.1}}, 5e-4),
    ],
)
def test_the_highest_mean_over_the_seeds_that_all_have_wins(tried: Tried, best: float | None) -> None:
    assert preferred(tried) == best
