"""Networks by name: published sizes, shapes, addressed initialisation, and errors that name the cure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from advsphere.classifier import PixelClassifier, find_head
from advsphere.errors import UserError
from advsphere.models import build
from advsphere.models.by_name import STATISTICS
from advsphere.models.networks import PreActResNet18, SmallCNN, WideResNet

DIGITS = {"num_classes": 10, "in_channels": 1, "image_size": 8, **STATISTICS["digits"]._asdict()}
CIFAR10 = {"num_classes": 10, "image_size": 32, **STATISTICS["cifar10"]._asdict()}
IMAGENET = {"num_classes": 1000, "image_size": 64, **STATISTICS["imagenet"]._asdict()}


def weights(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("make", "millions"),
    [
        (lambda: WideResNet(34, 10, 10), 46.16),  # TRADES and RobustBench
        (lambda: WideResNet(34, 20, 10), 184.53),
        (lambda: WideResNet(28, 10, 10), 36.48),  # 36.5M in the paper's table 4
        (lambda: WideResNet(16, 4, 10), 2.75),
        (lambda: PreActResNet18(10), 11.17),
        (lambda: SmallCNN(10), 0.05),
    ],
)
def test_networks_have_their_published_number_of_weights(make: Any, millions: float) -> None:
    with torch.device("meta"):
        assert round(weights(make()) / 1e6, 2) == millions


def test_a_bare_library_name_is_the_library_network_with_the_classes_asked_for() -> None:
    assert weights(build("resnet50", **IMAGENET)) == 25_557_032
    assert weights(build("torchvision:resnet18", **IMAGENET)) == 11_689_512
    assert weights(build("timm:resnet18", **{**IMAGENET, "num_classes": 40})) == 11_689_512 - 960 * 513


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("small-cnn", DIGITS),
        ("small-cnn", {**DIGITS, "image_size": 16}),
        ("wrn-10-1", DIGITS),
        ("wrn-10-2", CIFAR10),
        ("wrn-16-1", {**CIFAR10, "image_size": 64, "num_classes": 7}),
        ("preactresnet-18", CIFAR10),
        ("timm:resnet18", DIGITS),
        ("timm:vit_tiny_patch16_224", CIFAR10),
        ("torchvision:shufflenet_v2_x0_5", CIFAR10),
    ],
)
def test_pixels_become_one_row_of_finite_logits_an_image(name: str, like: dict[str, Any]) -> None:
    model = build(name, **like)
    side, channels = like["image_size"], like.get("in_channels", 3)
    assert isinstance(model, PixelClassifier)
    assert all(module.training for module in model.modules())
    logits = model.eval()(torch.linspace(0, 1, 2 * channels * side * side).view(2, channels, side, side))
    assert logits.shape == (2, like["num_classes"])
    assert logits.isfinite().all()
    assert logits.std(0).max() > 0  # the image matters
    assert model.get_submodule(find_head(model)).out_features == like["num_classes"]


def test_normalisation_is_inside() -> None:
    model = build("small-cnn", **{**DIGITS, "mean": (0.25,), "std": (0.5,)}).eval()
    x = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
    assert torch.equal(model(x), model.network((x - 0.25) / 0.5))


@pytest.mark.parametrize("name", ["small-cnn", "wrn-10-1", "preactresnet-18", "timm:resnet18", "torchvision:resnet18"])
def test_initial_weights_are_a_function_of_the_seed_and_the_global_state_is_left_alone(name: str) -> None:
    before = torch.get_rng_state()
    first = build(name, **CIFAR10, init_seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)  # the caller's own draws don't matter
    again = build(name, **CIFAR10, init_seed=1).state_dict()
    other = build(name, **CIFAR10, init_seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_building_leaves_batch_norm_statistics_fresh() -> None:
    buffers = dict(build("wrn-10-1", **CIFAR10).named_buffers())
    assert all(not b.any() for name, b in buffers.items() if name.endswith(("running_mean", "num_batches_tracked")))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("wrn34-10", "wrn-34-10"),
        ("WRN-34-10", "wrn-34-10"),
        ("resnt18", "resnet18"),
        ("timm:resnett18", "timm:resnet18"),
        ("torchvision:resnet19", "torchvision:resnet18"),
        ("other:zzzz", "small-cnn"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(wrong: str, named: str) -> None:
    with pytest.raises(UserError, match=r"^no network is called") as caught:
        build(wrong, **CIFAR10)
    assert named in str(caught.value).replace(wrong, "")


@pytest.mark.parametrize(
    ("name", "changed", "cause"),
    [
        ("wrn-33-10", {}, "6n \\+ 4"),
        ("wrn-4-10", {}, "6n \\+ 4"),
        ("wrn-10-0", {}, "widths 1 or more"),
        ("wrn-10-1", {"pretrained": True}, "no published weights"),
        ("wrn-10-1", {"in_channels": 1}, "1-channel images need 1 means"),
        ("torchvision:resnet18", {**DIGITS}, "takes 3 channels"),
        ("torchvision:vit_b_16", {}, "does not take 3x32x32 images"),
        ("timm:resnet18.no_such_tag", {}, "no_such_tag"),
    ],
)
def test_what_a_network_can_not_be_is_refused_with_the_cause(name: str, changed: dict[str, Any], cause: str) -> None:
    with pytest.raises(UserError, match=cause):
        build(name, **{**CIFAR10, **changed})


def test_pretrained_weights_keep_their_features_and_get_a_new_head(monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision")
    published = torchvision.models.resnet18(weights=None)
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: published)
    assert build("torchvision:resnet18", **IMAGENET, pretrained=True).network.fc.out_features == 1000
    kernel, head = published.conv1.weight.clone(), published.fc
    network = build("torchvision:resnet18", **CIFAR10, pretrained=True).network
    assert torch.equal(network.conv1.weight, kernel)
    assert network.fc is not head and network.fc.out_features == 10


def test_no_connection_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    import torchvision

    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("name or service not known")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(torchvision.models, "get_model", offline)
    for name in ("timm:resnet18", "torchvision:resnet18"):
        with pytest.raises(UserError, match=r"resnet18.*not known"):
            build(name, **CIFAR10, pretrained=True)


def test_statistics_of_the_digits_are_those_of_their_pixels() -> None:
    from sklearn.datasets import load_digits

    pixels = load_digits().data / 16
    assert STATISTICS["digits"].mean[0] == pytest.approx(pixels.mean(), abs=5e-5)
    assert STATISTICS["digits"].std[0] == pytest.approx(pixels.std(), abs=5e-5)


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet"])
def test_pretrained_networks_of_other_heads_get_new_ones_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision")
    real = torchvision.models.get_model
    options = {"init_weights": False} if name == "googlenet" else {}

    def get_model(name: str, weights: str | None, num_classes: int = 1000) -> nn.Module:
        network: nn.Module = real(name, weights=None, num_classes=num_classes, **options)
        return network

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    network = build(f"torchvision:{name}", **{**CIFAR10, "image_size": 64}, pretrained=True).eval()
    assert network(torch.rand(1, 3, 64, 64)).shape == (1, 10)
