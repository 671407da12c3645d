"""Networks of other projects, by their published key names: random weights, and forwards on a dictionary of weights.

Nothing here uses a module of the project, so that a wrong translation of names or another architecture shows in the
logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


class Weights:
    """Draws the weights of layers, under their names."""

    def __init__(self, seed: int = 0) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def conv(self, name: str, into: int, out: int, size: int) -> None:
        self.state[f"{name}.weight"] = self.draw(out, into, size, size) / (into * size * size) ** 0.5

    def norm(self, name: str, channels: int) -> None:
        self.state[f"{name}.weight"] = 1 + 0.3 * self.draw(channels)
        self.state[f"{name}.bias"] = 0.3 * self.draw(channels)
        self.state[f"{name}.running_mean"] = 0.3 * self.draw(channels)
        self.state[f"{name}.running_var"] = 0.5 + self.draw(channels).abs()
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def linear(self, name: str, into: int, out: int, *, bias: bool = True) -> None:
        self.state[f"{name}.weight"] = self.draw(out, into) / into**0.5
        if bias:
            self.state[f"{name}.bias"] = self.draw(out)


def conv(s: State, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, s[f"{name}.weight"], None, stride, padding)


def norm(s: State, name: str, x: Tensor) -> Tensor:
    mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, s[f"{name}.weight"], s[f"{name}.bias"])


# TRADES, AT_HE and RobustBench's WideResNet.


def wide(depth: int, width: int, *, bias: bool = True, sub_block: bool = True, classes: int = 10) -> State:
    made, widths = Weights(), [16, 16 * width, 32 * width, 64 * width]
    made.conv("conv1", 3, 16, 3)
    groups = [("block1", 0), ("block2", 1), ("block3", 2)] + [("sub_block1", 0)] * sub_block
    for group, number in groups:
        for i in range((depth - 4) // 6):
            name, into, out = f"{group}.layer.{i}", widths[number + (i > 0)], widths[number + 1]
            made.norm(f"{name}.bn1", into)
            made.conv(f"{name}.conv1", into, out, 3)
            made.norm(f"{name}.bn2", out)
            made.conv(f"{name}.conv2", out, out, 3)
            if into != out:
                made.conv(f"{name}.convShortcut", into, out, 1)
    made.norm("bn1", widths[3])
    made.linear("fc", widths[3], classes, bias=bias)
    return made.state


def wide_features(s: State, x: Tensor) -> Tensor:
    out, depth = conv(s, "conv1", x, 1, 1), len({n.split(".")[2] for n in s if n.startswith("block1.")})
    for group, first in (("block1", 1), ("block2", 2), ("block3", 2)):
        for i in range(depth):
            name, stride = f"{group}.layer.{i}", first if i == 0 else 1
            active = F.relu(norm(s, f"{name}.bn1", out))
            inner = F.relu(norm(s, f"{name}.bn2", conv(s, f"{name}.conv1", active, stride, 1)))
            inner = conv(s, f"{name}.conv2", inner, 1, 1)
            has = f"{name}.convShortcut.weight" in s
            out = inner + (conv(s, f"{name}.convShortcut", active, stride) if has else out)
    return F.avg_pool2d(F.relu(norm(s, "bn1", out)), 8).flatten(1)


def wide_logits(s: State, x: Tensor) -> Tensor:
    return F.linear(wide_features(s, x), s["fc.weight"], s["fc.bias"])


def boosting_logits(s: State, x: Tensor) -> Tensor:
    """AT_HE's head, and RobustBench's Pang2020Boosting: cosines."""
    z, w = wide_features(s, x), s["fc.weight"]
    return (z / z.norm(dim=1, keepdim=True)) @ (w / w.norm(dim=1, keepdim=True)).T


# DeepMind's and RobustBench's DMWideResNet and DMPreActResNet.


def deepmind_wide(depth: int, width: int) -> State:
    made, widths = Weights(), [16, 16 * width, 32 * width, 64 * width]
    made.state |= {"mean": torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), "std": torch.full((3, 1, 1), 0.25)}
    made.conv("init_conv", 3, 16, 3)
    for group in range(3):
        for i in range((depth - 4) // 6):
            name, into, out = f"layer.{group}.block.{i}", widths[group + (i > 0)], widths[group + 1]
            made.norm(f"{name}.batchnorm_0", into)
            made.conv(f"{name}.conv_0", into, out, 3)
            made.norm(f"{name}.batchnorm_1", out)
            made.conv(f"{name}.conv_1", out, out, 3)
            if into != out:
                made.conv(f"{name}.shortcut", into, out, 1)
    made.norm("batchnorm", widths[3])
    made.linear("logits", widths[3], 10)
    return made.state


def deepmind_wide_logits(s: State, x: Tensor) -> Tensor:
    out, depth = conv(s, "init_conv", (x - s["mean"]) / s["std"], 1, 1), 0
    depth = len({n.split(".")[3] for n in s if n.startswith("layer.0.")})
    for group in range(3):
        for i in range(depth):
            name, stride = f"layer.{group}.block.{i}", 2 if i == 0 and group > 0 else 1
            active = F.silu(norm(s, f"{name}.batchnorm_0", out))
            padded = F.pad(active, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))
            inner = F.silu(norm(s, f"{name}.batchnorm_1", conv(s, f"{name}.conv_0", padded, stride)))
            inner = conv(s, f"{name}.conv_1", inner, 1, 1)
            has = f"{name}.shortcut.weight" in s
            out = inner + (conv(s, f"{name}.shortcut", active, stride) if has else out)
    pooled = F.avg_pool2d(F.silu(norm(s, "batchnorm", out)), 8).flatten(1)
    return F.linear(pooled, s["logits.weight"], s["logits.bias"])


def deepmind_preact() -> State:
    made, widths = Weights(), [64, 64, 128, 256, 512]
    made.state |= {"mean": torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), "std": torch.full((3, 1, 1), 0.25)}
    made.conv("conv_2d", 3, 64, 3)
    for stage in range(4):
        for i in range(2):
            name, into, out = f"layer_{stage}.{i}", widths[stage + (i > 0)], widths[stage + 1]
            made.norm(f"{name}.batchnorm_0", into)
            made.conv(f"{name}.conv_2d_1", into, out, 3)
            made.norm(f"{name}.batchnorm_1", out)
            made.conv(f"{name}.conv_2d_2", out, out, 3)
            if into != out:
                made.conv(f"{name}.shortcut", into, out, 3)
    made.norm("batchnorm", 512)
    made.linear("logits", 512, 10)
    return made.state


def deepmind_preact_logits(s: State, x: Tensor) -> Tensor:
    out = conv(s, "conv_2d", (x - s["mean"]) / s["std"], 1, 1)
    for stage in range(4):
        for i in range(2):
            name, stride = f"layer_{stage}.{i}", 2 if i == 0 and stage > 0 else 1
            padding = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)
            active = F.silu(norm(s, f"{name}.batchnorm_0", out))
            has = f"{name}.shortcut.weight" in s
            beside = conv(s, f"{name}.shortcut", F.pad(out, padding), stride) if has else out
            inner = conv(s, f"{name}.conv_2d_1", F.pad(active, padding), stride)
            out = conv(s, f"{name}.conv_2d_2", F.silu(norm(s, f"{name}.batchnorm_1", inner)), 1, 1) + beside
    pooled = F.avg_pool2d(F.silu(norm(s, "batchnorm", out)), 4).flatten(1)
    return F.linear(pooled, s["logits.weight"], s["logits.bias"])


# fast_adversarial, robust_overfitting, pytorch-cifar and MAIR: PreActResNet18.


def preact(*, final_norm: bool) -> State:
    made, widths = Weights(), [64, 64, 128, 256, 512]
    made.conv("conv1", 3, 64, 3)
    for stage in range(1, 5):
        for i in range(2):
            name, into, out = f"layer{stage}.{i}", widths[stage - 1 + (i > 0)], widths[stage]
            made.norm(f"{name}.bn1", into)
            made.conv(f"{name}.conv1", into, out, 3)
            made.norm(f"{name}.bn2", out)
            made.conv(f"{name}.conv2", out, out, 3)
            if into != out:
                made.conv(f"{name}.shortcut.0", into, out, 1)
    if final_norm:
        made.norm("bn", 512)
    made.linear("linear", 512, 10)
    return made.state


def preact_logits(s: State, x: Tensor, *, activated: bool) -> Tensor:
    out = conv(s, "conv1", x, 1, 1)
    for stage in range(1, 5):
        for i in range(2):
            name, stride = f"layer{stage}.{i}", 2 if i == 0 and stage > 1 else 1
            active, has = F.relu(norm(s, f"{name}.bn1", out)), f"{name}.shortcut.0.weight" in s
            beside = conv(s, f"{name}.shortcut.0", active if activated else out, stride) if has else out
            inner = F.relu(norm(s, f"{name}.bn2", conv(s, f"{name}.conv1", active, stride, 1)))
            out = conv(s, f"{name}.conv2", inner, 1, 1) + beside
    out = F.relu(norm(s, "bn", out)) if "bn.weight" in s else out
    return F.linear(F.avg_pool2d(out, 4).flatten(1), s["linear.weight"], s["linear.bias"])


# pytorch-cifar and RobustBench: ResNet18 and ResNet50.


def resnet(depth: int) -> State:
    made, into, blocks = Weights(), 64, [2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3]
    made.conv("conv1", 3, 64, 3)
    made.norm("bn1", 64)
    for stage in range(1, 5):
        width = 32 << stage
        out = width if depth == 18 else 4 * width
        for i in range(blocks[stage - 1]):
            name = f"layer{stage}.{i}"
            sizes = [(into, width, 3), (width, width, 3)]
            sizes = sizes if depth == 18 else [(into, width, 1), (width, width, 3), (width, out, 1)]
            for number, size in enumerate(sizes, start=1):
                made.conv(f"{name}.conv{number}", *size)
                made.norm(f"{name}.bn{number}", size[1])
            if into != out or (stage > 1 and i == 0):
                made.conv(f"{name}.shortcut.0", into, out, 1)
                made.norm(f"{name}.shortcut.1", out)
            into = out
    made.linear("linear", into, 10)
    return made.state


def resnet_logits(s: State, x: Tensor) -> Tensor:
    out = F.relu(norm(s, "bn1", conv(s, "conv1", x, 1, 1)))
    for stage in range(1, 5):
        for i in range(len({n.split(".")[1] for n in s if n.startswith(f"layer{stage}.")})):
            name, stride = f"layer{stage}.{i}", 2 if i == 0 and stage > 1 else 1
            deep = f"{name}.conv3.weight" in s
            beside = out
            if f"{name}.shortcut.0.weight" in s:
                beside = norm(s, f"{name}.shortcut.1", conv(s, f"{name}.shortcut.0", out, stride))
            if deep:
                out = F.relu(norm(s, f"{name}.bn1", conv(s, f"{name}.conv1", out)))
                out = F.relu(norm(s, f"{name}.bn2", conv(s, f"{name}.conv2", out, stride, 1)))
                out = norm(s, f"{name}.bn3", conv(s, f"{name}.conv3", out))
            else:
                out = F.relu(norm(s, f"{name}.bn1", conv(s, f"{name}.conv1", out, stride, 1)))
                out = norm(s, f"{name}.bn2", conv(s, f"{name}.conv2", out, 1, 1))
            out = F.relu(out + beside)
    return F.linear(F.avg_pool2d(out, 4).flatten(1), s["linear.weight"], s["linear.bias"])
