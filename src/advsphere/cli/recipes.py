"""`advsphere recipes`: list the recipes."""

from __future__ import annotations

from itertools import groupby

from rich.table import Table
from rich.text import Text

from advsphere.cli.printing import terminal
from advsphere.recipes import describe


def main(arguments: list[str]) -> int:
    """Print a line for each recipe and, if a word is given, its notes."""
    console = terminal()
    listed = [entry for entry in describe() if all(word in entry.config.recipe for word in arguments)]
    for table, entries in groupby(listed, key=lambda entry: entry.table):
        lines = Table(box=None, show_header=False, title=Text(table, "bold"), title_justify="left")
        for entry in entries:
            notes = entry.config.notes if arguments else ()
            lines.add_row(Text(entry.config.recipe, "cyan"), "\n".join((entry.summary, *notes)))
        console.print(lines)
    if not listed:
        console.print(f"no recipe's name contains {' '.join(arguments)!r}; `advsphere recipes` lists them all")
        return 1
    if not arguments:
        console.print("\nSources and uncertainties: advsphere recipes WORD")
    return 0
