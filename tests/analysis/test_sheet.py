"""Pictures of one network attacked in two ways."""

from __future__ import annotations

import torch

from advsphere.analysis import both_ways, dissect, first_right, measure, picture_figure
from advsphere.threat import ThreatModel
from tests.analysis.bodies import dark, spiral

THREAT = ThreatModel(norm="linf", eps=0.2)


def test_each_way_ends_where_it_leads_and_the_network_itself_judges() -> None:
    images = dark(6)
    found = both_ways(dissect(spiral(9.0), images), images, (4, 1), threat=THREAT)
    assert list(found) == ["with FN", "without FN"]
    for name, prediction, sign in (("with FN", "bright", 1), ("without FN", "dark", -1)):
        for picture, example in zip(found[name], (4, 1), strict=True):
            assert (picture.example, picture.label, picture.prediction) == (example, "dark", prediction)
            torch.testing.assert_close(picture.clean, images.pixels[example])
            assert abs(float(picture.perturbation) - sign * 0.2) < 1e-5


def test_the_first_image_of_each_class_that_is_right() -> None:
    images = dark(5)
    found = measure(dissect(spiral(9.0), images), images.pixels, torch.tensor([1, 0, 0, 1, 0]), images.classes)
    assert first_right(found) == (1,), "class 1 has none"
    assert first_right(found, most=0) == ()


def test_the_sheet_has_a_column_for_each_part() -> None:
    images = dark(3)
    found = both_ways(dissect(spiral(9.0), images), images, (0, 2), threat=THREAT)
    axes = picture_figure(found, THREAT.eps).axes
    assert len(axes) == 2 * 5
    assert [ax.get_title() for ax in axes[:2]] == ["clean", "with FN:\nperturbation"]
    captions = [ax.xaxis.label for ax in axes[:5]]
    assert [c.get_text() for c in captions] == ["dark", "", "bright", "", "dark"]
    assert [c.get_fontweight() for c in captions[2::2]] == ["bold", "normal"]
