"""The progress of an evaluation, and a bar for each attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from advsphere.bars import WHOLE, Bars
from advsphere.stats import wilson


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of an evaluation, reported after each batch.

    Attributes:
        attack: The running attack.
        done: Number of images that it has finished.
        total: Number of all images.
        robust: Number of finished images that resisted.
        seconds: Time that this process has spent on the attack.
        images: Number of images that this process attacked in that time.
    """

    attack: str
    done: int
    total: int
    robust: int
    seconds: float
    images: int

    @property
    def images_per_second(self) -> float:
        """Images that this process attacks per second."""
        return self.images / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        """Accuracy so far with its interval."""
        if not self.done:
            return ""
        low, high = wilson(self.robust, self.done)
        return f"{100 * self.robust / self.done:5.1f} % ({100 * low:.1f} - {100 * high:.1f})"


OnProgress = Callable[[Progress], None]


@contextmanager
def progress_bar(**options: Any) -> Iterator[OnProgress]:
    """A bar for each attack, with options of `Bars`. Yields a function for `on_progress` of `evaluate`."""
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column()),  # a long name takes a second line
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
            # A sample that grows has more images than its first look.
            bars.update(tasks[name], total=progress.total, completed=progress.done, so_far=str(progress))

        yield show
