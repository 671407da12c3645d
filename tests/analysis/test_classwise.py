"""Accuracy class by class, on outcomes that are written down."""

from __future__ import annotations

import numpy as np
import pytest

from advsphere.analysis.classwise import by_class, class_figure, weakest
from advsphere.errors import UserError
from advsphere.evaluation import WORST, Evaluation
from advsphere.stats import wilson
from tests.report import made

LABELS, CLASSES = [0, 0, 0, 2, 2], ("cat", "no images", "$dog$")


def evaluation(worst: str = "00110") -> Evaluation:
    return made.evaluation(clean=made.row("clean", "11110"), worst=made.row(WORST, worst))


def test_each_class_counts_its_own_images() -> None:
    cat, dog = by_class(evaluation(), LABELS, CLASSES)
    assert (cat.name, cat.n, cat.clean, cat.worst) == ("cat", 3, 3, 1)
    assert (dog.name, dog.n, dog.clean, dog.worst) == ("$dog$", 2, 1, 1)
    assert cat.interval == wilson(1, 3) and cat.clean_interval == wilson(3, 3)


def test_the_classes_together_are_the_whole() -> None:
    found = evaluation()
    parts = by_class(found, LABELS, CLASSES)
    assert sum(one.worst for one in parts) == found.worst.k and sum(one.clean for one in parts) == found.clean.k


def test_labels_of_other_images_are_refused() -> None:
    with pytest.raises(UserError, match="4 labels"):
        by_class(evaluation(), LABELS[:4], CLASSES)


def test_the_weakest_come_first_and_only_so_many() -> None:
    models = {"a": by_class(evaluation(), LABELS, CLASSES), "b": by_class(evaluation("11000"), LABELS, CLASSES)}
    assert weakest(models) == ["$dog$", "cat"], "0.5 + 0 against 1/3 + 2/3"
    assert weakest(models, 1) == ["$dog$"]


def test_the_figure_places_a_row_for_each_class() -> None:
    figure = class_figure({"a": by_class(evaluation(), LABELS, CLASSES)})
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cat", "$dog$"]
    filled, hollow = (np.asarray(collection.get_offsets()) for collection in axes.collections[-2:])
    assert [round(float(x), 1) for x, _ in filled] == [33.3, 50.0]
    assert [round(float(x), 1) for x, _ in hollow] == [100.0, 50.0]
