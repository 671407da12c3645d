"""What is printed: paths and names as they are, although rich would read [red] as a colour and :car: as a picture."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from advsphere.bars import beneath_notebook


class _Terminal(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError  # rich would exit with 1


def terminal(**options: Any) -> Console:
    """A console that prints text as it is; `options` are rich's."""
    plain = False if beneath_notebook() else None
    return _Terminal(highlight=False, markup=False, emoji=False, force_terminal=plain, **options)


def print_error(said: str) -> None:
    """Tell a user's mistake in one line."""
    terminal(stderr=True, soft_wrap=True).print(Text("error:", "bold red"), said)


def program(*words: object) -> str:
    """What to type to call this program again with these words: its name, or where it is if the shell would not find
    it, and each word quoted.
    """
    script = Path(sys.argv[0])
    if shutil.which("advsphere"):
        called = ["advsphere"]
    elif script.name == "advsphere" and script.is_file():
        called = [os.path.relpath(script)]
    else:
        called = [sys.executable, "-m", "advsphere"]
    return shlex.join([*called, *map(str, words)])
