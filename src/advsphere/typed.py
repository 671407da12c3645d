"""Settings and arguments have the types that their class or function declares."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from functools import cache, wraps
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from advsphere.errors import UserError

_PLAIN: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a string"),
    Path: (os.PathLike, "a path"),
    NoneType: (NoneType, "None"),
}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def typed(function: _Function) -> _Function:
    """Check the arguments of each call of a function, as `require_types` checks settings.

    Args:
        function: The function. One of another package is returned as it is, because its annotations may mean anything.

    Returns:
        A function that checks its arguments and raises UserError for one of another type.
    """
    names = list(inspect.signature(function).parameters)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        hints = _hints(function)
        for name, value in chain(zip(names, args, strict=False), kwargs.items()):
            _require(name, value, hints.get(name, Any))
        return function(*args, **kwargs)

    return call if _ours(function) else function  # type: ignore[return-value]


def require_types(settings: object) -> None:
    """Check the values of a dataclass, as far as advsphere declares their types. A misspelt one would count as another.

    Args:
        settings: The object. Classes of the user that derive from ours may annotate as they like.

    Raises:
        UserError: If a value has another type, or is not among the possible ones.
    """
    owners = {name: cls for cls in reversed(type(settings).__mro__) for name in inspect.get_annotations(cls)}
    for name, cls in owners.items():
        if _ours(cls):
            _require(name, getattr(settings, name), _hints(cls)[name])


_hints = cache(get_type_hints)


def _ours(part: Any) -> bool:
    return getattr(part, "__module__", "").partition(".")[0] == "advsphere"


def _require(name: str, value: object, hint: Any) -> None:
    if not _fits(value, hint):
        given = f"the class {value.__name__}" if isinstance(value, type) else " ".join(repr(value).split())
        given = given if len(given) < 100 else f"of type {type(value).__name__}"
        raise UserError(f"{name} is {given}; give {described(hint)}")


def _fits(value: object, hint: Any) -> bool:
    """Whether a value has a type. Functions may stand for objects that are called. What PyTorch and protocols define is
    not examined, but it is never None.
    """
    if hint in _PLAIN:
        return isinstance(value, _PLAIN[hint][0]) and (hint is bool) == isinstance(value, bool)
    origin, members = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in members)
    if origin in (Union, UnionType):
        return any(_fits(value, member) for member in members)
    if origin is Callable:
        return callable(value)
    if (origin is Sequence and _ours(members[0])) or (origin is tuple and members[-1] is ...):
        return isinstance(value, tuple | list) and all(_fits(one, members[0]) for one in value)
    if origin is tuple:
        return isinstance(value, tuple | list) and len(value) == len(members) and all(map(_fits, value, members))
    if inspect.isclass(hint) and _ours(hint) and not getattr(hint, "_is_protocol", False):
        return isinstance(value, hint) or ("__call__" in vars(hint) and callable(value))
    return value is not None or hint is Any


def described(hint: Any) -> str:
    """Describe a type for an error message.

    Args:
        hint: The type, as it is annotated. A class may name an example of its objects in `_example`.

    Returns:
        The words that follow "give", such as "a number or None".
    """
    if hint in _PLAIN:
        return _PLAIN[hint][1]
    if get_origin(hint) is Literal:
        return "one of " * (len(get_args(hint)) > 1) + ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(described, get_args(hint)))
    if get_origin(hint) is Callable:
        return "a function or a class"
    if get_origin(hint) is tuple and get_args(hint)[-1] is not ...:
        return f"({', '.join(map(described, get_args(hint)))})"
    if get_origin(hint) in (tuple, Sequence):
        return f"several: each {described(get_args(hint)[0])}"
    where = f"such as {hint._example}" if hasattr(hint, "_example") else hint.__module__
    return f"an object of {hint.__qualname__} ({where})"
