"""Settings have the types that their class declares."""

from __future__ import annotations

import inspect
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from advsphere.errors import UserError

_PLAIN: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a text"),
    NoneType: (NoneType, "None"),
}


def require_types(settings: object) -> None:
    """Check the values of a dataclass, as far as advsphere declares their types. A misspelt one would count as another.

    Args:
        settings: The object. Classes of the user that derive from ours may annotate as they like.

    Raises:
        UserError: If a value has another type, or is not among the possible ones.
    """
    owners = {name: cls for cls in reversed(type(settings).__mro__) for name in inspect.get_annotations(cls)}
    for name, cls in owners.items():
        if cls.__module__.partition(".")[0] == "advsphere":
            hint, value = _hints(cls)[name], getattr(settings, name)
            if not _fits(value, hint):
                raise UserError(f"{name} is {value!r}; give {said(hint)}")


_hints = cache(get_type_hints)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value has a type. Functions may stand for objects that are called, and containers are not examined."""
    if hint in _PLAIN:
        return isinstance(value, _PLAIN[hint][0]) and (hint is bool) == isinstance(value, bool)
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return callable(value) or any(_fits(value, member) for member in get_args(hint))
    return not inspect.isclass(hint) or isinstance(value, hint)


def said(hint: Any) -> str:
    """Say what a value may be.

    Args:
        hint: A type, as it is annotated.

    Returns:
        The words that follow "give", such as "a number or None".
    """
    if hint in _PLAIN:
        return _PLAIN[hint][1]
    if get_origin(hint) is Literal:
        return "one of " * (len(get_args(hint)) > 1) + ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(said, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"{said(get_args(hint)[0])}, or several"
    return f"a {hint.__qualname__} ({hint.__module__})"
