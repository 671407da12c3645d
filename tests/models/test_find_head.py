"""Finding, taking apart and replacing the head of real networks: torchvision, timm, Hugging Face and one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from advsphere.classifier import PixelClassifier, find_head, frozen, logits_of, split
from advsphere.errors import UserError
from advsphere.hypersphere import AngularMargin, HypersphereHead, attach_head
from tests.laws import global_randomness_untouched


def hugging_face(kind: str) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

    classes: dict[str, Any] = {"num_labels": 5}
    if kind == "vit":
        tiny = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 8}
        return ViTForImageClassification(ViTConfig(hidden_size=16, image_size=32, **tiny, **classes))
    layers: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**layers, **classes))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 12), nn.ReLU())
        self.main, self.auxiliary = nn.Linear(12, 5), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        z = self.body(x)
        return self.main(z), self.auxiliary(z)


vision = torchvision.models
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "torchvision resnet18": (lambda: vision.resnet18(num_classes=5), "fc"),
    "torchvision vgg11_bn": (lambda: vision.vgg11_bn(num_classes=5), "classifier.6"),
    "torchvision mobilenet_v2": (lambda: vision.mobilenet_v2(num_classes=5), "classifier.1"),
    "torchvision mobilenet_v3": (lambda: vision.mobilenet_v3_small(num_classes=5), "classifier.3"),
    "torchvision densenet": (lambda: vision.densenet121(num_classes=5), "classifier"),
    "torchvision vit": (lambda: vision.vit_b_16(num_classes=5, image_size=32), "heads.head"),
    "torchvision swin": (lambda: vision.swin_t(num_classes=5), "head"),
    "torchvision convnext": (lambda: vision.convnext_tiny(num_classes=5), "classifier.2"),
    "timm resnet18": (lambda: timm.create_model("resnet18", num_classes=5), "fc"),
    "timm vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32), "head"),
    "timm convnext": (lambda: timm.create_model("convnext_atto", num_classes=5), "head.fc"),
    "timm mobilenet": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), "classifier"),
    "hugging face vit": (lambda: hugging_face("vit"), "classifier"),
    "hugging face resnet": (lambda: hugging_face("resnet"), "classifier.1"),
    "own": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 5)), "3"),
}
networks = pytest.mark.parametrize(("build", "name"), NETWORKS.values(), ids=NETWORKS.keys())
CHEAP = {
    "torchvision resnet18", "torchvision mobilenet_v3", "timm resnet18", "timm vit_tiny", "timm convnext",
    "hugging face vit", "hugging face resnet", "own",
}  # fmt: skip
run = pytest.mark.parametrize(
    ("build", "name"), [row for key, row in NETWORKS.items() if key in CHEAP], ids=[k for k in NETWORKS if k in CHEAP]
)


def built(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def photos(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@networks
def test_the_head_is_found(build: Callable[[], nn.Module], name: str) -> None:
    with torch.device("meta"):
        model = build()
    assert find_head(model) == name and model.get_submodule(name).out_features == 5
    assert find_head(model, name) == name
    assert find_head(PixelClassifier(model, [0.5] * 3, [0.5] * 3)) == f"network.{name}"
    attach_head(model, scale=10.0)
    assert find_head(model) == name, "also once it is a hypersphere head"


@run
def test_features_and_head_give_the_logits(build: Callable[[], nn.Module], name: str) -> None:
    model, x = PixelClassifier(built(build), [0.5] * 3, [0.3] * 3), photos()
    with frozen(model) as classify, torch.no_grad():
        features, head, scale = split(model)
        assert torch.allclose(head(features(x)), classify(x), atol=1e-6) and scale == 1.0
        assert features(x).shape == (3, head.in_features)
    attach_head(model, scale=12.0)
    assert split(model).scale == 12.0


@run
def test_an_attached_head_trains_one_step_on_the_sphere(build: Callable[[], nn.Module], name: str) -> None:
    model, x, y, s = built(build), photos(4), torch.tensor([0, 1, 2, 3]), 7.0
    old = model.get_submodule(name).weight.detach().clone()
    with global_randomness_untouched():
        assert attach_head(model, scale=s) is model
    head = model.get_submodule(name)
    assert isinstance(head, HypersphereHead) and torch.equal(head.weight, old)
    assert "scale" in {key.rpartition(".")[2] for key in model.state_dict()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    logits = logits_of(model.train()(x))
    assert logits.shape == (4, 5) and logits.abs().max() <= s * (1 + 1e-6)
    before = AngularMargin(head, 0.1)(logits, y).mean()
    before.backward()
    assert head.weight.grad is not None and head.weight.grad.any()
    body = [p for n, p in model.named_parameters() if not n.startswith(name) and p.grad is not None]
    assert body and any(p.grad.any() for p in body), "the gradient passes through the head to the features"
    optimiser.step()
    assert not torch.equal(head.weight, old) and logits_of(model(x)).abs().max() <= s * (1 + 1e-6)


def test_two_heads_are_not_told_apart_but_can_be_named() -> None:
    model = built(TwoHeads)
    for ask in (find_head, split, lambda m: attach_head(m, scale=5.0)):
        with pytest.raises(UserError, match=r"main, auxiliary.*head=.*body\.1, main, auxiliary"):
            ask(model)
    assert find_head(model, "main") == "main" and not isinstance(model.auxiliary, HypersphereHead)
    attach_head(model, scale=5.0, head="main")
    assert isinstance(model.main, HypersphereHead) and logits_of(model(photos())).abs().max() <= 5.0
    assert torch.equal(split(model, "auxiliary").features(photos()), model.body(photos()))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: vision.squeezenet1_0(), "no linear layer"),
        (lambda: vision.googlenet(init_weights=False), "can't tell which of aux1.fc2, aux2.fc2, fc"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), "no linear layer"),
        (lambda: timm.create_model("resnet18", num_classes=0), "not a linear layer"),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224"), "not a linear layer.*head, head_dist"),
    ],
)
def test_what_can_not_be_told_is_refused_with_the_candidates(build: Callable[[], nn.Module], message: str) -> None:
    with torch.device("meta"):
        model = build()
    with pytest.raises(UserError, match=message):
        find_head(model)


@pytest.mark.parametrize("wrong", ["fd", "layer1", "conv1", ""])
def test_a_wrong_name_is_refused_with_the_candidates(wrong: str) -> None:
    with torch.device("meta"):
        model = vision.resnet18()
    with pytest.raises(UserError, match=f"'{wrong}' is no linear layer of this ResNet.*: fc$"):
        find_head(model, wrong)


def test_a_network_that_is_its_head_alone_is_refused() -> None:
    with pytest.raises(UserError, match="is itself its head"):
        attach_head(nn.Linear(4, 3), scale=5.0)
