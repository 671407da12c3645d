"""What is seen of an evaluation: a bar for each attack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn

from advsphere.bars import WHOLE, Bars
from advsphere.evaluation.work import OnProgress, Progress


@contextmanager
def progress_bar(**options: Any) -> Iterator[OnProgress]:
    """A bar for each attack, with options of `Bars`. Yields a function for `on_progress` of `evaluate`."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(table_column=WHOLE),
        TextColumn("{task.fields[so_far]}", markup=False),
        TimeRemainingColumn(table_column=WHOLE),
    )
    with Bars(*columns, **options) as bars:
        tasks: dict[str, TaskID] = {}

        def show(progress: Progress) -> None:
            name = progress.attack
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=progress.total, so_far="")
            bars.update(tasks[name], completed=progress.done, so_far=str(progress))

        yield show
