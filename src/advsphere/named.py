"""User-defined parts by name, `package.module:object`, and the checksum of their source file."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import linecache
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from types import CodeType
from typing import Any

from advsphere.errors import UserError
from advsphere.files import cache_folder, some

_LIBRARIES = ("timm", "torchvision", "hf", "robustbench")
"""`timm:NAME` is a network of timm, not an object in its module."""

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")


def is_name(text: str) -> bool:
    """Whether a text has the form `package.module:object`.

    Args:
        text: Any text.

    Returns:
        False also for `timm:NAME`, `torchvision:NAME`, `hf:NAME` and `robustbench:NAME`, which are networks.
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
    """SHA-256 of the source file that defines a function, a class, or an instance's class; in a notebook of the cells
    that define it and the functions and classes that it uses.

    Args:
        thing: The object, or its name `package.module:object`.

    Returns:
        64 hexadecimal digits; None if there is no source, or if it belongs to advsphere, an installed package or the
        standard library, whose versions are recorded instead.
    """
    if isinstance(thing, str):
        thing = load(thing)
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        thing = type(thing)
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if file is None:
        cells = _cells(thing)
        return hashlib.sha256("".join(cells).encode()).hexdigest() if cells else None
    if not Path(file).is_file():
        return None
    path = Path(file).resolve()
    if any(path.is_relative_to(folder) for folder in _not_the_users()):
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cells(thing: Any) -> list[str]:
    """The source of the notebook's cells that define a function or the methods of a class, and whatever these call."""
    files, things = list[str](), [thing]
    for one in things:  # grows
        for part in (*vars(one).values(), *one.__bases__) if inspect.isclass(one) else [one]:
            function = inspect.unwrap(getattr(part, "fget", None) or part)  # of a property
            code = getattr(function, "__code__", None)
            if code is None or code.co_filename.startswith("<"):
                used = [part] if inspect.isclass(part) else []
            else:
                files.append(code.co_filename)
                used = [function.__globals__[name] for name in _names(code) if name in function.__globals__]
            named = [each if inspect.isfunction(each) or inspect.isclass(each) else type(each) for each in used]
            things += [each for each in named if each.__module__ == thing.__module__ and each not in things]
    return [line for file in dict.fromkeys(files) for line in linecache.getlines(file)]


def _names(code: CodeType) -> list[str]:
    """The names that code, and the functions in it, look up outside."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return [*code.co_names, *inner]


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


TRUST = "ADVSPHERE_TRUST_CODE"
"""The environment variable that `--trust-code` sets: code that a file names may run."""


def trust(names: Iterable[str]) -> None:
    """Note names and URLs that the user gave, so that files which name them may be read later.

    A file that somebody sent may name any code. It runs only if this user has named it before, at the same place.

    Args:
        names: Names `package.module:object`, and URLs. Other texts are left out.
    """
    known, path = _trusted(), _trust_file()
    new = [line for line in map(_with_place, filter(_may_harm, names)) if line not in known]
    if not new:
        return
    with suppress(OSError):  # without a cache the user gives --trust-code
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write("".join(f"{line}\n" for line in new))


def require_trust(names: Iterable[str], source: object) -> None:
    """Refuse code and URLs that a file names, unless the user has named them before or gave `--trust-code`.

    Nothing is imported to find out.

    Args:
        names: Texts of the file. Only names `package.module:object` and URLs matter.
        source: The file or folder, for the message.

    Raises:
        UserError: If there is such a name.
    """
    if os.environ.get(TRUST):
        return
    known = _trusted()
    foreign = [line for line in map(_with_place, filter(_may_harm, names)) if line not in known]
    if foreign:
        raise UserError(
            f"{source} names {some(foreign, 3)}, which you have not used here before, so it was not run or opened; "
            "read it first, and add --trust-code if you trust it"
        )


def is_url(text: str) -> bool:
    """Whether a text is a URL, also one that was converted to a Path, which reduces two slashes to one.

    Args:
        text: Any text.

    Returns:
        True for `s3://bucket/images` and `ftp:/host`.
    """
    return _URL.match(text) is not None


def _may_harm(text: str) -> bool:
    return is_name(text) or is_url(text) or text.startswith("hf:")  # which may be anybody's files


def _with_place(text: str) -> str:
    """A name and the file of its module, which is found without importing it; anything else as it is."""
    if not is_name(text):
        return text
    found, path = None, ["", *sys.path]
    for part in text.partition(":")[0].split("."):
        found = PathFinder.find_spec(part, path)
        path = list(found.submodule_search_locations or ()) if found is not None else []
    origin = None if found is None else found.origin
    return f"{text} ({Path(origin).resolve() if origin else 'built in, or not found'})"


def _trust_file() -> Path:
    return cache_folder() / "trusted"


def _trusted() -> set[str]:
    with suppress(OSError):
        return set(_trust_file().read_text().splitlines())
    return set()


def _inside(thing: Any, path: str) -> Any:
    for part in path.split("."):
        thing = getattr(thing, part)
    return thing


def _not_the_users() -> list[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    installed = [Path(sysconfig.get_path(name)).resolve() for name in names]
    return [*installed, Path(__file__).resolve().parent]
