"""Figures and pictures as parts of a page."""

from __future__ import annotations

import base64
import io
from xml.etree import ElementTree

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from advsphere.report.rendering import figure, png, typographic
from tests.report.parsed import parse

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_comes_back_pixel_for_pixel(channels: int) -> None:
    image = torch.arange(channels * 20).view(channels, 4, 5) * 4 / 255
    head, _, data = png(image).partition(",")
    assert head == "data:image/png;base64"
    back = Image.open(io.BytesIO(base64.b64decode(data)))
    assert back.size == (5, 4) and back.mode == {1: "L", 3: "RGB"}[channels]
    levels = torch.tensor(list(back.tobytes())).view(4, 5, channels).permute(2, 0, 1)
    assert torch.equal(levels, (image * 255).round().long())


def test_a_figure_is_the_same_image_each_time_and_its_text_stays_text() -> None:
    drawing = Figure()
    drawing.add_subplot().plot([0, 1], [0, 1], marker="o", label="a < b")
    drawing.axes[0].set_title("a < b")
    (image,) = parse(figure(drawing, 't & "t"')).all("img")
    assert image.attributes["alt"] == 't & "t"'
    head, _, data = str(image.attributes["src"]).partition(",")
    assert head == "data:image/svg+xml;base64"
    assert "a < b" in {text.text for text in ElementTree.fromstring(base64.b64decode(data)).iter(f"{SVG}text")}
    assert figure(drawing, 't & "t"') == figure(drawing, 't & "t"')


def test_minus_signs_are_set_and_names_left_alone() -> None:
    given = "from -1.4 to +1.4 for PGD-20 and wrn-10-2, 65.6 %"
    assert typographic(given) == "from \u22121.4 to +1.4 for PGD-20 and wrn-10-2, 65.6\u00a0%"
