"""Schedules at known points."""

from __future__ import annotations

import pytest

from advsphere.errors import UserError
from advsphere.schedule import Constant, Cosine, Linear, Schedule, Steps

CYCLIC = Linear(((0.0, 0.0), (0.5, 1.0), (1.0, 0.0)))
KNOWN: list[tuple[Schedule, list[tuple[float, float]]]] = [
    (Constant(), [(0.0, 1.0), (0.3, 1.0), (1.0, 1.0)]),
    (Linear(((0.0, 0.0), (1.0, 1.0))), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)]),
    (CYCLIC, [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 0.5), (1.0, 0.0)]),
    (Linear(((0.2, 3.0), (0.4, 1.0))), [(0.0, 3.0), (0.2, 3.0), (0.3, 2.0), (0.4, 1.0), (1.0, 1.0)]),
    (Linear(((0.5, 2.0),)), [(0.0, 2.0), (0.5, 2.0), (1.0, 2.0)]),
    (Steps((0.5, 0.75)), [(0.0, 1.0), (0.49, 1.0), (0.5, 0.1), (0.74, 0.1), (0.75, 0.01), (1.0, 0.01)]),
    (Steps((0.5,), gamma=0.5), [(0.4, 1.0), (0.6, 0.5)]),
    (Steps(()), [(0.0, 1.0), (1.0, 1.0)]),
    (Cosine(), [(0.0, 1.0), (1 / 3, 0.75), (0.5, 0.5), (1.0, 0.0)]),
    (Cosine(0.2, 1.0), [(0.0, 0.2), (0.5, 0.6), (1.0, 1.0)]),
]


@pytest.mark.parametrize(("schedule", "points"), KNOWN)
def test_known_points(schedule: Schedule, points: list[tuple[float, float]]) -> None:
    for progress, factor in points:
        assert schedule(progress) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(("schedule", "points"), KNOWN)
def test_schedules_are_values(schedule: Schedule, points: list[tuple[float, float]]) -> None:
    copy = type(schedule)(**vars(schedule))
    assert copy == schedule and hash(copy) == hash(schedule)


@pytest.mark.parametrize("epochs", [7, 30, 77, 90, 110, 200])
@pytest.mark.parametrize("batches", [1, 3, 391])
def test_a_step_falls_on_the_first_batch_of_its_epoch(epochs: int, batches: int) -> None:
    """Whatever rounding does to 75 / 77 and to the progress of a batch."""
    for epoch in range(1, epochs):
        schedule = Steps((epoch / epochs,))
        assert schedule((epoch * batches) / (epochs * batches)) == pytest.approx(0.1)
        assert schedule(epoch * (1 / epochs)) == pytest.approx(0.1)
        assert schedule((epoch * batches - 1) / (epochs * batches)) == 1.0


@pytest.mark.parametrize("points", [(), ((0.5, 1.0), (0.2, 0.0)), ((0.0, 1.0), (0.0, 2.0))])
def test_points_out_of_order_are_refused(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(UserError, match="rising order"):
        Linear(points)
