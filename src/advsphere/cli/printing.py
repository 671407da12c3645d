"""What is printed: paths and names as they are, although rich would read [red] as a colour and :car: as a picture."""

from __future__ import annotations

from typing import Any, NoReturn

from rich.console import Console


class _Terminal(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError  # rich would exit with 1


def terminal(**options: Any) -> Console:
    """A console that prints text as it is; `options` are rich's."""
    return _Terminal(highlight=False, markup=False, emoji=False, **options)
