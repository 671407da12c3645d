"""The spread of angles: known angles of a head that is an identity, kept and read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from advsphere.analysis.angles import Spread, spread_figure, spread_of_angles
from advsphere.analysis.crafting import sample_positions
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.identity import data_checksum, model_checksum
from advsphere.threat import ThreatModel

THREAT = ThreatModel(norm="linf", eps=0.05)


def network() -> nn.Module:
    """Two pixels are the features, and the axes the classes' directions."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2))  # type: ignore[union-attr]
    return model.eval()


def images() -> ImageSet:
    pixels = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.6, 0.3]]).view(4, 1, 1, 2)
    return ImageSet(pixels, torch.tensor([0, 0, 1, 1]), ("a", "b"), "two pixels")


@pytest.fixture(scope="module")
def found() -> Spread:
    return spread_of_angles(network(), images(), threat=THREAT, batch_size=3)


def test_angles_and_margins_are_those_of_the_pixels(found: Spread) -> None:
    x, y = images().batch(torch.arange(4))
    angle = torch.atan2(x.flatten(1)[:, 1], x.flatten(1)[:, 0]).rad2deg()
    own = torch.where(y == 0, angle, 90 - angle)
    assert found.clean.angle == pytest.approx(own.tolist(), abs=2e-3)
    assert found.clean.margin == pytest.approx((90 - 2 * own).tolist(), abs=4e-3)
    assert [v < 0 for v in found.clean.margin] == [False, False, False, True]


def test_an_attack_moves_every_image_towards_the_other_class(found: Spread) -> None:
    assert all(b > a + 1 for a, b in zip(found.clean.angle, found.adversarial.angle, strict=True))
    assert all(b < a - 2 for a, b in zip(found.clean.margin, found.adversarial.margin, strict=True))


def test_batches_do_not_matter_and_it_says_of_what_it_is(found: Spread) -> None:
    whole = spread_of_angles(network(), images(), threat=THREAT, batch_size=4)
    assert whole == found
    assert (found.model, found.data) == (model_checksum(network()), data_checksum(images(), 4))


def test_a_sample_has_the_angles_that_its_images_have_among_all(found: Spread) -> None:
    some = spread_of_angles(network(), images(), threat=THREAT, most=2)
    chosen = sample_positions(4, 2, seed=0).tolist()
    assert (some.n, some.of, some.data) == (2, 4, found.data)
    assert some.adversarial.angle == tuple(found.adversarial.angle[i] for i in chosen)


def test_it_is_kept_and_read_back_unless_it_was_changed(found: Spread, tmp_path: Path) -> None:
    path = tmp_path / "angles.json"
    found.save(path)
    assert Spread.load(path) == found
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": 99}))
    with pytest.raises(UserError, match="changed"):
        Spread.load(path)


@pytest.mark.parametrize("what", ["angle", "margin"])
def test_a_panel_for_each_model_on_one_axis(found: Spread, what: str) -> None:
    figure = spread_figure({"one": found, "$two$": found}, what)  # type: ignore[arg-type]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "$two$"]
    heights = [sum(p.get_height() for p in axes.patches if hasattr(p, "get_height")) for axes in figure.axes]
    assert heights == pytest.approx([100, 100])
