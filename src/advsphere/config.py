"""What a training run is, as one frozen value that round-trips through YAML. Recipes return it, the command line
overrides it, runs keep it.
"""

from __future__ import annotations

import difflib
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import cattrs
import tyro
import yaml
from cattrs.strategies import configure_tagged_union

from advsphere.errors import UserError
from advsphere.hypersphere import Sphere
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
    """Where they lie; else $ADVSPHERE_DATA or ./data are looked at."""
    image_size: int | None = None
    """The side of the square that an image folder's images become, in pixels."""
    validation: int = 200
    """Training images held out to choose the best checkpoint; the test set never chooses."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which network."""

    name: str = "small-cnn"
    """wrn-DEPTH-WIDTH, preactresnet-18, small-cnn, timm:NAME, torchvision:NAME, or a bare name of theirs."""
    pretrained: bool = False
    """Start from the library's published weights."""
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
    sphere: Sphere | None = None
    """Hypersphere embedding; None for a plain head."""
    training: Annotated[TrainSettings, tyro.conf.arg(name="")] = field(default_factory=TrainSettings)
    threat: ThreatModel = ThreatModel(norm="linf", eps=8 / 255)
    """What the run is validated, and by default evaluated, against; what it is trained against is the objective's."""
    notes: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """Sources, and what is uncertain; carried along to reports."""


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    converter.register_unstructure_hook(Path, str)
    for union in (AnyObjective, Schedule):
        configure_tagged_union(union, converter, tag_name="kind")
    return converter


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain lists, dicts, strings and numbers."""
    plain: dict[str, Any] = _converter().unstructure(config)
    return plain


def to_yaml(config: Config) -> str:
    """The config as YAML that `from_yaml` reads back to an equal value."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def from_yaml(text: str, source: str = "config") -> Config:
    """Read a config, strictly. Raises UserError naming each unknown key (with the nearest known one) or value that does
    not fit.
    """
    try:
        return _converter().structure(yaml.safe_load(text), Config)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    except cattrs.BaseValidationError as error:
        raise UserError(f"{source}: " + "; ".join(map(_with_nearest, cattrs.transform_error(error)))) from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{source} does not hold the settings of a run: {error}") from error


def _with_nearest(message: str) -> str:
    _, _, unknown = message.partition("extra fields found (")
    if not unknown:
        return message
    hints = [
        f"{key} (did you mean {near[0]}?)" if (near := difflib.get_close_matches(key, _keys(Config))) else key
        for key in unknown.split(")")[0].split(", ")
    ]
    return f"unknown {', '.join(hints)} {unknown.partition(') ')[2]}".strip()


def _keys(kind: Any) -> set[str]:
    """All field names of a config type, nested ones too."""
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return {key for part in typing.get_args(kind) for key in _keys(part)}
    hints = typing.get_type_hints(kind)
    return {f.name for f in fields(kind)} | {key for f in fields(kind) for key in _keys(hints[f.name])}


def differences(old: Config, new: Config) -> list[str]:
    """What differs, as "training.epochs: 10 -> 20"."""

    def flat(value: Any, path: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {path: value}
        return {k: v for key, part in value.items() for k, v in flat(part, f"{path}.{key}".strip(".")).items()}

    a, b = flat(to_dict(old)), flat(to_dict(new))
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in {**a, **b} if a.get(key) != b.get(key)]
