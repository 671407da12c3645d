"""Accuracy against the number of steps."""

from __future__ import annotations

import pytest
import torch

from advsphere.analysis.curves import accuracy_against_steps, steps_figure
from advsphere.errors import UserError
from advsphere.threat import ThreatModel
from tests.analysis import linear

THREAT = ThreatModel(norm="linf", eps=0.012)


def test_in_the_end_it_is_what_a_linear_model_allows() -> None:
    network = linear.model()
    images = linear.images(network)
    x, y = images.batch(torch.arange(len(images)))
    reachable = linear.smallest_linf(network, x, y) < THREAT.eps
    curve = accuracy_against_steps(network, images, threat=THREAT, steps=(10, 1, 2))
    assert curve.at == (0, 1, 2, 10)
    assert [b < 4 for b in curve.broken] == reachable.tolist(), "ten steps of a quarter reach every corner of the ball"
    assert list(curve.accuracy) == sorted(curve.accuracy, reverse=True) and curve.robust[0] == len(images) - 3
    assert len({*curve.accuracy}) > 2, "one step, from a random start, should not be enough for all"


def test_a_short_attack_is_the_beginning_of_a_long_one() -> None:
    network = linear.model(4)
    images = linear.images(network)
    many = accuracy_against_steps(network, images, threat=THREAT, steps=(1, 2, 3, 5), seed=2, batch_size=7)
    for i, k in enumerate(many.at[1:], 1):
        alone = accuracy_against_steps(network, images, threat=THREAT, steps=(k,), seed=2)
        assert [b <= 1 for b in alone.broken] == [b <= i for b in many.broken]


def test_steps_that_make_no_sense_are_refused() -> None:
    network = linear.model()
    for steps in ((), (0, 5)):
        with pytest.raises(UserError, match="positive"):
            accuracy_against_steps(network, linear.images(network), threat=THREAT, steps=steps)


def test_the_figure_draws_the_numbers() -> None:
    network = linear.model()
    curve = accuracy_against_steps(network, linear.images(network), threat=THREAT, steps=(1, 5))
    (line,) = steps_figure({"one": curve}, THREAT).axes[0].lines
    assert list(line.get_xdata()) == [1, 5]
    assert list(line.get_ydata()) == [100 * a for a in curve.accuracy[1:]]
