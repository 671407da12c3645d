"""`advsphere recipes`: list the recipes."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from advsphere.recipes import describe


def main(arguments: list[str]) -> int:
    """Print a line for each recipe and, if a word is given, its notes."""
    console = Console(highlight=False)
    listed = [entry for entry in describe() if all(word in entry.config.recipe for word in arguments)]
    for table, entries in groupby(listed, key=lambda entry: entry.table):
        lines = Table(box=None, show_header=False, title=f"[bold]{table}[/]", title_justify="left")
        for entry in entries:
            notes = entry.config.notes if arguments else ()
            lines.add_row(f"[cyan]{entry.config.recipe}[/]", "\n".join(map(escape, (entry.summary, *notes))))
        console.print(lines)
    if not listed:
        console.print(f"no recipe's name contains {' '.join(arguments)!r}; `advsphere recipes` lists them all")
        return 1
    if not arguments:
        console.print("\nSources and uncertainties: advsphere recipes WORD")
    return 0
