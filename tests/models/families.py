"""The table of network families in docs/networks.md: what each one can do here, every cell of it run.

    python -m tests.models.families             # run all and print the lines
    python -m tests.models.families RegNet ViT  # the families that begin with these names
    python -m tests.models.families --write     # write the table in docs/networks.md

Networks are of the smallest size that the library builds, with random weights and five classes, on two images.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from timm.models.convmixer import ConvMixer
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

import advsphere as adv
from advsphere.calling import answer
from advsphere.classifier import folds, frozen
from advsphere.data import ImageSet
from advsphere.deployment import FORMATS, export
from advsphere.errors import UserError
from advsphere.hypersphere import AngularMargin
from advsphere.models import load_weights
from advsphere.objectives import PGDAT
from advsphere.reproduce.results import write_between
from advsphere.state import duplicate
from advsphere.threat import ThreatModel
from advsphere.training import Trainer, TrainSettings

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"
vision = torchvision.models
MARKS = {"begin": "<!-- families -->", "end": "<!-- /families -->"}
CLASSES, THREAT = 5, ThreatModel(norm="linf", eps=8 / 255)


class Family(NamedTuple):
    """A network: how to build it, the side of its images, and its head where it has to be named."""

    build: Callable[[], nn.Module]
    size: int = 32
    head: str | None = None


def _vision(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return partial(torchvision.models.get_model, name, weights=None, num_classes=CLASSES, **settings)


def _timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return partial(timm.create_model, name, num_classes=CLASSES, **settings)


def _hugging_face(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **settings)
        network: nn.Module = getattr(transformers, f"{name}ForImageClassification")(config)
        return network

    return build


def _convnext() -> nn.Module:
    block = vision.convnext.CNBlockConfig
    return vision.ConvNeXt([block(8, 16, 1), block(16, None, 1)], num_classes=CLASSES)


_LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}

FAMILIES: dict[str, Family] = {
    "torchvision AlexNet": Family(_vision("alexnet"), 64),
    "torchvision VGG, batch norm": Family(_vision("vgg11_bn")),
    "torchvision ResNet": Family(_vision("resnet18")),
    "torchvision ResNeXt": Family(
        lambda: vision.ResNet(vision.resnet.Bottleneck, [1, 1, 1, 1], CLASSES, groups=32, width_per_group=4)
    ),
    "torchvision DenseNet": Family(lambda: vision.DenseNet(4, (2, 2), 8, num_classes=CLASSES)),
    "torchvision SqueezeNet": Family(_vision("squeezenet1_1")),
    "torchvision GoogLeNet": Family(_vision("googlenet", init_weights=False), 64, "fc"),
    "torchvision Inception v3": Family(_vision("inception_v3", init_weights=False), 299, "fc"),
    "torchvision ShuffleNet v2": Family(_vision("shufflenet_v2_x0_5")),
    "torchvision MobileNet v2": Family(_vision("mobilenet_v2")),
    "torchvision MobileNet v3": Family(_vision("mobilenet_v3_small")),
    "torchvision MNASNet": Family(_vision("mnasnet0_5"), 96),
    "torchvision EfficientNet": Family(_vision("efficientnet_b0"), 96),
    "torchvision RegNet": Family(_vision("regnet_y_400mf"), 96),
    "torchvision ConvNeXt": Family(_convnext),
    "torchvision ViT": Family(lambda: vision.VisionTransformer(32, 8, 1, 2, 16, 24, num_classes=CLASSES)),
    "torchvision Swin": Family(lambda: vision.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [4, 4], num_classes=CLASSES)),
    "timm ResNet-D": Family(_timm("resnet18d")),
    "timm ResNet v2, group norm": Family(_timm("resnetv2_50", layers=(1, 1, 1, 1))),
    "timm NFNet, no norm": Family(_timm("nf_resnet26")),
    "timm RepVGG": Family(_timm("repvgg_a0")),
    "timm GhostNet": Family(_timm("ghostnet_100"), 96),
    "timm ConvMixer": Family(lambda: ConvMixer(32, 2, num_classes=CLASSES)),
    "timm DeiT, distilled": Family(_timm("deit_tiny_distilled_patch16_224", img_size=32, depth=2)),
    "timm MLP-Mixer": Family(lambda: MlpMixer(CLASSES, 32, patch_size=8, num_blocks=2, embed_dim=16)),
    "timm ConvNeXt": Family(_timm("convnext_atto")),
    "timm PoolFormer": Family(_timm("poolformer_s12")),
    "transformers ResNet": Family(
        _hugging_face("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ),
    "transformers ViT": Family(_hugging_face("ViT", image_size=32, patch_size=8, **_LAYERS)),
    "transformers BEiT": Family(_hugging_face("Beit", image_size=32, patch_size=8, **_LAYERS)),
    "transformers ConvNextV2": Family(_hugging_face("ConvNextV2", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
}
CHEAP = ("torchvision DenseNet", "transformers ViT")
"""Families that `make test` runs."""


class Network(NamedTuple):
    """A network of a family before and after its head was attached, with a batch."""

    family: Family
    plain: nn.Module
    model: nn.Module
    x: Tensor
    y: Tensor


def attached(s: Network) -> str:
    """With its head, the network's logits are bounded by the scale; without, nothing has changed."""
    adv.attach_head(s.model, scale=10.0, head=s.family.head)
    with frozen(s.model) as classify, torch.no_grad():
        logits = classify(s.x)
    assert logits.shape == (2, CLASSES) and logits.abs().max() <= 10.0 * (1 + 1e-5) and logits.std() > 0
    return "equal"


def trained(s: Network) -> str:
    """A step of adversarial training changes body and head, and the checkpoint restores both."""
    model, again = duplicate(s.model), duplicate(s.model)
    heads = [m for m in model.modules() if isinstance(m, adv.HypersphereHead)]
    criterion = AngularMargin(heads[0], 0.2) if heads else nn.functional.cross_entropy
    images = ImageSet(s.x, s.y, tuple("abcde"))
    settings = TrainSettings(epochs=1, batch_size=2, lr=1e-3, precision="float32")
    with tempfile.TemporaryDirectory() as folder:
        for one, go in ((model, "fit"), (again, "resume")):
            loss = criterion if go == "fit" or not heads else AngularMargin(heads[0], 0.2)
            trainer = Trainer(one, PGDAT(threat=THREAT, steps=1), loss, images, settings=settings, folder=folder)
            getattr(trainer, go)()
    changed = [not torch.equal(a, b) for a, b in zip(model.parameters(), s.model.parameters(), strict=True)]
    assert sum(changed) > 0.5 * len(changed)
    _same(model, again, s.x)
    return "equal"


def folded(s: Network) -> str:
    """Folding batch norms changes no logit by more than rounding, or does not happen."""
    if not folds(s.model, s.x):
        return "no pair"
    with torch.no_grad():
        with frozen(s.model) as classify:
            expected = classify(s.x)
        with frozen(s.model, fold=True) as classify:
            found = classify(s.x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    return "equal"


def attacked(s: Network) -> str:
    """PGD on the network gives the images of PGD on a function that calls it in the plainest way."""
    model = s.model.eval()

    def plainly(x: Tensor) -> Tensor:
        return answer(model, x.contiguous())

    settings: dict[str, Any] = {"threat": THREAT, "steps": 2, "step_size": 2 / 255}
    found, expected = adv.pgd(model, s.x, s.y, **settings), adv.pgd(plainly, s.x, s.y, **settings)
    assert torch.equal(found, expected) and not torch.equal(found, s.x)
    with frozen(model) as classify:
        near = adv.pgd(classify, s.x, s.y, **settings)
    assert ((near - expected).abs() > 1e-6).float().mean() < 0.02, "a sign may turn where a gradient is almost zero"
    return "equal"


def saved(s: Network) -> str:
    """A state dict that torch saved is loaded into a new network."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(s.model.state_dict(), path)
        again = duplicate(s.model)
        with torch.no_grad():
            for p in again.parameters():
                p.add_(1.0)
        load_weights(again, path)
    _same(s.model, again, s.x)
    return "equal"


def exported(s: Network, to: str) -> str:
    """`export` itself compares what it wrote with the network."""
    with tempfile.TemporaryDirectory() as folder:
        export(s.model, tuple(s.x.shape[1:]), Path(folder) / "network", to)
    return "equal"


COLUMNS: dict[str, Callable[[Network], str]] = {
    "attach": attached,
    "train a step": trained,
    "fold": folded,
    "attack": attacked,
    "save, load": saved,
    **{to: partial(exported, to=to) for to in FORMATS},
}


def cells(name: str) -> tuple[list[str], list[str]]:
    """The cells of a family, and the reasons of those that are refused. A network without a head goes on without."""
    family = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = family.build()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                module.running_var.uniform_(0.5, 2.0)
        x = torch.rand(2, 3, family.size, family.size)
    found, reasons = list[str](), list[str]()
    s = Network(family, network, network, x, torch.tensor([0, 1]))
    for column, run in COLUMNS.items():
        try:
            found.append(run(s))
        except UserError as error:
            found.append("refused")
            reasons.append(f"{name}, {column}: {error}")
    return found, reasons


def _same(model: nn.Module, other: nn.Module, x: Tensor) -> None:
    with torch.no_grad(), frozen(model) as first, frozen(other) as second:
        assert torch.equal(first(x), second(x))


def lines(names: list[str]) -> Iterator[str]:
    """The page's table, and the reasons below it."""
    columns = ["family", *COLUMNS]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    refusals = list[str]()
    for name in names:
        found, reasons = cells(name)
        refusals += reasons
        yield f"| {name} | {' | '.join(found)} |"
    if refusals:
        yield ""
    yield from (f"- {reason.replace('<', '&lt;')}" for reason in refusals)
    yield ""
    libraries = ("torch", "torchvision", "timm", "transformers", "onnxruntime")
    yield f"Run with {', '.join(f'{name} {version(name)}' for name in libraries)}."


def main(arguments: list[str]) -> None:
    """Print the lines of some families or all, and write them."""
    wanted = [part for part in arguments if part != "--write"]
    names = [name for name in FAMILIES if not wanted or any(part.lower() in name.lower() for part in wanted)]
    table = list[str]()
    for line in lines(names):
        print(line, flush=True)
        table.append(line)
    if "--write" in arguments:
        write_between(PAGE, "\n".join(table), **MARKS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
