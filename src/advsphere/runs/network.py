"""From a name to the network, for `train` and `evaluate` alike: one of ours, of a library, or your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from advsphere import named
from advsphere.calling import in_mode, logits_of
from advsphere.classifier import PixelClassifier
from advsphere.data import Images
from advsphere.errors import UserError, first_line
from advsphere.models import build
from advsphere.models.robustbench import Statistics


def named_network(
    name: str,
    images: Images,
    *,
    num_classes: int | None = None,
    statistics: Statistics | None = None,
    pretrained: bool = False,
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
    given: nn.Module | Callable[..., nn.Module] | None = None,
) -> nn.Module:
    """Build the network of that name for some images.

    Args:
        name: A name that `advsphere.models.build` takes, or the user's own package.module:function, which is imported.
        images: Their shape decides the input, and their classes the output.
        num_classes: The number of logits, if it is not that of the images' classes. The logits of a user's network are
            only counted if this is None.
        statistics: The mean and standard deviation of the input, by default 0 and 1.
        pretrained: Use the library's published weights.
        arguments: Arguments of the user's function. It also gets num_classes, in_channels and image_size if it has
            parameters of these names.
        seed: Determines the initial weights.
        given: A network, or a function that builds one, in place of the name. A network is changed in place.

    Returns:
        The network, on the CPU unless `given` is elsewhere.

    Raises:
        UserError: If the name is unknown, or the network does not fit the images.
    """
    channels, size, _ = images.shape
    classes = num_classes or len(images.classes)
    if given is None and not named.is_name(name):
        mean, std = statistics or ((0.0,) * channels, (1.0,) * channels)
        return build(
            name,
            num_classes=classes,
            in_channels=channels,
            image_size=size,
            mean=mean,
            std=std,
            pretrained=pretrained,
            init_seed=seed,
        )
    if pretrained:
        raise UserError(f"--model.pretrained is for the libraries' networks; let {name} load its weights itself")
    network: Any = given
    if not isinstance(network, nn.Module):
        offered = {"num_classes": classes, "in_channels": channels, "image_size": size}
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            network = named.call(given or name, arguments or {}, offered)
    if not isinstance(network, nn.Module):
        raise UserError(f"{name} returned a {type(network).__name__}, not a torch.nn.Module")
    if statistics is not None:
        network = PixelClassifier(network, *statistics)
    found = _logits(name, network, images)
    if found != (1, classes) and num_classes is None:
        fewer = len(found) == 2 and found[1] < classes
        cure = "number the labels from 0" if fewer else "name all of them, data.from_dataset(..., classes=[...])"
        raise UserError(
            f"{_who(name, network)} returns {found} for one image, but there are {classes} classes, "
            f"{images.classes[0]} to {images.classes[-1]}: give it {classes} outputs, or {cure}"
        )
    return network


def _who(name: str, network: nn.Module) -> str:
    return name if named.is_name(name) else f"this {type(network).__name__}"


def _logits(name: str, network: nn.Module, images: Images) -> tuple[int, ...]:
    """The shape of the logits for the first image. Raises UserError if the network does not take it.

    This forward gives lazy layers their shapes, which `calling.answer` requires.
    """
    where = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        with in_mode(network, train=False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            return tuple(logits_of(network(images.batch(torch.arange(1))[0].to(where))).shape)
    except (RuntimeError, ValueError, TypeError) as error:
        refused = f"{_who(name, network)} does not take images of shape {images.shape}"
        raise UserError(f"{refused}: {first_line(error)}") from error
