"""A config as YAML. Reading is strict: no unknown keys, and no values of another type."""

from __future__ import annotations

import json
import types
import typing
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal, get_args, get_origin

import yaml

from advsphere import named
from advsphere.errors import UserError
from advsphere.objectives import Objective
from advsphere.runs.config import OBJECTIVES, Config, known_kind, nearest, objective_class, to_dict
from advsphere.schedule import Schedule


def to_yaml(config: Config) -> str:
    """The config as YAML that `from_yaml` reads back to an equal value."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def from_yaml(text: str | bytes, source: str = "config", *, of_run: bool = False) -> Config:
    """Read a config strictly.

    Args:
        text: YAML, as `to_yaml` writes it. Omitted settings have their defaults.
        source: The name of the text in errors, such as the file's path.
        of_run: The text is the config.yaml of a run. A section that is missing is refused, because the file was cut
            off. So are names of code and URLs that the user has not used before, because somebody may have sent it.

    Returns:
        The config.

    Raises:
        UserError: If it is not YAML, or has an unknown key or a value of another type. The message names all such
            places, and for each unknown key the nearest known one.
    """
    try:
        _require_small(text)
        plain = yaml.safe_load(text)
    except _NO_YAML as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())[:500]}") from error
    if not isinstance(plain, dict):
        raise UserError(f"{source} does not hold the settings of a run, such as a line `recipe: digits-pgd-at`")
    problems: list[str] = []
    if of_run:
        named.require_trust(_outside(plain), source)
    if of_run and (missing := [one.name for one in fields(Config) if one.name not in plain]):
        problems.append(f"{', '.join(missing)}: missing, so the file was cut off or changed; restore it")
    config = _read(Config, plain, "", problems)
    if problems:
        raise UserError(f"{source}: {'; '.join(problems)}")
    assert isinstance(config, Config)
    return config


_NO_YAML = (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, OverflowError)
"""What PyYAML raises for texts that are none, and for values such as a date in month 13."""

_MOST_BYTES, _DEEPEST, _MOST_ALIASES = 2**20, 20, 20


def _require_small(text: str | bytes) -> None:
    """Raise ValueError for a text that would take long to read, or grow by aliases of aliases."""
    if len(text) > _MOST_BYTES:
        raise ValueError(f"it has {len(text)} bytes, and a config has a few hundred")
    depth = aliases = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > _DEEPEST or aliases > _MOST_ALIASES:
            raise ValueError("it has more nested parts or aliases than any config")


def _outside(plain: dict[Any, Any]) -> list[str]:
    """The texts of a config that may name code or a URL."""
    places = (("data", "name"), ("data", "root"), ("model", "name"), ("training", "optimizer"), ("objective", "kind"))
    sections = ((plain.get(section), key) for section, key in places)
    return [str(section[key]) for section, key in sections if isinstance(section, dict) and key in section]


def _read(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """The value as that type. If that fails, add a line to `problems` and return None."""
    try:
        return _value(kind, value, path, problems)
    except UserError as error:
        problems.append(f"{path or 'top level'}: {error}")
        return None


def _value(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin, members = get_origin(kind), get_args(kind)
    if kind in _SCALARS:
        return _scalar(value, kind)
    if kind is Path:
        return Path(_scalar(value, str))
    if origin is Literal:
        if value not in members:
            raise UserError(f"{short(value)} is not one of {', '.join(members)}")
        return value
    if origin is tuple:
        return _list(value, members, path, problems)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise UserError("arguments are expected here, one `name: value` per line")
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"only numbers, texts and lists of them can be arguments: {error}") from error
        return value
    if kind is Objective:
        name = _kind_in(value)
        found = objective_class(name if isinstance(name, str) else known_kind(name, [*OBJECTIVES]))
        return _fields(found, value, path, problems)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in members:
            return None
        some = {member.__name__: member for member in members if member is not type(None)}
        if len(some) == 1:
            (only,) = some.values()
            return _value(only, value, path, problems)
        return _fields(some[known_kind(_kind_in(value), list(some))], value, path, problems)
    return _fields(kind, value, path, problems)


_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _scalar(value: Any, kind: type) -> Any:
    """Check the type without converting: for Python, bool("false") is True and int(1.9) is 1."""
    if kind is float and type(value) in (int, str):
        with suppress(ValueError, OverflowError):
            return float(value)  # YAML reads 5e-4 as text
    if type(value) is not kind:
        raise UserError(f"{short(value)} is not {_SCALARS[kind]}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{short(value)} is too large")
    return value


def _list(value: Any, kinds: tuple[Any, ...], path: str, problems: list[str]) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise UserError(f"{short(value)} is not a list")
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise UserError(f"{short(value)} is not a list of {len(kinds)}")
    return tuple(_value(kind, one, path, problems) for kind, one in zip(kinds, value, strict=True))


def _fields(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """A dataclass from the values of its fields."""
    if not isinstance(value, dict):
        raise UserError("settings are expected here, one `name: value` per line")
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if f.init}
    before = len(problems)
    unknown = sorted(str(key) for key in value if key not in known and not (key == "kind" and _tagged(kind)))
    if unknown:
        hinted = (f"there is no {key}{nearest(key, list(known))}" for key in unknown)
        problems.append(f"{path or 'top level'}: {', '.join(hinted)}")
    found = {
        name: _read(hints[name], value[name], f"{path}.{name}".strip("."), problems) for name in known if name in value
    }
    for name, one in known.items():
        if name not in value and one.default is MISSING and one.default_factory is MISSING:
            problems.append(f"{path}.{name}: is missing".strip("."))
    return None if len(problems) > before else kind(**found)


def _tagged(kind: Any) -> bool:
    return issubclass(kind, Objective) or kind in get_args(Schedule)


def _kind_in(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else None
