"""Bars for long work, in a terminal and in a notebook."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

WHOLE = Column(no_wrap=True)
"""For a column that stays whole where the terminal is narrow; the bar gets shorter."""


class Bars(Progress):
    """Bars that are shown if stderr, or a given console, is a terminal, and go when the work is done.

    A notebook shows them as text that is written over, because those of rich need ipywidgets. It shows none for work of
    less than two seconds.

    Args:
        *columns: What a bar consists of; by default as in rich.
        console: The terminal; by default stderr.
        **options: Those of rich.
    """

    def __init__(self, *columns: ProgressColumn, console: Console | None = None, **options: Any) -> None:
        self.cell = _Cell() if in_notebook() else None
        if self.cell is not None:  # where FORCE_COLOR is set, so that any console would count as a terminal
            console = Console(
                file=io.StringIO(), width=100, force_terminal=False, force_jupyter=False, markup=False, emoji=False
            )
        elif console is None:
            console = Console(stderr=True, force_terminal=False if beneath_notebook() else None)
        super().__init__(
            *columns, console=console, **{"transient": True, "disable": not console.is_terminal, **options}
        )

    @property
    def seen(self) -> bool:
        """Whether somebody sees them."""
        return self.cell is not None or not self.disable

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a bar, see rich.

        Args:
            task_id: What `add_task` returned.
            **changes: The new values.
        """
        super().update(task_id, **changes)
        if self.cell is not None and self.cell.due():
            with self.console.capture() as text:
                self.console.print(self)
            self.cell.show(text.get())

    def stop(self) -> None:
        """Remove the bars, or leave them as they are."""
        super().stop()
        if self.cell is not None:
            self.cell.show("")


def in_notebook() -> bool:
    """Whether this runs in a notebook, as rich finds out.

    Returns:
        True in Jupyter, Colab and the like.
    """
    return Console().is_jupyter


def beneath_notebook() -> bool:
    """Whether a cell of a notebook runs this as a command, by "!". It looks like a terminal, but moves no cursor: each
    change of a bar would be a new line.

    Returns:
        True if the kernel's settings are inherited.
    """
    return "matplotlib_inline" in os.environ.get("MPLBACKEND", "") and not in_notebook()


@contextmanager
def stage_bars(console: Console) -> Iterator[Callable[[str, str, int, int], None]]:
    """Show a bar for each network and each stage of a measurement, which stay when it is done.

    Args:
        console: The terminal.

    Yields:
        A function to be called with (network, stage, done, total) after each step.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=False) as bars:
        tasks: dict[tuple[str, str], TaskID] = {}

        def show(name: str, stage: str, done: int, total: int) -> None:
            key = (name, stage)
            if key not in tasks:
                tasks[key] = bars.add_task(f"{name:<24} {stage:<13}", total=total)
            bars.update(tasks[key], completed=done)

        yield show


class _Cell:
    """A place in the output of a notebook's cell."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.next = time.monotonic() + 2

    def due(self) -> bool:
        return time.monotonic() > self.next

    def show(self, text: str) -> None:
        from IPython.display import DisplayHandle

        if self.handle is None and text:
            made: Any = DisplayHandle
            self.handle = made()
            self.handle.display({"text/plain": text}, raw=True)
        elif self.handle is not None:
            self.handle.update({"text/plain": text}, raw=True)
        self.next = time.monotonic() + 0.5
