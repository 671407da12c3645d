"""Build the parts of a config: the images, the network with its sphere, and the loss."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from advsphere import named
from advsphere.classifier import find_head
from advsphere.data import Dataset, Images, from_dataset, load, load_test
from advsphere.data.sources import hold_out
from advsphere.errors import UserError
from advsphere.hypersphere import AngularMargin, HypersphereHead
from advsphere.losses import cross_entropy
from advsphere.models import load_weights
from advsphere.models.by_name import STATISTICS, published_statistics
from advsphere.models.robustbench import Statistics
from advsphere.objectives import Criterion
from advsphere.runs.config import GIVEN, Config
from advsphere.runs.network import named_network

_TEST = ("test", "validation", "valid", "val")


DEVICE = "ADVSPHERE_DEVICE"
"""The environment variable that names the device. `--device` sets it, so that processes started by a command use the
same device."""


def chosen_device(name: str | torch.device | None = None) -> torch.device:
    """The device that networks run on: the named one, else that of ADVSPHERE_DEVICE, else the GPU if there is one.

    Raises UserError if torch can't use the device.
    """
    name = (os.environ.get(DEVICE) or None) if name is None else name
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        usable = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UserError(f"the device {name} can't be used here; choose one of {', '.join(usable)}") from error
    return found


def load_data(config: Config) -> Dataset:
    """The training and test images of a config."""
    data = config.data
    if _user_defined(data.name):
        return _user_data(config)
    crops = config.training.augment.min_area is not None
    return load(data.name, data.root, image_size=data.image_size, resize=data.resize, crops=crops)


def load_test_data(config: Config, root: Path | None = None) -> Images:
    """The test images alone; an image folder does not need its training images for this. `root` is their new folder, if
    they have been moved.
    """
    data = config.data
    if _user_defined(data.name):
        return _user_data(config, root).test
    return load_test(data.name, root or data.root, image_size=data.image_size, resize=data.resize)


def build_model(
    config: Config,
    images: Images,
    tell: Callable[[str], None] = lambda line: None,
    *,
    network: nn.Module | Callable[..., nn.Module] | None = None,
) -> nn.Module:
    """Build the network of a config for these images, with its sphere if it has one.

    Args:
        config: The run's config. Its seed decides the initial weights, unless it names weights to start from.
        images: Images that decide the input's shape and the classes.
        tell: Called with each line that the user should read.
        network: A network, or a function that builds one, in place of the network that the config names. A network is
            changed in place.

    Returns:
        The network, on the CPU unless `network` is elsewhere.

    Raises:
        UserError: If a name is unknown, the last linear layer can't be found, the network does not fit the images, or
            the weights do not exist or do not fit.
    """
    if config.model.pretrained and config.model.weights is not None:
        raise UserError("start from --model.pretrained or from --model.weights, not from both")
    if network is None and config.model.name.startswith(GIVEN):
        raise UserError(
            f"this run's network was passed from Python ({config.model.name.removeprefix(GIVEN)}) and can't be built "
            "again; pass it: train(model=...), load_run(folder, model=...), or on the command line give a function "
            "that builds it and the run's weights: --model package.module:function --weights RUN/best.safetensors "
            "--data DIR"
        )
    own = network is not None or _user_defined(config.model.name)
    model = named_network(
        config.model.name,
        images,
        statistics=_statistics(config, images.shape[0], own=own),
        pretrained=config.model.pretrained,
        arguments=config.model.arguments,
        seed=config.training.seed,
        given=network,
    )
    if config.model.weights is not None:
        said = load_weights(model, config.model.weights, head=find_head(model, head_name(config)))
        if said:
            tell(said)
    if config.sphere is not None:
        config.sphere.attach(model, head_name(config))
    if not own:  # a user's forward may flatten by `view`, which takes contiguous activations only
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def from_scratch(config: Config) -> Config:
    """The same config without initial weights, for a network whose weights will be loaded."""
    return replace(config, model=replace(config.model, pretrained=False, weights=None))


def head_name(config: Config) -> str | None:
    """The user's name for the head, with the prefix of the wrapper that normalises the input."""
    model = config.model
    wrapped = not _user_defined(model.name) or model.statistics is not None
    return f"network.{model.head}" if model.head is not None and wrapped else model.head


class Parts(NamedTuple):
    """The model and the criterion, a function that sets the sphere's schedules before each step, and the margin's shift
    of the logits while crafting (None for no shift).
    """

    model: nn.Module
    criterion: Criterion
    before_step: Callable[[float], None]
    shift: Callable[[Tensor, Tensor], Tensor] | None


def assemble(
    config: Config,
    images: Images,
    tell: Callable[[str], None] = lambda line: None,
    *,
    network: nn.Module | Callable[..., nn.Module] | None = None,
) -> Parts:
    """Build the model, with the arguments of `build_model`, and connect the sphere to it."""
    model, sphere = build_model(config, images, tell, network=network), config.sphere
    if sphere is None:
        if any(isinstance(module, HypersphereHead) for module in model.modules()):
            tell("the network has a hypersphere head, but no margin; sphere=HypersphereConfig() adds one")
        return Parts(model, cross_entropy, lambda progress: None, None)
    head = model.get_submodule(find_head(model, head_name(config)))
    assert isinstance(head, HypersphereHead)
    criterion = AngularMargin(head, sphere.margin)
    shift = criterion.shift if sphere.margin_in_attack else None
    return Parts(model, criterion, partial(sphere.set_progress, criterion), shift)


def as_dataset(
    data: Any,
    name: str | None = None,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    crops: bool = False,
) -> Dataset:
    """Convert training and test images of any supported kind.

    Args:
        data: A `Dataset`; one set, a tenth of which is then held out for testing; or two sets: a pair (train, test), or
            a mapping with "train" and "test" or "validation". A set is anything that `advsphere.data.from_dataset`
            takes.
        name: The name of the images in reports; by default the name of their type.
        image_size: The side to which PIL images are resized.
        resize: The length of their shorter side before the centre is cropped.
        crops: Whether the training images will be cropped at random, from their own resolution.

    Returns:
        Both sets, with the same classes.

    Raises:
        UserError: If the kind is not supported, an image or label is invalid, or the two sets have different classes.
    """
    if isinstance(data, Dataset):
        return data
    convert = partial(from_dataset, name=name, image_size=image_size, resize=resize)
    if isinstance(data, Mapping) and "train" in data:
        test = next((data[key] for key in _TEST if key in data), None)
        data = data["train"] if test is None else (data["train"], test)
    if isinstance(data, list) and len(data) == 2 and not isinstance(data[0], tuple | list | Mapping):
        data = tuple(data)  # as torch's `random_split` returns them
    if not (isinstance(data, tuple) and len(data) == 2) or isinstance(data[0], Tensor | np.ndarray):
        return hold_out(convert(data, crops=crops))
    train, test = convert(data[0], crops=crops), convert(data[1]).hard()
    longer = max(train.classes, test.classes, key=len)  # for tensors, the highest label gives the number of classes
    if not all(longer[: len(part.classes)] == part.classes for part in (train, test)):
        raise UserError(
            f"{train.name}: training and test images differ in their classes, {train.classes} and {test.classes}"
        )
    return Dataset(renamed(train, longer, train.labels), renamed(test, longer, test.labels))


def renamed(images: Images, classes: tuple[str, ...], labels: Tensor) -> Images:
    """The same images with other class names and labels."""
    anything: Any = images  # every kind of images is a dataclass with these fields
    found: Images = replace(anything, classes=classes, labels=labels)
    return found


def _user_defined(name: str) -> bool:
    return name.startswith(GIVEN) or named.is_name(name)


def _user_data(config: Config, root: Path | None = None) -> Dataset:
    data = config.data
    if data.name.startswith(GIVEN):
        raise UserError(
            f"this run's images were passed from Python ({data.name.removeprefix(GIVEN)}) and can't be loaded again; "
            "pass them: train(data=...), load_run(folder, test=...)"
        )
    made = named.call(data.name, data.arguments, {"root": root or data.root})
    crops = config.training.augment.min_area is not None
    return as_dataset(made, data.name, image_size=data.image_size, resize=data.resize, crops=crops)


def _statistics(config: Config, channels: int, *, own: bool) -> Statistics | None:
    """The statistics of the input. None for a user's own network, which gets pixels, unless the config names some."""
    model = config.model
    if model.statistics is None:
        if own:
            return None
        if model.name.startswith("robustbench:") or (model.name.startswith("hf:") and model.pretrained):
            return published_statistics(model.name)
    name = model.statistics or ("imagenet" if config.data.name == "imagefolder" else config.data.name)
    if _user_defined(name):
        return STATISTICS["imagenet"] if channels == 3 else Statistics((0.5,) * channels, (0.25,) * channels)
    if name not in STATISTICS:
        raise UserError(f"no pixel statistics are called {name!r}; choose one of {', '.join(STATISTICS)}")
    return STATISTICS[name]
