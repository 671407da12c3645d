"""The heat map shows the record's numbers."""

from __future__ import annotations

from advsphere.corruption.result import corruption_figure
from tests.corruption.test_evaluate import of_errors


def test_every_number_is_in_its_place() -> None:
    figure = corruption_figure(of_errors({"fog": 0.25, "zoom_blur": 0.5}))
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["75.0"] * 6 + ["50.0"] * 6
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fog", "zoom blur"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3", "4", "5", "mean"]
    assert axes.get_title(loc="left") == "accuracy in %, clean 100.0"
