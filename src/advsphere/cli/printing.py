"""What is printed: paths and names as they are, although rich would read [red] as a colour and :car: as a picture."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from advsphere.bars import beneath_notebook


class _Terminal(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError  # rich would exit with 1


def terminal(**options: Any) -> Console:
    """A console that prints text as it is; `options` are rich's."""
    plain = False if beneath_notebook() else None
    return _Terminal(highlight=False, markup=False, emoji=False, force_terminal=plain, **options)


def program() -> str:
    """What to type to call this program again: its name, or where it is if the shell would not find it."""
    if shutil.which("advsphere"):
        return "advsphere"
    script = Path(sys.argv[0])
    if script.name == "advsphere" and script.is_file():
        return shlex.quote(os.path.relpath(script))
    return f"{shlex.quote(sys.executable)} -m advsphere"
