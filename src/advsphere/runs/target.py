"""What is evaluated: one of our runs, or a model of the user's own. Kept beside its evaluation, so that `verify` finds
it again.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import cattrs
import tyro
from torch import nn

from advsphere.classifier import PixelClassifier
from advsphere.data import Images, load_test
from advsphere.errors import UserError
from advsphere.files import write_atomically
from advsphere.models import load_weights
from advsphere.runs.build import device
from advsphere.runs.folder import load_run


@dataclass(frozen=True, kw_only=True)
class EvaluationTarget:
    """Either a run, or a model of the user's own with its images."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """The folder of a training run."""
    checkpoint: Literal["best", "last"] = "best"
    """Which of the run's checkpoints."""
    model: str | None = None
    """A model of yours: package.module:function, called without arguments. It takes pixels in [0, 1]; see --mean."""
    weights: Path | None = None
    """Its weights: a state dict, as safetensors or from torch.save."""
    data: Path | None = None
    """Its images: a folder with val/<class>/ or test/<class>/, or CIFAR. For a run: where its data lie now."""
    image_size: int | None = None
    """The side that an image folder's images are brought to."""
    mean: tuple[float, ...] | None = None
    """What your model's input is normalised with, if it does not do that itself; one number a channel."""
    std: tuple[float, ...] | None = None
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """The first n test images, or n at equal distances where they lie class by class; all by default. Under torchrun,
    which would take --n for one of its own, -n."""

    def load(self) -> tuple[nn.Module, Images]:
        """The model in eval mode and its test images, on one device. Raises UserError for whatever is missing or does
        not fit.
        """
        model, images = self._run() if self.run is not None else self._own()
        return model.to(device()).eval(), images if self.n is None else images.few(self.n)

    def _run(self) -> tuple[nn.Module, Images]:
        assert self.run is not None
        run = load_run(self.run, self.checkpoint, data_root=self.data)
        return run.model, run.test

    def _own(self) -> tuple[nn.Module, Images]:
        if self.model is None or self.data is None:
            raise UserError(
                "name a run, or a model of your own: --model package.module:function --data DIR [--weights FILE]"
            )
        model = _call(self.model)
        if self.weights is not None:
            load_weights(model, self.weights)
        if (self.mean is None) != (self.std is None):
            raise UserError("give both --mean and --std, one number a channel, or neither")
        if self.mean is not None and self.std is not None:
            model = PixelClassifier(model, self.mean, self.std)
        images = load_test(_kind_of(self.data), self.data, image_size=self.image_size)
        return model, images.to(device())

    def at(self, data: Path | None) -> EvaluationTarget:
        """The same with its images at another place; None leaves it as it is."""
        return self if data is None else replace(self, data=data)

    def save(self, folder: Path) -> None:
        """Write subject.json into an evaluation's folder. A place that the folder lies in, or that was given relative,
        is written relative to the folder: so it is found from any place, and after both were moved together.
        """
        places = {name: _relative(getattr(self, name), folder) for name in ("run", "weights", "data")}
        write_atomically(folder / "subject.json", json.dumps(asdict(self) | places, indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> EvaluationTarget:
        """What `save` wrote. Raises UserError where the folder holds no evaluation."""
        path = folder / "subject.json"
        if not path.is_file():
            raise UserError(f"{folder} holds no evaluation: there is no subject.json; `advsphere evaluate` writes one")
        try:
            subject: EvaluationTarget = cattrs.structure(json.loads(path.read_text()), cls)
        except (ValueError, OSError, cattrs.BaseValidationError) as error:
            raise UserError(f"{path} is damaged; evaluate again into {folder} to write it anew") from error
        run, weights, data = (_found(place, folder) for place in (subject.run, subject.weights, subject.data))
        return replace(subject, run=run, weights=weights, data=data)


def _relative(place: Path | None, folder: Path) -> str | None:
    if place is None:
        return None
    inside = place.resolve() in folder.resolve().parents
    return os.path.relpath(place.resolve(), folder.resolve()) if inside or not place.is_absolute() else str(place)


def _found(place: Path | None, folder: Path) -> Path | None:
    """As a place is written, seen from here: absolute if the folder was named so, else relative."""
    if place is None or place.is_absolute():
        return place
    found = (folder / place).resolve()
    return found if folder.is_absolute() else Path(os.path.relpath(found))


def _kind_of(folder: Path) -> str:
    """The name of the data set that lies in a folder."""
    for name, inside in {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}.items():
        if folder.name == inside or (folder / inside).is_dir():
            return name
    return "imagefolder"


def _call(name: str) -> nn.Module:
    """The model that package.module:function returns; modules in the current folder are found too."""
    module_name, colon, function = name.partition(":")
    if not colon:
        raise UserError(f"--model {name}: write package.module:function, where function() returns the network")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        made: Any = getattr(importlib.import_module(module_name), function)()
    except ModuleNotFoundError as error:
        raise UserError(f"--model {name}: {error}; run from the folder that holds it, or install it") from error
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f"--model {name} could not be called: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise UserError(f"--model {name}: {function}() returned a {type(made).__name__}, not a torch.nn.Module")
    return made
