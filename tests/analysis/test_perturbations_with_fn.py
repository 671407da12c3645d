"""Pictures of one network attacked in two ways."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from advsphere.analysis.angles import measure_angles
from advsphere.analysis.linear_head import split_head
from advsphere.analysis.perturbations import both_ways, first_right, picture_figure
from advsphere.cli.diagnose import enough
from advsphere.runs.target import EvaluationTarget
from advsphere.threat import ThreatModel
from tests.analysis.bodies import dark, spiral

THREAT = ThreatModel(norm="linf", eps=0.2)


def test_each_way_ends_where_it_leads_and_the_network_itself_judges() -> None:
    images = dark(6)
    found = both_ways(split_head(spiral(9.0), images), images, (4, 1), threat=THREAT)
    assert list(found) == ["with FN", "without FN"]
    for name, prediction, sign in (("with FN", "bright", 1), ("without FN", "dark", -1)):
        for picture, example in zip(found[name], (4, 1), strict=True):
            assert (picture.example, picture.label, picture.prediction) == (example, "dark", prediction)
            torch.testing.assert_close(picture.clean, images.pixels[example])
            assert abs(float(picture.perturbation) - sign * 0.2) < 1e-5


def test_the_first_image_of_each_class_that_is_right() -> None:
    images = dark(5)
    found = measure_angles(
        split_head(spiral(9.0), images), images.pixels, torch.tensor([1, 0, 0, 1, 0]), images.classes
    )
    assert first_right(found) == (1,), "class 1 has none"
    assert first_right(found, most=0) == ()


def test_the_sheet_has_a_column_for_each_part() -> None:
    images = dark(3)
    found = both_ways(split_head(spiral(9.0), images), images, (0, 2), threat=THREAT)
    axes = picture_figure(found, THREAT.eps).axes
    assert len(axes) == 2 * 5
    assert [ax.get_title() for ax in axes[:2]] == ["clean", "with FN:\nperturbation"]
    captions = [ax.xaxis.label for ax in axes[:5]]
    assert [c.get_text() for c in captions] == ["dark", "", "bright", "", "dark"]
    assert [c.get_fontweight() for c in captions[2::2]] == ["bold", "normal"]


@pytest.mark.parametrize("side", [64, 224])
def test_photos_of_any_size_with_weights_from_a_file(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    for number, label in product(range(2), ("cat", "dog")):
        (tmp_path / "photos" / "val" / label).mkdir(parents=True, exist_ok=True)
        levels = np.random.default_rng(number).integers(0, 256, (240, 260, 3), dtype=np.uint8)
        Image.fromarray(levels).save(tmp_path / "photos" / "val" / label / f"{number}.png")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "nets_of_photos.py").write_text(
        "import timm\ndef build():\n    return timm.create_model('test_resnet', num_classes=2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    subject = EvaluationTarget(
        model="nets_of_photos:build", weights=tmp_path / "net.safetensors", data=tmp_path / "photos", image_size=side
    )
    model, images = subject.load()
    found = both_ways(split_head(model, images), images, (0, 3), threat=ThreatModel(norm="linf", eps=8 / 255), steps=2)
    for picture in (*found["with FN"], *found["without FN"]):
        assert picture.clean.shape == picture.adversarial.shape == (3, side, side)
        assert 0 < float(picture.perturbation.abs().max()) <= 8 / 255 + 1e-6
    figure = picture_figure(found, 16 / 255)
    figure.savefig(io.BytesIO(), format="png", dpi=160)
    drawn = figure.axes[0].get_window_extent()
    assert drawn.width * 160 / figure.dpi >= side and drawn.width == pytest.approx(drawn.height), (
        "no pixel of a photo is lost"
    )


def test_larger_images_are_fewer() -> None:
    assert [enough((3, side, side)) for side in (8, 32, 64, 224, 600)] == [500, 500, 125, 60, 60]
