"""The config of a training run, a frozen value. Recipes are configs; the command line overrides their fields, and each
run's folder stores one.
"""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro
from torch import Tensor, nn

from advsphere import named
from advsphere.errors import UserError
from advsphere.files import Change
from advsphere.files import differences as json_differences
from advsphere.hypersphere import HypersphereConfig
from advsphere.objectives import (
    ALP,
    NFGSM,
    PGDAT,
    TRADES,
    Crafting,
    Criterion,
    FastAT,
    FreeAT,
    Losses,
    Objective,
    Standard,
)
from advsphere.schedule import Schedule
from advsphere.threat import ThreatModel
from advsphere.training import TrainSettings
from advsphere.training.settings import Arguments

OBJECTIVES: dict[str, type[Objective]] = {c.__name__: c for c in (Standard, PGDAT, ALP, TRADES, FastAT, NFGSM, FreeAT)}
GIVEN = "given: "
"""Prefix of the recorded name of data, a model or an optimizer that was passed from Python and has no name."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The images to train on.

    Attributes:
        name: digits, cifar10, cifar100, imagefolder, or your own package.module:function, which returns the data.
        arguments: Arguments of your own function.
        root: The folder of the images. Without it $ADVSPHERE_DATA and ./data are searched. An image folder holds files
            or tar shards, on this machine or at a URL.
        image_size: The side in pixels to which an image folder's images are resized.
        resize: The length in pixels to which their shorter side is resized before the centre is cropped; image_size by
            default.
        validation: The number of training images held out to choose the best checkpoint, in the epochs that
            `validate_every` selects; a tenth of the images if it is more than half of them. Test images are never used.
    """

    name: str = "digits"
    arguments: Arguments = field(default_factory=dict, hash=False)
    root: Path | None = field(default=None, metadata={"affects_result": False})
    image_size: int | None = None
    resize: int | None = None
    validation: int = 200

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", None if self.root is None else Path(self.root))


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network to train.

    Attributes:
        name: wrn-DEPTH-WIDTH, preactresnet-18 or another of ours, timm:NAME, torchvision:NAME, a name of theirs without
            prefix, hf:NAME or hf:FOLDER, robustbench:NAME, or your own package.module:function, which returns the
            network.
        arguments: Arguments of your own function.
        pretrained: Start from the library's published weights.
        weights: Start from the weights in this file, as safetensors or from torch.save; FILE#NAME for one of several
            networks in a file. A head for other classes is replaced by a new one.
        head: The dotted name of the last linear layer, if it can't be found automatically.
        statistics: The data set whose pixel mean and std normalise the input; by default the data's own. Your own
            network gets pixels in [0, 1] unless this is given.
    """

    name: str = "small-cnn"
    arguments: Arguments = field(default_factory=dict, hash=False)
    pretrained: bool = False
    weights: Path | None = None
    head: str | None = None
    statistics: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", None if self.weights is None else Path(self.weights))


@dataclass(frozen=True, kw_only=True)
class Config:
    """A training run.

    Attributes:
        recipe: The recipe from which it was derived.
        data: The images to train on.
        model: The network to train.
        objective: How examples are crafted and which loss is minimised.
        sphere: Hypersphere embedding; None for a plain head.
        training: The settings of the training loop.
        threat: The threat model for validation and, by default, evaluation. The objective has its own for training.
        notes: Sources and uncertainties, for reports.
    """

    recipe: Annotated[str, tyro.conf.Suppress] = field(metadata={"affects_result": False})
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    objective: Objective = field(default_factory=Standard)
    sphere: HypersphereConfig | None = None
    training: Annotated[TrainSettings, tyro.conf.arg(name="")] = field(default_factory=TrainSettings)
    threat: ThreatModel = ThreatModel(norm="linf", eps=8 / 255)
    notes: Annotated[tuple[str, ...], tyro.conf.Suppress] = field(default=(), metadata={"affects_result": False})
    _example = "advsphere.recipe('digits-pgd-at')"


@dataclass(frozen=True, kw_only=True)
class GivenObjective(Objective):
    """A stand-in, in a run's config, for an objective that was passed from Python and has no name."""

    description: str
    chosen: str = "robust"
    repeats: int = 1
    threat: ThreatModel | None = None

    @property
    def replays(self) -> int:
        return self.repeats

    @property
    def chosen_by(self) -> str:
        return self.chosen

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, context: Crafting) -> Tensor:
        raise self._missing

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, criterion: Criterion) -> Losses:
        raise self._missing

    @property
    def _missing(self) -> UserError:
        return UserError(f"this run's objective has no name, {self.description}: pass it again, train(objective=...)")


def recorded(objective: Objective) -> Objective:
    """The objective for a config: itself if its class can be found again by its name, else a stand-in."""
    if objective_name(objective) is not None:
        return objective
    return GivenObjective(
        description=repr(objective) if _declares_fields(type(objective)) else type(objective).__qualname__,
        chosen=objective.chosen_by,
        repeats=objective.replays,
        threat=getattr(objective, "threat", None),
    )


def objective_name(objective: Objective) -> str | None:
    """The name of an objective's class in a config; None if the class can't be found again by a name."""
    kind = type(objective)
    if OBJECTIVES.get(kind.__name__) is kind:
        return kind.__name__
    return named.name_of(kind) if _declares_fields(kind) else None


def title_of(objective: Objective | type[Objective]) -> str:
    """The objective's name in tables and reports: the `title` that its class declares, else the class's name."""
    if isinstance(objective, GivenObjective):
        return objective.description.partition("(")[0].rpartition(".")[2]
    kind = objective if isinstance(objective, type) else type(objective)
    return str(vars(kind).get("title", kind.__name__))


def objective_class(name: str) -> type[Objective]:
    """The objective class of that name, built-in or package.module:Class. Raises UserError for anything else."""
    if not named.is_name(name):
        return OBJECTIVES[known_kind(name, [*OBJECTIVES])]
    found = named.load(name)
    if not (isinstance(found, type) and issubclass(found, Objective) and _declares_fields(found)):
        raise UserError(f"{name} is not a dataclass derived from advsphere.objectives.Objective")
    return found


def objective_like(name: str, config: Config) -> Objective:
    """An objective by name. It takes over the threat model, and the settings that it and the config's objective inherit
    from the same class. Raises UserError if the class needs further settings.
    """
    kind, like = objective_class(name), config.objective
    shared = [c for c in kind.__mro__ if isinstance(like, c) and _declares_fields(c)]
    settings = {f.name: getattr(like, f.name) for c in shared for f in fields(c)}
    if "threat" in {f.name for f in fields(kind)}:
        settings["threat"] = getattr(like, "threat", config.threat)
    try:
        return kind(**settings)
    except TypeError as error:
        raise UserError(f"{name} has fields without a default ({error}); give each field a default") from error


def user_names(config: Config) -> list[str]:
    """The user-defined parts of a config, each as package.module:object."""
    objective = objective_name(config.objective) or ""
    names = (config.data.name, config.model.name, config.training.optimizer, objective)
    return [name for name in names if named.is_name(name)]


def _declares_fields(kind: type) -> bool:
    """Whether a class is itself a dataclass, and not only derived from one."""
    return "__dataclass_fields__" in vars(kind)


# Writing.


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain dictionaries, tuples, strings and numbers."""
    plain: dict[str, Any] = _plain(config)
    return plain


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        name = objective_name(value) if isinstance(value, Objective) else type(value).__name__
        tag = {"kind": name} if isinstance(value, Objective | Schedule) else {}
        return tag | {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        try:
            return json.loads(json.dumps(value))  # tuples become lists, as when they are read back
        except TypeError as error:
            raise UserError(f"arguments have to be plain data to be recorded: {error}") from error
    return str(value) if isinstance(value, Path) else value


# Comparing.


def differences(old: Config, new: Config) -> list[Change]:
    """The settings that differ between two runs and affect a result."""
    ignored = _without_effect()
    return [c for c in json_differences(to_dict(old), to_dict(new)) if c.path not in ignored]


@cache
def _without_effect() -> frozenset[str]:
    return frozenset(path for path, setting in places(Config) if not setting.metadata.get("affects_result", True))


def flags(old: Config, new: Config) -> list[str] | None:
    """The flags of `advsphere train` that turn the recipe `old` into `new`; None if flags can't express it."""
    words: list[str] = []
    changes = differences(old, new)
    changed = {change.path for change in changes}
    for path, _, value in changes:
        head, arguments, _ = path.partition("arguments")
        group, dot, last = (head + arguments).removeprefix("training.").replace("_", "-").rpartition(".")
        flag = f"--{group}{dot}{last}"
        if path == "objective.kind":
            words[:0] = ["--objective", value]
        elif value is None and "objective.kind" in changed and group == "objective":
            continue  # a setting of the recipe's objective
        elif arguments:
            words += [] if flag in words else [flag, json.dumps(attrgetter(head + arguments)(new))]
        elif value is None or isinstance(value, tuple | list):
            return None
        elif isinstance(value, bool):
            words.append(f"--{group}{dot}{'' if value else 'no-'}{last}")
        else:
            words += [flag, str(value)]
        if group == "threat" and f"objective.{path}" not in changed and hasattr(new.objective, "threat"):
            # --threat.* alone would also set the objective's threat model.
            words += [f"--objective.threat.{last}", str(getattr(new.objective.threat, last))]
    return words


# Names.


def known_kind(kind: Any, known: Sequence[str]) -> str:
    """The kind, if it is known. Raises UserError with the nearest kind otherwise."""
    if isinstance(kind, str) and kind in known:
        return kind
    raise UserError(f"no `kind` is called {kind!r}{nearest(str(kind), known)}; choose one of {', '.join(known)}")


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint at the nearest known name or, for a setting that belongs elsewhere, at its full path."""
    near = difflib.get_close_matches(name, known, n=1)
    hints = near or [path for path, _ in places(Config) if path.partition(" ")[0].rpartition(".")[2] == name]
    return f" (did you mean {hints[0]}?)" if hints else ""


def places(kind: Any, path: str = "", of: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """The path of every setting below a type, and the field that declares it. If several types are possible at a path,
    " of TYPE" follows it.
    """
    types = OBJECTIVES.values() if kind is Objective else get_args(kind)
    members = [one for one in types if isinstance(one, type) and is_dataclass(one)]
    for member in members:
        yield from places(member, path, f" of {member.__name__}" if len(members) > 1 else "")
    if not members and is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        for one in fields(kind):
            here = f"{path}.{one.name}".strip(".")
            yield here + of, one
            yield from places(hints[one.name], here)
