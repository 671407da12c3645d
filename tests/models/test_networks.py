"""The forward passes of our own networks against references written from the papers on the bare state dict."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advsphere.folding import fold
from advsphere.models import build

State = dict[str, Tensor]


def activated(state: State, name: str, x: Tensor) -> Tensor:
    """ReLU of batch norm with the stored statistics, written out."""
    mean, var, gain, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    column = (slice(None), None, None)
    return ((x - mean[column]) / (var[column] + 1e-5).sqrt() * gain[column] + bias[column]).clamp(min=0)


def block(state: State, name: str, x: Tensor, stride: int, shortcut_of: str) -> Tensor:
    first = activated(state, f"{name}.bn1", x)
    out = F.conv2d(first, state[f"{name}.conv1.weight"], stride=stride, padding=1)
    out = F.conv2d(activated(state, f"{name}.bn2", out), state[f"{name}.conv2.weight"], padding=1)
    if f"{name}.shortcut.weight" in state:
        source = {"input": x, "activated": first}[shortcut_of]
        return out + F.conv2d(source, state[f"{name}.shortcut.weight"], stride=stride)
    return out + x


def residual_network(state: State, x: Tensor, groups: dict[str, int], blocks: int, shortcut_of: str) -> Tensor:
    """groups: name -> stride of its first block."""
    out = F.conv2d(x, state["conv1.weight"], padding=1)
    for name, stride in groups.items():
        for i in range(blocks):
            out = block(state, f"{name}.{i}", out, stride if i == 0 else 1, shortcut_of)
    return activated(state, "bn", out).mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def wide(state: State, x: Tensor) -> Tensor:
    return residual_network(state, x, {"group1": 1, "group2": 2, "group3": 2}, 2, "activated")


def preact(state: State, x: Tensor) -> Tensor:
    return residual_network(state, x, {"layer1": 1, "layer2": 2, "layer3": 2, "layer4": 2}, 2, "input")


def own(name: str, channels: int = 3, side: int = 16) -> nn.Module:
    unchanged = {"mean": [0.0] * channels, "std": [1.0] * channels}
    return build(name, num_classes=10, in_channels=channels, image_size=side, **unchanged).network


def lively(network: nn.Module) -> nn.Module:
    """In float64 and eval mode, with all batch norm statistics and gains away from 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return network.double().eval()


@pytest.mark.parametrize(
    ("name", "reference", "channels", "side"),
    [
        ("wrn-16-1", wide, 3, 16),  # width 1: the first group keeps its width and so has no shortcut
        ("wrn-16-2", wide, 1, 9),
        ("preactresnet-18", preact, 3, 16),
    ],
)
def test_forward_equals_a_functional_reference(
    name: str, reference: Callable[[State, Tensor], Tensor], channels: int, side: int
) -> None:
    network = lively(own(name, channels, side))
    x = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(x), reference(network.state_dict(), x))


def test_wide_convolutions_start_from_he_normal_over_their_fan_out() -> None:
    network = own("wrn-10-4")
    kernel = network.group3[0].conv2.weight
    assert kernel.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert not network.fc.bias.any()


@pytest.mark.parametrize(
    ("name", "pairs"), [("wrn-10-2", 4), ("wrn-34-1", 15), ("preactresnet-18", 8), ("small-cnn", 3)]
)
def test_folding_finds_every_convolution_that_a_batch_norm_alone_follows(name: str, pairs: int) -> None:
    model = own(name).eval()
    folded: dict[nn.Module, nn.Module] = {}
    fold(model, folded)
    kinds = [type(module) for module in folded]
    assert kinds.count(nn.Conv2d) == kinds.count(nn.BatchNorm2d) == pairs


@pytest.mark.parametrize("name", ["wrn-10-1", "timm:resnet18", "torchvision:resnet18"])
def test_a_plain_head_computes_in_float32_under_autocast(name: str) -> None:
    model = build(name, num_classes=10, image_size=32, mean=[0.5] * 3, std=[0.25] * 3).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.zeros(2, 3, 32, 32)).dtype == torch.float32
