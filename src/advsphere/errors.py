"""The exceptions for mistakes that the user can correct."""

from __future__ import annotations

from importlib.util import find_spec


class UserError(ValueError):
    """A mistake in the user's input. Its message is one line that names the cause and the cure.

    The command line prints the message without a traceback. In a notebook it is an ordinary `ValueError`.
    """


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
