"""Bars for the stages of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn

from advsphere.bars import Bars


@contextmanager
def stage_bars(console: Console) -> Iterator[Callable[[str, str, int, int], None]]:
    """A bar for each network and stage. Yields a function to be called with (network, stage, done, total)."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=False) as bars:
        tasks: dict[tuple[str, str], TaskID] = {}

        def show(name: str, stage: str, done: int, total: int) -> None:
            key = (name, stage)
            if key not in tasks:
                tasks[key] = bars.add_task(f"{name:<24} {stage:<13}", total=total)
            bars.update(tasks[key], completed=done)

        yield show
