"""A name leads to one network, in `train` and in `evaluate`; somebody's weights are evaluated as they were trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from advsphere import named
from advsphere.classifier import PixelClassifier
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.models.by_name import published_statistics
from advsphere.recipes import recipe
from advsphere.runs.build import build_model
from advsphere.runs.target import EvaluationTarget
from tests.models import others

IMAGES = ImageSet(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10), tuple(map(str, range(10))))
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
MODULE = """
import torch
from torch import nn

def images():
    return torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10)

def build(num_classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "theirs.py").write_text(MODULE)


def target(**given: Any) -> EvaluationTarget:
    return EvaluationTarget(data=Path("theirs:images"), **given)


def evaluated(told: list[str], **given: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = target(**given).load(told.append)[0](X)
    return logits


def trained(name: str, **given: Any) -> torch.nn.Module:
    config = recipe("cifar10-small-fastat")
    return build_model(replace(config, model=replace(config.model, name=name, **given)), IMAGES)


def hugging_face_folder() -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**shape, image_size=32, patch_size=16, num_labels=10)
    transformers.ViTForImageClassification(config).save_pretrained("vit")
    transformers.ViTImageProcessor(image_mean=[0.4, 0.5, 0.6]).save_pretrained("vit")


def test_hugging_face_folders_are_trained_and_evaluated_with_their_preprocessing() -> None:
    hugging_face_folder()
    import transformers

    told: list[str] = []
    logits = evaluated(told, model="hf:vit")
    theirs = transformers.ViTForImageClassification.from_pretrained("vit").eval()
    normal = (X - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.5
    with torch.no_grad():
        assert torch.allclose(logits, theirs(normal).logits, atol=1e-5)
        assert torch.allclose(trained("hf:vit", pretrained=True).eval()(X), logits, atol=1e-5)
    assert told == ["hf:vit gets pixels normalised by mean [0.4, 0.5, 0.6] and std [0.5, 0.5, 0.5]"]
    with pytest.raises(UserError, match="Hugging Face"):
        trained("hf:./nowhere")
    with pytest.raises(UserError, match="names hf:vit, which you have not used here before"):
        named.require_trust(["hf:vit"], "a file")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timm:resnett18", "nearest are timm:resnet18"),
        ("robustbench:Pang2020Bosting", "nearest are robustbench:Pang2020Boosting"),
        ("smal-cnn", "nearest are small-cnn"),
        ("theirs:biuld", "has no attribute 'biuld'"),
        ("torch:nn", "torch:nn could not be called"),
    ],
)
def test_wrong_names_have_the_same_error_in_both_commands(name: str, says: str) -> None:
    torch.save(others.wide(10, 1), "net.pt")
    with pytest.raises(UserError, match=says) as first:
        trained(name)
    with pytest.raises(UserError, match=says) as second:
        evaluated([], model=name, weights=Path("net.pt"))
    assert str(first.value) == str(second.value)


def test_the_file_decides_on_the_network_and_its_normalisation() -> None:
    state = others.wide(10, 1)
    torch.save(state, "trades.pt")
    torch.save(others.deepmind_wide(10, 1), "dm.pt")
    told: list[str] = []
    assert torch.allclose(evaluated(told, weights=Path("trades.pt")), others.wide_logits(state, X), atol=1e-4)
    assert told == [
        "the weights in trades.pt are those of wrn-10-1",
        "wrn-10-1 gets pixels in [0, 1]; if it was trained on normalised ones, add --mean and --std",
    ]
    found = evaluated([], weights=Path("trades.pt"), mean=(0.5,) * 3, std=(0.25,) * 3)
    assert torch.allclose(found, others.wide_logits(state, (X - 0.5) / 0.25), atol=1e-4)
    found = evaluated([], weights=Path("dm.pt"), model="dm-wrn-10-1")
    assert torch.allclose(found, others.deepmind_wide_logits(others.deepmind_wide(10, 1), X), atol=1e-4)
    with pytest.raises(UserError, match=r"has its own mean \[0.4, 0.5, 0.6\] .*; leave out --mean and --std"):
        evaluated([], weights=Path("dm.pt"), mean=(0.5,) * 3, std=(0.25,) * 3)


def test_heads_without_bias_ask_for_their_scale() -> None:
    state = others.wide(10, 1, bias=False)
    torch.save(state, "athe.pt")
    with pytest.raises(UserError, match=r"has no bias, as with hypersphere embedding, .* add --scale"):
        evaluated([], weights=Path("athe.pt"))
    found = evaluated([], weights=Path("athe.pt"), scale=15.0)
    assert torch.allclose(found, 15 * others.boosting_logits(state, X), atol=1e-3)


def test_what_has_no_weights_for_these_classes_is_refused() -> None:
    for name, says in {
        "timm:resnet18": "for 1000 classes, and the images have 10",
        "torchvision:resnet18": "for 1000 classes",
        "resnt18": "no network is called 'resnt18'; the nearest are",
        "wrn-10-1": "comes without weights; add --weights FILE",
        "robustbench:Carmon2019Unlabeled": "comes without weights",
        "Carmon2019Unlabeled": "comes without weights",
    }.items():
        with pytest.raises(UserError, match=says):
            evaluated([], model=name)
    torch.save(others.wide(10, 1, classes=7), "net.pt")
    with pytest.raises(UserError, match=r"of another shape are fc.weight \(\(7, 64\) instead of \(10, 64\)\)"):
        evaluated([], weights=Path("net.pt"))
    assert evaluated([], weights=Path("net.pt"), num_classes=7).shape == (2, 7)


def test_published_weights_get_the_input_of_their_training() -> None:
    assert published_statistics("torchvision:efficientnet_v2_l") == ((0.5,) * 3, (0.5,) * 3)
    assert published_statistics("timm:resnet18") == published_statistics("torchvision:resnet18")
    assert published_statistics("robustbench:Hendrycks2019Using") == ((0.5,) * 3, (0.5,) * 3)
    assert published_statistics("wrn-28-10") is None


def test_a_user_s_function_gets_what_it_asks_for_in_both_commands() -> None:
    assert evaluated([], model="theirs:build").shape == (2, 10)
    assert not isinstance(trained("theirs:build"), PixelClassifier)


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ({"model": "theirs.nets:build"}, "theirs.nets"),
        ({"model": "theirs.nets:build", "weights": Path("their.pth")}, "their"),
        ({"weights": Path("runs/zhang/model_best.pth.tar")}, "zhang/model_best"),
        ({"weights": Path("runs/zhang/trades-1.5.pt#ema")}, "trades-1.5"),
        ({"model": "timm:resnet18"}, "resnet18"),
        ({"model": "hf:google/vit-base"}, "vit-base"),
        ({"model": "robustbench:L2/Rice2020Overfitting"}, "Rice2020Overfitting"),
    ],
)
def test_somebody_s_model_is_called_after_its_file_or_module(given: dict[str, Any], label: str) -> None:
    assert target(**given).label == label
