"""Angles that can be read off a protractor."""

from __future__ import annotations

import pytest
import torch

from advsphere.analysis.angles import Angles, margin_figure, measure_angles, norm_figure
from advsphere.analysis.linear_head import split_head
from advsphere.data import ImageSet
from tests.analysis.bodies import plane, polar

DEGREES, LENGTHS = [10.0, 30.0, 50.0, 80.0], [0.2, 0.4, 0.6, 1.0]
LABELS = torch.tensor([0, 0, 0, 1])


@pytest.fixture
def found() -> Angles:
    images = ImageSet(polar(DEGREES, LENGTHS), LABELS, ("x", "y", "none"), "arrows")
    return measure_angles(split_head(plane(), images), images.pixels, LABELS, ("x", "y", "none")[:2], batch_size=3)


def test_angles_margins_and_norms(found: Angles) -> None:
    torch.testing.assert_close(
        found.angles, torch.tensor([[d, 90 - d] for d in DEGREES], dtype=torch.float64), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(found.own, torch.tensor([10.0, 30, 50, 10], dtype=torch.float64), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.margin, torch.tensor([70.0, 30, -10, 70], dtype=torch.float64), atol=1e-3, rtol=0)
    assert found.predictions.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(found.norms, torch.tensor(LENGTHS))
    assert found.mean_norm == pytest.approx(0.55)


def test_means_by_class(found: Angles) -> None:
    assert found.by_class(found.margin).tolist() == pytest.approx([30.0, 70.0], abs=1e-3)
    empty = Angles(
        classes=("a", "b", "c"),
        labels=LABELS,
        predictions=LABELS,
        angles=torch.zeros(4, 3),
        norms=found.norms,
        mean_norm=1,
    )
    assert empty.by_class(found.norms)[2].isnan()


def test_directions_of_the_classes() -> None:
    images = ImageSet(polar(DEGREES, LENGTHS), LABELS, ("x", "y"), "arrows")
    assert split_head(plane(), images).class_angles().tolist() == [[0, pytest.approx(90)], [pytest.approx(90), 0]]


def test_figures_show_both_networks(found: Angles) -> None:
    figure = margin_figure({"one $": found, "two": found}, {"one $": found, "two": found})
    right = figure.axes[1]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "one $, clean", "one $, adversarial", "two, clean", "two, adversarial",
    ]  # fmt: skip
    assert [t.get_text() for t in right.get_yticklabels()] == ["x", "y"], "sorted by the margin"
    assert len(norm_figure({"one": found}, {"one": found}).axes) == 1
