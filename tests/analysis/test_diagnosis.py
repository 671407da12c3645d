"""The whole diagnosis: on a pair, and on networks that are none of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from advsphere.analysis import Diagnosis, Network, diagnose
from advsphere.analysis.diagnosis import STAGES
from advsphere.classifier import PixelClassifier
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.files import content_checksum
from advsphere.hypersphere import attach_head
from advsphere.rng import Rng
from advsphere.threat import ThreatModel

THREAT = ThreatModel(norm="linf", eps=0.05)
FIGURES = {
    "claim-1-effective", "claim-2-hard", "claim-3-balance", "claim-4-margin", "gradients", "feature-norms", "table-7",
    "accuracy-eps", "accuracy-steps", "loss-surface", "pictures",
}  # fmt: skip


def images(n: int, channels: int, size: int, classes: int) -> ImageSet:
    """Noise around a brightness that tells the class."""
    y = torch.arange(n) % classes
    noise = Rng(0, torch.arange(n)).uniform((channels, size, size), "pixels")
    pixels = 0.3 * noise + 0.6 * (y / classes).view(-1, 1, 1, 1)
    return ImageSet(pixels, y, tuple(f"class {k}" for k in range(classes)), "shades")


def small(seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(24, 3),
        )  # fmt: skip


@pytest.fixture(scope="module")
def pair() -> Diagnosis:
    seen: list[tuple[str, str, int, int]] = []
    plain, sphere = small(0), attach_head(small(0), scale=10.0)
    found = diagnose(
        Network(name="HE $", model=sphere, margin=0.2, states={"initial": small(1)}),
        images(30, 1, 8, 3),
        threat=THREAT,
        baseline=Network(name="plain", model=plain),
        batch_size=16,
        on_progress=lambda *told: seen.append(told),
    )
    last = {(name, stage): done == total for name, stage, done, total in seen}
    assert last == {(name, stage): True for name in ("HE $", "plain") for stage in STAGES}
    assert sphere.training and all(p.grad is None and p.requires_grad for p in sphere.parameters())
    return found


def test_the_four_claims_are_answered_about_the_first_network(pair: Diagnosis) -> None:
    assert [claim.key for claim in pair.claims] == ["effective", "hard", "balance", "margin"]
    assert pair.claims[0].answer in ("seen", "not seen") and pair.claims[1].answer in ("seen", "not seen")
    assert pair.claims[3].answer in ("seen", "not seen")
    first, second = pair.examinations
    assert first.parts.normalized and not second.parts.normalized
    assert list(first.gradients) == ["initial", "as judged, m = 0", "as judged"]
    difference = float((first.clean.margin - second.clean.margin).mean())
    assert pair.claims[3].evidence[0].value == pytest.approx(difference)


def test_what_is_written_holds_the_numbers_and_every_figure(pair: Diagnosis, tmp_path: Path) -> None:
    written = pair.save(tmp_path)
    assert {path.name for path in written} == {f"{name}.png" for name in FIGURES | {"pictures-baseline"}} | {
        "diagnosis.json"
    }
    content = json.loads((tmp_path / "diagnosis.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["checksum"] == content_checksum(content)
    assert [network["name"] for network in content["networks"]] == ["HE $", "plain"]
    assert [claim["answer"] for claim in content["claims"]] == [claim.answer for claim in pair.claims]
    for network, e in zip(content["networks"], pair.examinations, strict=True):
        assert sum(network["gradient shares, easiest to hardest fifth"]["with FN"]) == pytest.approx(1.0)
        assert network["accuracy against eps"]["robust"] == list(e.eps.robust)
    for path in written[1:]:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_two_networks_need_two_names() -> None:
    with pytest.raises(UserError, match="another name"):
        one = Network(name="one", model=small(0))
        diagnose(one, images(10, 1, 8, 3), threat=THREAT, baseline=one)


def test_too_few_images_are_refused_before_anything_is_crafted() -> None:
    stages: list[str] = []
    one = Network(name="one", model=small(0))
    with pytest.raises(UserError, match="at least 10"):
        diagnose(
            one, images(9, 1, 8, 3), threat=THREAT, on_progress=lambda name, stage, done, total: stages.append(stage)
        )
    assert stages == []


def timm_network() -> nn.Module:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PixelClassifier(timm.create_model("test_resnet", num_classes=3), (0.5,) * 3, (0.25,) * 3)


def hugging_face_network() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8,
        num_labels=3, attn_implementation="eager",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PixelClassifier(transformers.ViTForImageClassification(config), (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("build", [timm_network, hugging_face_network])
def test_any_network_can_be_diagnosed(build: object) -> None:
    found = diagnose(Network(name="theirs", model=build()), images(12, 3, 32, 3), threat=THREAT)  # type: ignore[operator]
    assert [claim.answer for claim in found.claims[2:]] == ["not tested", "not tested"]
    assert "baseline" in found.claims[2].detail
    (e,) = found.examinations
    gradients = e.gradients["as judged"]
    assert len(gradients.layers) > 3 and gradients.middle > 0
