"""The names of weights in published code, and which of our networks a file fits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from torch import Tensor, nn

from advsphere.models.networks import PreActResNet18, SmallCNN, WideResNet, cifar_resnet

_NAMES: dict[str, tuple[tuple[str, str | None], ...]] = {
    # TRADES, AT_HE, MAIR and RobustBench. Their `sub_block1` never runs.
    "wrn": (
        (r"^sub_block1\..*", None),
        (r"^block(\d)\.layer\.", r"group\1."),
        (r"\.convShortcut\.", ".shortcut."),
        (r"^bn1\.", "bn."),
    ),
    # DeepMind's and RobustBench's DMWideResNet.
    "dm-wrn": (
        (r"^init_conv\.", "conv1."),
        (r"^layer\.0\.block\.", "group1."),
        (r"^layer\.1\.block\.", "group2."),
        (r"^layer\.2\.block\.", "group3."),
        (r"\.batchnorm_0\.", ".bn1."),
        (r"\.batchnorm_1\.", ".bn2."),
        (r"\.conv_0\.", ".conv1."),
        (r"\.conv_1\.", ".conv2."),
        (r"^batchnorm\.", "bn."),
        (r"^logits\.", "fc."),
    ),
    # pytorch-cifar, fast_adversarial, MAIR and RobustBench.
    "preactresnet": ((r"\.shortcut\.0\.", ".shortcut."), (r"^linear\.", "fc.")),
    # DeepMind's and RobustBench's DMPreActResNet.
    "dm-preactresnet": (
        (r"^conv_2d\.", "conv1."),
        (r"^layer_0\.", "layer1."),
        (r"^layer_1\.", "layer2."),
        (r"^layer_2\.", "layer3."),
        (r"^layer_3\.", "layer4."),
        (r"\.batchnorm_0\.", ".bn1."),
        (r"\.batchnorm_1\.", ".bn2."),
        (r"\.conv_2d_1\.", ".conv1."),
        (r"\.conv_2d_2\.", ".conv2."),
        (r"^batchnorm\.", "bn."),
        (r"^logits\.", "fc."),
    ),
    # pytorch-cifar, MAIR and RobustBench.
    "cifar-resnet": ((r"\.shortcut\.", ".downsample."), (r"^linear\.", "fc.")),
}
"""For each kind of our networks, patterns that turn published names into ours; None where a weight has no use."""

NORMALISATION = {"mean": ("mean", "mu"), "std": ("std", "sigma")}
"""The names of the mean and the standard deviation of the input in published code."""

_LAYERS: dict[tuple[int, ...], int] = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}


def renamed(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The weights under the names of our network of that kind, see `_NAMES`."""
    found = {}
    for name, value in state.items():
        new: str | None = name
        for pattern, ours in _NAMES[kind]:
            if new is not None and re.search(pattern, new):
                new = None if ours is None else re.sub(pattern, ours, new)
        if new is not None:
            found[new] = value
    return found


def kind_of(model: nn.Module) -> str | None:
    """The kind of one of our networks; None for any other."""
    kind = getattr(model, "published", None)
    return kind if kind in _NAMES else None


def candidates(state: Mapping[str, Tensor]) -> Iterator[tuple[str, nn.Module]]:
    """Our networks that these weights may belong to, by name, built on the current device.

    The names carry no prefix. Some networks differ only in what they compute, so several may fit one file.
    """
    for kind in _NAMES:
        ours = renamed(state, kind)
        stem, head = ours.get("conv1.weight"), ours.get("fc.weight")
        if stem is None or head is None or stem.dim() != 4 or head.dim() != 2:
            continue
        classes, channels = len(head), stem.shape[1]
        if kind in ("wrn", "dm-wrn"):
            blocks, first = _count(ours, "group1"), ours.get("group1.0.conv1.weight")
            if blocks and first is not None and len(first) % 16 == 0:
                depth, width = 6 * blocks + 4, len(first) // 16
                network = WideResNet(depth, width, classes, in_channels=channels, deepmind=kind == "dm-wrn")
                yield f"{kind}-{depth}-{width}", network
        elif kind == "dm-preactresnet":
            yield "dm-preactresnet-18", PreActResNet18(classes, in_channels=channels, deepmind=True)
        elif kind == "preactresnet":
            norm = "bn.weight" in ours
            for version in ("", "-v2"):
                name = f"preactresnet-18{version}{'' if norm else '-nobn'}"
                activated = version != ""
                yield name, PreActResNet18(classes, in_channels=channels, final_norm=norm, activated_shortcut=activated)
        else:
            depth = _LAYERS.get(tuple(_count(ours, f"layer{i}") for i in range(1, 5)), 0)
            depth = 50 if depth == 34 and "layer1.0.conv3.weight" in ours else depth
            if depth and find_spec("torchvision"):
                yield f"cifar-resnet-{depth}", cifar_resnet(depth, classes, in_channels=channels)
    if "conv3.weight" in state and "fc.weight" in state and state["conv1.weight"].dim() == 4:
        yield "small-cnn", SmallCNN(len(state["fc.weight"]), in_channels=state["conv1.weight"].shape[1])


def _count(state: Mapping[str, Tensor], stage: str) -> int:
    """The number of blocks in a stage."""
    return len({name.split(".")[1] for name in state if name.startswith(f"{stage}.")})
