"""Networks by name: the project's own, and those of timm, torchvision, Hugging Face and RobustBench."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advsphere.classifier import PixelClassifier, find_head
from advsphere.errors import UserError, first_line, needs
from advsphere.hypersphere import attach_head
from advsphere.models import hugging_face, robustbench
from advsphere.models.networks import LinearHead, PreActResNet18, SmallCNN, WideResNet, cifar_resnet
from advsphere.models.robustbench import Statistics
from advsphere.typed import typed

OURS = (
    "small-cnn",
    *("preactresnet-18", "preactresnet-18-v2", "preactresnet-18-nobn", "preactresnet-18-v2-nobn", "dm-preactresnet-18"),
    *("cifar-resnet-18", "cifar-resnet-34", "cifar-resnet-50", "cifar-resnet-101", "cifar-resnet-152"),
    *("wrn-10-2", "wrn-16-4", "wrn-28-10", "wrn-34-10", "wrn-34-20", "dm-wrn-28-10", "dm-wrn-34-20", "dm-wrn-70-16"),
)
"""Names to suggest in error messages. Any wrn-DEPTH-WIDTH and dm-wrn-DEPTH-WIDTH exists."""

STATISTICS: dict[str, Statistics] = {
    "cifar10": robustbench.CIFAR10,
    "cifar100": robustbench.CIFAR100,
    "imagenet": Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "digits": Statistics((0.3053,), (0.3760,)),
}
"""The statistics of known image sets, for the input normalisation."""


@typed
def build(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    pretrained: bool = False,
    init_seed: int = 0,
) -> PixelClassifier:
    """Build a network by its name, with input normalisation (x - mean) / std: pixels in [0, 1] -> logits.

    Our own networks are:

    - `wrn-DEPTH-WIDTH`, of TRADES and AT_HE; `dm-wrn-DEPTH-WIDTH`, DeepMind's, with SiLU and padding at one side
    - `preactresnet-18`, of fast_adversarial; `-v2`, with shortcuts from activations; `-nobn`, without the last batch
      norm; `-v2-nobn`, of pytorch-cifar and MAIR; `dm-preactresnet-18`, DeepMind's
    - `cifar-resnet-DEPTH`, of pytorch-cifar, for 18, 34, 50, 101 or 152 layers; `small-cnn`

    The caller's random state does not change.

    Args:
        name: One of ours, `timm:NAME`, `torchvision:NAME`, `hf:NAME` or `hf:FOLDER` (Hugging Face), or
            `robustbench:NAME`. Any other name is looked up in timm, then in torchvision, then in RobustBench.
        num_classes: The number of logits.
        in_channels: The number of channels of the images.
        image_size: The side of the images, in pixels. Networks of timm with a fixed size are built for it.
        mean: The mean that is subtracted from each channel.
        std: The standard deviation that each channel is divided by.
        pretrained: Use the library's published weights, with a new head if `num_classes` is not theirs. `mean` and
            `std` should then be theirs too, see `published_statistics`.
        init_seed: Determines the initial weights.

    Returns:
        The network, on the CPU and in train mode.

    Raises:
        UserError: If the name is unknown (the message lists the nearest names), if the weights can't be downloaded, or
            if the network does not take these channels or this size.
    """
    if not len(mean) == len(std) == in_channels:
        raise UserError(
            f"{in_channels}-channel images need {in_channels} means and stds, got {len(mean)} and {len(std)}"
        )
    make = _own(name, num_classes, in_channels)
    if make is not None and pretrained:
        raise UserError(
            f"{name} has no published weights here; leave pretrained off, or name a timm or torchvision network"
        )
    if make is None:
        make = _library(name, num_classes, in_channels, image_size, pretrained)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(init_seed)  # torch.manual_seed would also reseed the caller's GPUs
        model = _with_exact_head(PixelClassifier(make(), mean, std))
    _check_fit(name, model, torch.zeros(1, in_channels, image_size, image_size, device="cpu"), num_classes)
    return model


def published_statistics(name: str) -> Statistics | None:
    """The mean and standard deviation with which a network's published weights were trained.

    Args:
        name: The name, as for `build`.

    Returns:
        The statistics; None for our own networks.

    Raises:
        UserError: If the name is unknown, or a Hugging Face folder does not tell.
    """
    library, _, inner = name.rpartition(":")
    if _own_network(name, 1, 3) is not None:
        return None
    if library == "hf":
        return hugging_face.statistics(inner)
    if library == "robustbench" and (found := robustbench.published(inner)):
        return found.statistics
    return _published(name)[0]


def published_classes(name: str) -> int:
    """The number of classes of a library's published weights.

    Args:
        name: The name, as for `build`.

    Returns:
        The number, such as 1000.

    Raises:
        UserError: If the name is unknown, or nobody's weights come with it, as with our own networks and RobustBench's.
    """
    library, _, inner = name.rpartition(":")
    if library == "hf":
        return hugging_face.labels(inner)
    classes = None if _own(name, 1, 3) is not None else _published(name)[1]
    if classes is None:
        raise UserError(f"{name} comes without weights; add --weights FILE")
    return classes


def _published(name: str) -> tuple[Statistics, int | None]:
    """The input's statistics of the published weights of timm, torchvision or RobustBench, and their classes."""
    needs("train", "timm", "torchvision")
    import timm  # here and not at the top: it takes seconds to import
    from torchvision import models

    library, _, inner = name.rpartition(":")
    if library in ("", "timm") and timm.is_model(inner):
        config = timm.get_pretrained_cfg(inner)
        if config is None:
            return STATISTICS["imagenet"], None
        return Statistics(tuple(config.mean), tuple(config.std)), config.num_classes if config.has_weights else None
    if library in ("", "torchvision") and inner in models.list_models(module=models):
        weights = models.get_model_weights(inner).DEFAULT
        transform: Any = weights.transforms()
        return Statistics(tuple(transform.mean), tuple(transform.std)), len(weights.meta["categories"])
    if not library and (found := robustbench.published(inner)):
        return found.statistics, None
    raise _unknown(name)


def _own(name: str, num_classes: int, in_channels: int) -> Callable[[], nn.Module] | None:
    """Our own network of that name, or RobustBench's; None for any other name."""
    library, _, inner = name.rpartition(":")
    if library != "robustbench":
        return _own_network(name, num_classes, in_channels)
    found = robustbench.published(inner)
    make = None if found is None else _own_network(found.network, num_classes, in_channels)
    if found is None or make is None:
        raise _unknown(name)
    return make if found.scale is None else partial(_with_sphere, make, found.scale)


def _with_sphere(make: Callable[[], nn.Module], scale: float) -> nn.Module:
    return attach_head(make(), scale=scale)


def _own_network(name: str, num_classes: int, in_channels: int) -> Callable[[], nn.Module] | None:
    if wide := re.fullmatch(r"(dm-)?wrn-(\d+)-(\d+)", name):
        depth, width = int(wide[2]), int(wide[3])
        return partial(WideResNet, depth, width, num_classes, in_channels=in_channels, deepmind=wide[1] is not None)
    if re.fullmatch(r"cifar-resnet-(18|34|50|101|152)", name):
        return partial(cifar_resnet, int(name.rpartition("-")[2]), num_classes, in_channels=in_channels)
    if name == "dm-preactresnet-18":
        return partial(PreActResNet18, num_classes, in_channels=in_channels, deepmind=True)
    if kind := re.fullmatch(r"preactresnet-18(-v2)?(-nobn)?", name):
        variant = {"activated_shortcut": kind[1] is not None, "final_norm": kind[2] is None}
        return partial(PreActResNet18, num_classes, in_channels=in_channels, **variant)
    return partial(SmallCNN, num_classes, in_channels=in_channels) if name == "small-cnn" else None


def _library(
    name: str, num_classes: int, in_channels: int, image_size: int, pretrained: bool
) -> Callable[[], nn.Module]:
    library, _, inner = name.rpartition(":")
    if name.startswith("hf:"):
        return partial(hugging_face.network, name.removeprefix("hf:"), num_classes, in_channels, image_size, pretrained)
    needs("train", "timm", "torchvision")
    import timm  # here and not at the top: it takes seconds to import
    import torchvision

    if library in ("", "timm") and timm.is_model(inner):
        return partial(_timm, inner, num_classes, in_channels, image_size, pretrained)
    if library in ("", "torchvision") and inner in torchvision.models.list_models(module=torchvision.models):
        return partial(_torchvision, inner, num_classes, in_channels, pretrained)
    make = None
    if not library and robustbench.published(inner):
        make = _own(f"robustbench:{inner}", num_classes, in_channels)
    if make is None:
        raise _unknown(name)
    return make


def _unknown(name: str) -> UserError:
    """The error for a name that no network has, with the nearest names."""
    needs("train", "timm", "torchvision")
    import timm
    import torchvision

    names = {
        "timm": timm.list_models(),
        "torchvision": torchvision.models.list_models(module=torchvision.models),
        "robustbench": [model.removeprefix("cifar10/").removeprefix("Linf/") for model in robustbench.MODELS],
    }
    every = {*OURS, *(spelling for lib in names for n in names[lib] for spelling in (n, f"{lib}:{n}"))}
    known = {spelling.lower(): spelling for spelling in every}
    near = difflib.get_close_matches(name.lower(), sorted(known), n=4)
    if near:
        return UserError(f"no network is called {name!r}; the nearest are {', '.join(known[n] for n in near)}")
    return UserError(
        f"no network is called {name!r}; use timm:NAME, torchvision:NAME, hf:NAME, robustbench:NAME, your own "
        f"package.module:function, or one of ours: {', '.join(OURS)}"
    )


def _timm(name: str, num_classes: int, in_channels: int, image_size: int, pretrained: bool) -> nn.Module:
    import timm

    try:
        config = timm.get_pretrained_cfg(name)
        size: dict[str, Any] = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
        network: nn.Module = timm.create_model(name, pretrained, num_classes=num_classes, in_chans=in_channels, **size)
        return network
    except (OSError, RuntimeError) as error:  # no connection; no such weights
        raise UserError(f"timm can't build {name} (pretrained={pretrained}): {first_line(error)}") from error
    except AssertionError as error:
        raise UserError(f"{name} can't be built for {image_size}x{image_size} images: {first_line(error)}") from error


def _torchvision(name: str, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module:
    import torchvision

    if in_channels != 3:
        raise UserError(f"torchvision's {name} takes 3 channels, the images have {in_channels}; use a timm network")
    if not pretrained:
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        return network
    try:
        network = torchvision.models.get_model(name, weights="DEFAULT")
    except (OSError, RuntimeError) as error:
        raise UserError(f"the weights of torchvision's {name} can't be downloaded: {first_line(error)}") from error
    try:
        head_name = find_head(network)
    except UserError:  # several heads, or one that is no linear layer: all layers of other shapes are new
        fresh = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        shapes = {n: p.shape for n, p in fresh.named_parameters()}
        for layer in {n.rpartition(".")[0] for n, p in network.named_parameters() if p.shape != shapes.get(n)}:
            network.set_submodule(layer, fresh.get_submodule(layer))
        return network
    head: Any = network.get_submodule(head_name)
    if head.out_features != num_classes:
        network.set_submodule(head_name, nn.Linear(head.in_features, num_classes))
    return network


def synchronised(model: nn.Module) -> nn.Module:
    """Convert batch norms, also timm's with an activation, to the statistics of all processes' images in train mode."""
    needs("train", "timm")
    from timm.layers.norm_act import convert_sync_batchnorm  # here and not at the top: it takes seconds to import

    converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


def _with_exact_head(model: PixelClassifier) -> PixelClassifier:
    """If the network ends in a linear layer, make that layer compute in float32 also under autocast."""
    try:
        name = find_head(model)
    except UserError:
        return model
    head = model.get_submodule(name)
    if type(head) is nn.Linear:
        model.set_submodule(name, LinearHead.of(head))
    return model


def _check_fit(name: str, model: PixelClassifier, x: Tensor, num_classes: int) -> None:
    """Try one image, so that images too small for the network raise an error before a run begins."""
    size = "x".join(str(side) for side in x.shape[1:])
    model.eval()
    try:
        with torch.no_grad():
            logits = model(x)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"{name} does not take {size} images ({first_line(error)}); use another size or network"
        ) from error
    if logits.shape != (1, num_classes):
        raise UserError(
            f"{name} returns {tuple(logits.shape)} for one image instead of (1, {num_classes}); use a classifier"
        )
    model.train()
