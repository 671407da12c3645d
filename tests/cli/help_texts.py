"""The stored texts that `advsphere COMMAND --help` prints.

python -m tests.cli.help_texts           # name the texts that differ from the flags
python -m tests.cli.help_texts --write   # write them
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import re
import textwrap
from pathlib import Path
from typing import Any
from unittest.mock import patch

import advsphere.cli
from advsphere.cli import COMMANDS, help_of

BY_HAND = ("train", "recipes")
"""Their flags depend on the recipe, so their texts explain rather than list them."""

WIDTH = 100


def of_the_flags(command: str) -> str:
    """What tyro says about a command's flags, without defaults of None or nothing."""
    said = io.StringIO()
    wide = {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    with patch.dict(os.environ, wide), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(f"advsphere.cli.{command}").main(["--help"])
    text = re.sub(r"\s*\(default:\s+(None)?\)", "", said.getvalue()).replace("{None}|", "")
    return _filled("".join(f"{line.rstrip()}\n" for line in text.rstrip().split("\n")))


def _filled(text: str) -> str:
    """Sentences are broken anew, since tyro breaks some where the source does. Commands and lists keep their lines."""
    blocks: list[tuple[int, str]] = []  # where the sentences begin, and the line with them
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        begin = max(match.end() for match in re.finditer("^ *|(?<=  )(?=[^ ])", line))
        start, before = blocks[-1] if blocks else (0, "")
        if before.strip() and line[indent:] and indent == start and not line.startswith(("- ", "---"), indent):
            blocks[-1] = start, f"{before} {line.strip()}"
        else:
            blocks.append((begin, line))
    return "".join(f"{_wrapped(line, begin)}\n" for begin, line in blocks)


def _wrapped(line: str, begin: int) -> str:
    if ":  " in line or begin == len(line):
        return line
    return line[:begin] + f"\n{' ' * begin}".join(textwrap.wrap(line[begin:], WIDTH - begin, **WORDS))


WORDS: Any = {"break_long_words": False, "break_on_hyphens": False}


def outdated() -> dict[str, str]:
    """The commands whose stored text differs from their flags, with the text that fits."""
    texts = {name: of_the_flags(name) for name in COMMANDS if name not in BY_HAND}
    return {name: text for name, text in texts.items() if not _path(name).exists() or help_of(name) != text}


def _path(command: str) -> Path:
    return Path(advsphere.cli.__file__).parent / "help" / f"{command}.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    for name, text in outdated().items():
        print(name)
        if write:
            _path(name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
