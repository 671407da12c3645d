"""What a training run is, as one frozen value that round-trips through YAML. Recipes return it, the command line
overrides it, runs keep it.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import cattrs
import tyro
import yaml
from cattrs.strategies import configure_tagged_union

from advsphere.errors import UserError
from advsphere.hypersphere import HypersphereConfig
from advsphere.objectives import ALP, PGDAT, TRADES, FastAT, FreeAT, Standard
from advsphere.schedule import Schedule
from advsphere.threat import ThreatModel
from advsphere.training import TrainSettings

AnyObjective = Standard | PGDAT | ALP | TRADES | FastAT | FreeAT


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images."""

    name: str = "digits"
    """digits, cifar10, cifar100 or imagefolder."""
    root: Path | None = None
    """Where they lie; else $ADVSPHERE_DATA or ./data are looked at. An image folder holds files or tar shards, here or
    at a URL.
    """
    image_size: int | None = None
    """The side of the square that an image folder's images become, in pixels."""
    resize: int | None = None
    """What their shorter side becomes before that square is cut out of the centre; image_size by default."""
    validation: int = 200
    """Training images held out to choose the best checkpoint; the test set never chooses."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which network."""

    name: str = "small-cnn"
    """wrn-DEPTH-WIDTH, preactresnet-18, small-cnn, timm:NAME, torchvision:NAME, or a bare name of theirs."""
    pretrained: bool = False
    """Start from the library's published weights."""
    weights: Path | None = None
    """Start from the weights in this file: a state dict, as safetensors or from torch.save; a head for other classes is
    left out.
    """
    head: str | None = None
    """The last linear layer's dotted name, where it can't be told."""
    statistics: str | None = None
    """Whose pixel mean and std the input is normalised with; the data set's own by default."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A training run."""

    recipe: Annotated[str, tyro.conf.Suppress]
    """The name it started from."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    objective: AnyObjective = field(default_factory=Standard)
    sphere: HypersphereConfig | None = None
    """Hypersphere embedding; None for a plain head."""
    training: Annotated[TrainSettings, tyro.conf.arg(name="")] = field(default_factory=TrainSettings)
    threat: ThreatModel = ThreatModel(norm="linf", eps=8 / 255)
    """What the run is validated, and by default evaluated, against; what it is trained against is the objective's."""
    notes: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """Sources, and what is uncertain; carried along to reports."""


@cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (bool, int, float, str):
        converter.register_structure_hook(kind, _scalar)
    converter.register_structure_hook(Path, lambda value, _: Path(_scalar(value, str)))
    converter.register_unstructure_hook(Path, str)
    lists = partial(_list, structure=converter.structure)
    converter.register_structure_hook_func(lambda kind: getattr(kind, "__origin__", None) is tuple, lists)
    converter.register_structure_hook_func(lambda kind: getattr(kind, "__origin__", None) is Literal, _choice)
    for union in (AnyObjective, Schedule):
        configure_tagged_union(union, converter, tag_name="kind")
        converter.register_structure_hook(union, partial(_tagged, structure=converter.get_structure_hook(union)))
    return converter


_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _scalar(value: Any, kind: type) -> Any:
    """YAML's own types, without Python's conversions, by which "false" is True and 1.9 is 1."""
    if kind is float and type(value) is int:
        return float(value)
    if kind is float and type(value) is str:  # YAML takes 5e-4 for text
        with suppress(ValueError):
            return float(value)
    if type(value) is not kind:
        raise UserError(f"{value!r} is not {_SCALARS[kind]}")
    return value


def _choice(value: Any, literal: Any) -> Any:
    choices = typing.get_args(literal)
    if value not in choices:
        raise UserError(f"{value!r} is none of {', '.join(choices)}")
    return value


def _list(value: Any, kind: Any, *, structure: Callable[[Any, Any], Any]) -> tuple[Any, ...]:
    kinds = typing.get_args(kind)
    if not isinstance(value, list):  # a text would be taken apart into its letters
        raise UserError(f"{value!r} is not a list")
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise UserError(f"{value!r} is not a list of {len(kinds)}")
    return tuple(structure(v, k) for v, k in zip(value, kinds, strict=True))


def _tagged(value: Any, union: Any, *, structure: Callable[[Any, Any], Any]) -> Any:
    """One of several kinds of settings, told apart by their key `kind`."""
    kinds = [member.__name__ for member in typing.get_args(union)]
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in kinds:
        raise UserError(f"no `kind` is called {kind!r}{_nearest(str(kind), kinds)}; it is one of {', '.join(kinds)}")
    return structure(value, union)


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain lists, dicts, strings and numbers."""
    plain: dict[str, Any] = _converter().unstructure(config)
    return plain


def to_yaml(config: Config) -> str:
    """The config as YAML that `from_yaml` reads back to an equal value."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def from_yaml(text: str | bytes, source: str = "config") -> Config:
    """Read a config, strictly. Raises UserError naming each unknown key (with the nearest known one) or value that does
    not fit, and where it stands.
    """
    try:
        plain = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise UserError(f"{source} does not hold the settings of a run, such as a line `recipe: digits-pgd-at`")
    try:
        return _converter().structure(plain, Config)
    except cattrs.BaseValidationError as error:
        problems = (problem.rpartition(" @ $") for problem in cattrs.transform_error(error, format_exception=_problem))
        found = "; ".join(f"{path.strip('.') or 'top level'}: {problem}" for problem, _, path in problems)
        raise UserError(f"{source}: {found}") from error


def _problem(error: BaseException, _: Any) -> str:
    """What is wrong at one place."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        known = [f.name for f in fields(error.cl)]
        keys = sorted(map(str, error.extra_fields))
        return ", ".join(f"there is no {key}{_nearest(key, known)}" for key in keys)
    if isinstance(error, KeyError):
        return "is missing"
    return "its settings are expected here, one `name: value` a line"


def _nearest(name: str, known: Sequence[str]) -> str:
    """A hint at a name that is known here or, where it is one that belongs elsewhere, at that place."""
    places = difflib.get_close_matches(name, known, n=1) or [place for key, place in _places(Config) if key == name]
    return f" (did you mean {places[0]}?)" if places else ""


def _places(kind: Any, path: str = "", of: str = "") -> Iterator[tuple[str, str]]:
    """The name of each setting in a config type, and where it belongs."""
    members = [part for part in typing.get_args(kind) if isinstance(part, type) and is_dataclass(part)]
    for member in members:
        yield from _places(member, path, f" of {member.__name__}" if len(members) > 1 else "")
    if is_dataclass(kind):
        for name, hint in typing.get_type_hints(kind).items():
            here = f"{path}.{name}".strip(".")
            yield name, here + of
            yield from _places(hint, here)


def differences(old: Config, new: Config) -> list[str]:
    """What differs, as "training.epochs: 10 -> 20"."""

    def flat(value: Any, path: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {path: value}
        return {k: v for key, part in value.items() for k, v in flat(part, f"{path}.{key}".strip(".")).items()}

    a, b = flat(to_dict(old)), flat(to_dict(new))
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in {**a, **b} if a.get(key) != b.get(key)]


def flags(changes: Sequence[str]) -> list[str] | None:
    """`differences` from a recipe as what to type after `advsphere train RECIPE`; None where a flag can't say one."""
    words = []
    for change in changes:
        name, told = change.split(": ", 1)
        value = told.split(" -> ")[1]
        if value.startswith(("(", "[", "{")) or value == "None":
            return None
        group, dot, last = name.removeprefix("training.").replace("_", "-").rpartition(".")
        switch = {"True": f"--{group}{dot}{last}", "False": f"--{group}{dot}no-{last}"}
        words += [switch[value]] if value in switch else [f"--{group}{dot}{last}", value]
    return words
