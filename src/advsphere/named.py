"""User-defined parts by name, `package.module:object`, and the checksum of their source file."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from advsphere.errors import UserError

_LIBRARIES = ("timm", "torchvision")
"""`timm:NAME` is a network of timm, not an object in its module."""


def is_name(text: str) -> bool:
    """Whether a text has the form `package.module:object`.

    Args:
        text: Any text.

    Returns:
        False also for `timm:NAME` and `torchvision:NAME`, which are networks of these libraries.
    """
    module, colon, path = text.partition(":")
    return bool(colon) and module not in _LIBRARIES and all(p.isidentifier() for p in f"{module}.{path}".split("."))


def load(name: str) -> Any:
    """Import the object with that name, from the current folder too.

    Args:
        name: `package.module:object`. The object may be an attribute of another, as in `module:Class.method`.

    Returns:
        The object.

    Raises:
        UserError: If the name has another form, or the module or object does not exist or can't be imported.
    """
    if not is_name(name):
        raise UserError(f"{name!r} is not the name of an object; write package.module:object")
    module_name, _, path = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return _inside(importlib.import_module(module_name), path)
    except ModuleNotFoundError as error:
        raise UserError(f"{name}: {error}; run from the folder that holds the module, or install it") from error
    except AttributeError as error:
        raise UserError(f"{name}: {error}") from error
    except Exception as error:  # importing runs the user's code, which may raise any error
        raise UserError(f"{name} can't be imported: {type(error).__name__}: {error}") from error


def name_of(thing: Any) -> str | None:
    """The name by which `load` finds a function or class again.

    Args:
        thing: A function or a class.

    Returns:
        `package.module:object`; None for objects without such a name: a lambda, a local class, an instance, or an
        object of a script or notebook (`__main__`).
    """
    module, path = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(path, str):
        return None
    try:
        if _inside(sys.modules[module], path) is not thing:
            return None
    except (KeyError, AttributeError):
        return None
    if module == "__main__":  # `python -m package.module` has a module name, a script has none
        spec = getattr(sys.modules[module], "__spec__", None)
        module = None if spec is None else spec.name
    return module and f"{module}:{path}"


def source_checksum(thing: Any) -> str | None:
    """SHA-256 of the source file that defines a function, a class, or an instance's class.

    Args:
        thing: The object, or its name `package.module:object`.

    Returns:
        64 hexadecimal digits; None if there is no file, or if it belongs to advsphere, an installed package or the
        standard library, whose versions are recorded instead.
    """
    if isinstance(thing, str):
        thing = load(thing)
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        thing = type(thing)
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        return None
    path = Path(file).resolve()
    if any(path.is_relative_to(folder) for folder in _not_the_users()):
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def call(
    function: str | Callable[..., Any], arguments: Mapping[str, Any], offered: Mapping[str, Any], *positional: Any
) -> Any:
    """Call a user-defined function or class.

    Args:
        function: The function, or its name `package.module:object`.
        arguments: Keyword arguments that the user gave.
        offered: Values for parameters of these names, if the function has them and the user gave none.
        *positional: Positional arguments.

    Returns:
        The function's return value.

    Raises:
        UserError: If the function can't be imported, or raises an error.
    """
    found = load(function) if isinstance(function, str) else function
    try:
        return found(*positional, **{**fitting(found, offered), **arguments})
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"{function} could not be called: {type(error).__name__}: {error}") from error


def fitting(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the values for which a function has a parameter of that name.

    Args:
        function: A function or a class.
        values: Values by name.

    Returns:
        The chosen values; empty for a built-in function without a signature.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    return {name: value for name, value in values.items() if name in parameters}


def _inside(thing: Any, path: str) -> Any:
    for part in path.split("."):
        thing = getattr(thing, part)
    return thing


def _not_the_users() -> list[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    installed = [Path(sysconfig.get_path(name)).resolve() for name in names]
    return [*installed, Path(__file__).resolve().parent]
