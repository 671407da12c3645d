"""Networks by name: the project's own, then every name of timm and torchvision."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from advsphere.classifier import PixelClassifier, find_head
from advsphere.errors import UserError, needs
from advsphere.models.networks import LinearHead, PreActResNet18, SmallCNN, WideResNet

OURS = ("small-cnn", "preactresnet-18", "wrn-10-2", "wrn-16-4", "wrn-28-10", "wrn-34-10", "wrn-34-20")
"""Names to suggest in error messages. Any wrn-DEPTH-WIDTH exists."""


class Statistics(NamedTuple):
    """The mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


STATISTICS: dict[str, Statistics] = {
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "digits": Statistics((0.3053,), (0.3760,)),
}
"""The statistics of known image sets, for the input normalisation."""


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

    The caller's random state does not change.

    Args:
        name: `wrn-DEPTH-WIDTH`, `preactresnet-18`, `small-cnn`, `timm:NAME` or `torchvision:NAME`. Any other name is
            looked up in timm, then in torchvision.
        num_classes: The number of logits.
        in_channels: The number of channels of the images.
        image_size: The side of the images, in pixels. Networks of timm with a fixed size are built for it.
        mean: The mean that is subtracted from each channel.
        std: The standard deviation that each channel is divided by.
        pretrained: Use the library's published weights, with a new head if `num_classes` is not theirs. `mean` and
            `std` should then be theirs too.
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
        raise UserError(f"{name} has no published weights; leave pretrained off, or name a timm or torchvision network")
    if make is None:
        make = _library(name, num_classes, in_channels, image_size, pretrained)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(init_seed)  # torch.manual_seed would also reseed the caller's GPUs
        model = _with_exact_head(PixelClassifier(make(), mean, std))
    _check_fit(name, model, torch.zeros(1, in_channels, image_size, image_size, device="cpu"), num_classes)
    return model


def _own(name: str, num_classes: int, in_channels: int) -> Callable[[], nn.Module] | None:
    if wide := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
        return partial(WideResNet, int(wide[1]), int(wide[2]), num_classes, in_channels=in_channels)
    network = {"preactresnet-18": PreActResNet18, "small-cnn": SmallCNN}.get(name)
    return None if network is None else partial(network, num_classes, in_channels=in_channels)


def _library(
    name: str, num_classes: int, in_channels: int, image_size: int, pretrained: bool
) -> Callable[[], nn.Module]:
    needs("train", "timm", "torchvision")
    import timm  # here and not at the top: it takes seconds to import
    import torchvision

    names = {"timm": timm.list_models(), "torchvision": torchvision.models.list_models(module=torchvision.models)}
    library, _, inner = name.rpartition(":")
    if library in ("", "timm") and timm.is_model(inner):
        return partial(_timm, inner, num_classes, in_channels, image_size, pretrained)
    if library in ("", "torchvision") and inner in names["torchvision"]:
        return partial(_torchvision, inner, num_classes, in_channels, pretrained)
    known = {*OURS, *(spelling for lib in names for n in names[lib] for spelling in (n, f"{lib}:{n}"))}
    near = difflib.get_close_matches(name.lower(), sorted(known), n=4)
    advice = "the nearest are " if near else "use any timm or torchvision name, or one of ours: "
    raise UserError(f"no network is called {name!r}; {advice}{', '.join(near or OURS)}")


def _timm(name: str, num_classes: int, in_channels: int, image_size: int, pretrained: bool) -> nn.Module:
    import timm

    try:
        config = timm.get_pretrained_cfg(name)
        size: dict[str, Any] = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
        network: nn.Module = timm.create_model(name, pretrained, num_classes=num_classes, in_chans=in_channels, **size)
        return network
    except (OSError, RuntimeError) as error:  # no connection; no such weights
        raise UserError(f"timm can't build {name} (pretrained={pretrained}): {_first_line(error)}") from error
    except AssertionError as error:
        raise UserError(f"{name} can't be built for {image_size}x{image_size} images: {_first_line(error)}") from error


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
        raise UserError(f"the weights of torchvision's {name} can't be downloaded: {_first_line(error)}") from error
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
            f"{name} does not take {size} images ({_first_line(error)}); use another size or network"
        ) from error
    if logits.shape != (1, num_classes):
        raise UserError(
            f"{name} returns {tuple(logits.shape)} for one image instead of (1, {num_classes}); use a classifier"
        )
    model.train()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
