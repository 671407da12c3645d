"""Figures and pictures as parts of a page."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from advsphere.analysis.canvas import INK, SERIES
from advsphere.report.rendering import png, svg, typographic
from tests.report.parsed import parse


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_comes_back_pixel_for_pixel(channels: int) -> None:
    image = torch.arange(channels * 20).view(channels, 4, 5) * 4 / 255
    head, _, data = png(image).partition(",")
    assert head == "data:image/png;base64"
    back = Image.open(io.BytesIO(base64.b64decode(data)))
    assert back.size == (5, 4) and back.mode == {1: "L", 3: "RGB"}[channels]
    levels = torch.tensor(list(back.tobytes())).view(4, 5, channels).permute(2, 0, 1)
    assert torch.equal(levels, (image * 255).round().long())


def test_two_figures_on_a_page_share_no_id_and_no_style_sheet() -> None:
    figure = Figure()
    figure.add_subplot().plot([0, 1], [0, 1], color=SERIES[0], marker="o", label="a < b", clip_on=True)
    figure.axes[0].set_title("a < b", color=INK)
    one, two = (parse(svg(figure, name=name, title="t & t")) for name in ("one", "two"))
    ids = [{n.attributes["id"] for n in tree.all() if "id" in n.attributes} for tree in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    uses = {str(n.attributes["href"]).removeprefix("#") for n in one.all("use")}
    clips = {str(n.attributes["clip-path"])[5:-1] for n in one.all() if "clip-path" in n.attributes}
    assert uses and clips and uses | clips <= ids[0]
    assert not one.all("style") and not one.all("metadata")
    assert "a < b" in {n.text for n in one.all("text")}
    assert one.all("svg")[0].attributes["aria-label"] == "t & t"
    assert {"viewbox"} <= one.all("svg")[0].attributes.keys()


def test_minus_signs_are_set_and_names_left_alone() -> None:
    given = "from -1.4 to +1.4 for PGD-20 and wrn-10-2, 65.6 %"
    assert typographic(given) == "from \u22121.4 to +1.4 for PGD-20 and wrn-10-2, 65.6\u00a0%"
