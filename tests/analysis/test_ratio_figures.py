"""Gradient-norm ratios out of files, and in one figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from advsphere.analysis.diagnosis import FORMAT, diagnosed_gradients
from advsphere.analysis.gradients import ratio_figure, ratio_history_figure
from advsphere.errors import UserError
from tests.report.made import GRADIENTS, METRICS


def test_a_diagnosis_gives_those_of_its_own_model_alone(tmp_path: Path) -> None:
    kept = {key: list(getattr(GRADIENTS, key)) for key in ("layers", "kinds", "clean", "adversarial")}
    network = {"checksum": "m", "gradients": {"as judged": {**kept, "ratio": [1.5, 2.0, None]}}}
    path = tmp_path / "diagnosis.json"
    path.write_text(json.dumps({"format": FORMAT, "networks": [{"checksum": "other", "gradients": {}}, network]}))
    assert diagnosed_gradients(path, "m") == GRADIENTS
    assert diagnosed_gradients(path, "nobody") is None
    path.write_text("{}")
    with pytest.raises(UserError, match=FORMAT):
        diagnosed_gradients(path, "m")


def test_the_lines_are_the_ratios_and_their_median_over_the_epochs() -> None:
    line = ratio_figure({"a": GRADIENTS}).axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 2, 3] and list(line.get_ydata())[:2] == [1.5, 2.0]
    history = ratio_history_figure({"a": METRICS}).axes[0].lines[0]
    assert list(history.get_xdata()) == [1, 2, 3] and list(history.get_ydata()) == [2.5, 3.5, 4.5]
