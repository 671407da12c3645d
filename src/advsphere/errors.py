"""The exceptions for mistakes that the user can correct."""

from __future__ import annotations

import errno
import linecache
import traceback
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path


class UserError(ValueError):
    """A mistake in the user's input. Its message is one line that names the cause and the cure.

    The command line prints the message without a traceback. A notebook shows it below the user's own lines that led to
    it. Elsewhere it is an ordinary `ValueError`.
    """

    def _render_traceback_(self) -> list[str]:  # IPython calls this
        return [*own_lines(self), f"{type(self).__name__}: {self}"]


def own_lines(error: BaseException) -> Iterator[str]:
    """Find where an error and its cause passed through code that is not installed, such as cells of a notebook.

    Args:
        error: Any error that was raised.

    Yields:
        The places, the outermost first, each with its line of code.
    """
    installed = tuple({str(Path(__file__).parent), *(get_path(name) for name in ("stdlib", "purelib", "platlib"))})
    for one in (error, error.__cause__):
        for frame, number in traceback.walk_tb(one.__traceback__ if one is not None else None):
            file = frame.f_code.co_filename
            if not file.startswith((*installed, "<frozen", "<string")):
                place, line = file if Path(file).is_file() else "a cell", linecache.getline(file, number).strip()
                yield f"{place}, line {number}, in {frame.f_code.co_name}\n    {line}"


class MissingPackageError(UserError, ImportError):
    """A package that a part of advsphere needs is not installed."""


def needs(extra: str, *packages: str) -> None:
    """Ask for packages that `pip install advsphere` does not bring.

    Args:
        extra: The extra of advsphere that brings them, such as "train".
        *packages: The names by which they are imported.

    Raises:
        MissingPackageError: If one is not installed. The message has the command that installs it.
    """
    for package in packages:
        try:
            found = find_spec(package)
        except (ModuleNotFoundError, ValueError):
            found = None
        if found is None:
            raise MissingPackageError(f"{package} is not installed: pip install 'advsphere[{extra}]'")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the machine.

    Args:
        error: Any error.

    Returns:
        True for torch's and Python's errors about memory.
    """
    signs = ("out of memory", "not enough memory", "allocate memory", "ALLOC_FAILED")
    # The name, since importing torch takes a second, and its CPU allocator raises a plain RuntimeError.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its kind.

    Args:
        error: Any error.

    Returns:
        The line, to be quoted in another message.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def in_one_line(error: BaseException, *, sized: bool = True) -> str | None:
    """The line that is printed instead of a traceback, for an error whose cause is outside the code.

    Args:
        error: Any error.
        sized: Whether the command has a --batch-size.

    Returns:
        The message of a UserError; cause and cure of a lack of memory and of an error of the operating system; None for
        any other error.
    """
    if isinstance(error, UserError):
        return str(error)
    if out_of_memory(error):
        if sized:
            return "out of memory: give a smaller --batch-size; training also takes a batch in parts, --accumulate 2"
        return "out of memory: end other programs that use this device, or name another one, such as --device cpu"
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return f"{error.object!a} is no UTF-8, as the programs behind this command need; choose another name or locale"
    if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
        return None
    place = "" if error.filename is None else f"{error.filename}: "
    cures = {
        errno.EMFILE: "; raise the limit with `ulimit -n 1024`, or give --training.workers 1",
        errno.ENOSPC: "; free some space and run the same command again",
        errno.EROFS: "; name a folder on another disk with --out",
        errno.EACCES: "; change its permissions, or name another place",
        errno.EEXIST: "; a file has that name, so name another place",
        errno.EISDIR: "; it is a folder, so name a file",
        errno.ENOTDIR: "; a part of the path is a file, so name another place",
    }
    return f"{place}{error.strerror or error}{cures.get(error.errno or 0, '')}"
