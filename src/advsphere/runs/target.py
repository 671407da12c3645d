"""The target of an evaluation: a run, or a user's model with its images. It is stored beside the evaluation, so that
`verify` can load it again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import cattrs
import torch
import tyro
from torch import Tensor, nn

from advsphere import named
from advsphere.classifier import PixelClassifier
from advsphere.data import Dataset, Images, from_dataset, load_test
from advsphere.errors import UserError
from advsphere.files import content_checksum, write_atomically
from advsphere.hypersphere import attach_head
from advsphere.models import load_weights
from advsphere.models.by_name import published_classes, published_statistics
from advsphere.models.robustbench import Statistics
from advsphere.models.weights import recognised
from advsphere.runs.build import as_dataset, chosen_device
from advsphere.runs.folder import load_run
from advsphere.runs.network import named_network

SUBJECT = "subject.json"

_ANYBODYS = ("best", "last", "final", "model", "net", "weights", "checkpoint", "ckpt", "pytorch_model", "model_best")
"""Names of weights' files that tell nothing without their folder's."""


@dataclass(frozen=True, kw_only=True)
class EvaluationTarget:
    """Either a run, or a user's model with its images.

    Attributes:
        run: The folder of a training run.
        checkpoint: The checkpoint of the run.
        model: Your own model, as for `train --model.name`: wrn-DEPTH-WIDTH, preactresnet-18 or another of ours,
            timm:NAME, torchvision:NAME, hf:NAME or hf:FOLDER, robustbench:NAME, or package.module:function, which
            returns the network. Without it, the file of --weights decides, if only one of our networks fits it.
        weights: The weights of your own model, as safetensors or from torch.save; by default the published ones of the
            library. FILE#NAME for one of several networks in a file.
        scale: The scale s of a head with hypersphere embedding, for weights without one; AT_HE trained with 15.
        num_classes: The number of classes of your own model; by default that of the images.
        data: The images for your own model: a folder with val/<class>/ or test/<class>/, CIFAR, or
            package.module:function, which returns them. For a run: the folder of its images, if they have been moved.
        image_size: The side in pixels to which an image folder's images are resized.
        mean: The mean by which your own model's input is normalised, one number per channel; by default that of the
            weights' file or of the library, else the model gets pixels in [0, 1].
        std: The standard deviation that belongs to --mean.
        n: The number of test images: the first n, or n at equal distances if they lie class by class; all by default.
            With torchrun, which takes --n for its own option, write -n.
    """

    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    checkpoint: Literal["best", "last"] = "best"
    model: str | None = None
    weights: Path | None = None
    scale: float | None = None
    num_classes: int | None = None
    data: Path | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None

    def __post_init__(self) -> None:
        for name in ("run", "weights", "data"):
            place = getattr(self, name)
            object.__setattr__(self, name, None if place is None else Path(place))

    @property
    def label(self) -> str:
        """The name of the user's own model in tables and reports: its weights' file, else its network or module."""
        if self.weights is not None:
            folder, stem = self.weights.absolute().parent.name, re.sub(r"(\.pth?)?\.\w+(#.*)?$", "", self.weights.name)
            return f"{folder}/{stem}" if stem in _ANYBODYS and folder else stem
        name = str(self.model)
        return name.partition(":")[0] if named.is_name(name) else name.rpartition(":")[2].rstrip("/").rpartition("/")[2]

    def load(self, tell: Callable[[str], None] = lambda line: None) -> tuple[nn.Module, Images]:
        """The model in eval mode and its test images, on one device. `tell` is called with each line that the user
        should read. Raises UserError if a part is missing or does not fit, or if options contradict each other.
        """
        if self.run is None:
            model, images = self._own(tell)
        else:
            for name in ("model", "weights", "scale", "num_classes", "image_size", "mean", "std"):
                if getattr(self, name) is not None:
                    flag = f"--{name.replace('_', '-')}"
                    raise UserError(f"{flag} is for your own model, but {self.run} is a run; leave out one of them")
            run = load_run(self.run, self.checkpoint, data_root=self.data)
            model, images = run.model, run.test
        where = chosen_device()
        return model.to(where).eval(), (images if self.n is None else images.few(self.n)).to(where)

    def _own(self, tell: Callable[[str], None]) -> tuple[nn.Module, Images]:
        if (self.model is None and self.weights is None) or self.data is None:
            raise UserError(
                "name a run, or your own model: --model NAME --data DIR [--weights FILE]; a NAME is timm:NAME, "
                "torchvision:NAME, hf:NAME, robustbench:NAME, one of ours, or package.module:function"
            )
        if self.checkpoint != "best":
            raise UserError("--checkpoint is for a run; use --weights for your own model")
        if (self.mean is None) != (self.std is None):
            raise UserError("give both --mean and --std, one number per channel, or neither")
        if named.is_name(str(self.data)):
            images = _returned_by(str(self.data), self.image_size)
        else:
            images = load_test(_kind_of(self.data), self.data, image_size=self.image_size)
        return self._network(images, tell), images

    def _network(self, images: Images, tell: Callable[[str], None]) -> nn.Module:
        """The user's own model, with its weights."""
        name, classes = self.model, self.num_classes or len(images.classes)
        if name is None and self.weights is not None:
            name, hyperspherical = recognised(self.weights)
            tell(f"the weights in {self.weights} are those of {name}")
            if hyperspherical and self.scale is None:
                raise UserError(
                    f"the head in {self.weights} has no bias, as with hypersphere embedding, and no scale s: add "
                    "--scale (AT_HE trained with 15)"
                )
        name = str(name)
        own = named.is_name(name)
        if not own and self.weights is None and (published := published_classes(name)) != classes:
            raise UserError(
                f"the published weights of {name} are for {published} classes, and the images have {classes}; name "
                "weights for these classes: --weights FILE"
            )
        statistics = Statistics(self.mean, self.std or ()) if self.mean is not None else None
        if statistics is None and not own:
            statistics = published_statistics(name)
        model = named_network(
            name,
            images,
            num_classes=classes,
            statistics=statistics,
            pretrained=not own and self.weights is None,
        )
        if self.scale is not None:
            attach_head(model, scale=self.scale)
        if self.weights is not None and (said := load_weights(model, self.weights)):
            tell(said)
        if isinstance(model, PixelClassifier):
            mean, std = ([round(v, 4) for v in t.flatten().tolist()] for t in (model.mean, model.std))
            if self.mean is not None and not torch.allclose(model.mean.flatten(), torch.tensor(self.mean)):
                raise UserError(f"{self.weights} has its own mean {mean} and std {std}; leave out --mean and --std")
            if not own:
                tell(f"{name} gets {_input(mean, std)}")
        return model

    def at(self, data: Path | None) -> EvaluationTarget:
        """The same target with another folder of images; None changes nothing."""
        return self if data is None else replace(self, data=data)

    def save(self, folder: Path) -> None:
        """Write subject.json into an evaluation's folder. Relative paths, and paths of folders around it, are stored
        relative to it, so that they stay valid if all are moved together.
        """
        named.trust(str(part) for part in (self.model, self.data))
        places = {name: _relative(getattr(self, name), folder) for name in ("run", "weights", "data")}
        content = json.loads(json.dumps(asdict(self) | places, default=str))
        content["checksum"] = content_checksum(content)
        write_atomically(folder / SUBJECT, json.dumps(content, indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> EvaluationTarget:
        """Read what `save` wrote. Raises UserError if the folder holds no evaluation."""
        path = folder / SUBJECT
        if not path.is_file():
            raise UserError(f"{folder} holds no evaluation: there is no {SUBJECT}; `advsphere evaluate` writes one")
        try:
            content = json.loads(path.read_bytes())
            intact = content.pop("checksum", None) in (None, content_checksum(content))  # version 0.2 wrote no checksum
            subject: EvaluationTarget = cattrs.structure(content, cls)
        except (ValueError, TypeError, AttributeError, RecursionError, OSError, cattrs.BaseValidationError) as error:
            raise UserError(f"{path} is damaged; evaluate into {folder} again to rewrite it") from error
        if not intact:
            raise UserError(f"{path} was changed after it was written; evaluate into {folder} again to rewrite it")
        named.require_trust((str(part) for part in (subject.model, subject.data)), path)
        run, weights, data = (_found(place, folder) for place in (subject.run, subject.weights, subject.data))
        return replace(subject, run=run, weights=weights, data=data)


def evaluations(place: Path, holding: str = "evaluation.json") -> list[Path]:
    """The folders of evaluations at a place: itself, or the evaluations of a run. Each has a file `holding`."""
    place = place.parent if place.name == holding else place
    if (place / holding).is_file():
        return [place]
    return sorted(path.parent for path in place.glob(f"evaluations/*/{holding}"))


def _input(mean: list[float], std: list[float]) -> str:
    if {*mean} == {0.0} and {*std} == {1.0}:
        return "pixels in [0, 1]; if it was trained on normalised ones, add --mean and --std"
    return f"pixels normalised by mean {mean} and std {std}"


def _returned_by(name: str, image_size: int | None) -> Images:
    """The images that a user's function returns: one set, or the test part of a data set."""
    made = named.call(name, {}, {})
    parts = isinstance(made, Dataset | Mapping) or (isinstance(made, tuple) and not isinstance(made[0], Tensor))
    if parts:
        return as_dataset(made, name, image_size=image_size).test
    return from_dataset(made, name=name, image_size=image_size)


def _relative(place: Path | None, folder: Path) -> str | None:
    if place is None or named.is_name(str(place)):
        return None if place is None else str(place)
    inside = place.resolve() in folder.resolve().parents
    return os.path.relpath(place.resolve(), folder.resolve()) if inside or not place.is_absolute() else str(place)


def _found(place: Path | None, folder: Path) -> Path | None:
    """The inverse of `_relative`. The path is absolute if the folder's is, else relative to the current folder."""
    if place is None or place.is_absolute() or named.is_name(str(place)):
        return place
    found = (folder / place).resolve()
    return found if folder.is_absolute() else Path(os.path.relpath(found))


def _kind_of(folder: Path) -> str:
    """The name of the data set in a folder."""
    for name, inside in {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}.items():
        if folder.name == inside or (folder / inside).is_dir():
            return name
    return "imagefolder"
