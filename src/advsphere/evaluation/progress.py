"""How far a long evaluation has come, and a bar that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from advsphere.evaluation.intervals import wilson


@dataclass(frozen=True, kw_only=True)
class Progress:
    """After each batch. attack: what is running. done, total: images of this attack. robust: how many of the done ones
    still are. seconds, images: what this run of the program spent on the attack, and on how many images.
    """

    attack: str
    done: int
    total: int
    robust: int
    seconds: float
    images: int

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        """Accuracy so far with its interval, and the speed."""
        if not self.done:
            return ""
        low, high = wilson(self.robust, self.done)
        accuracy = f"{100 * self.robust / self.done:5.1f} % ({100 * low:.1f} - {100 * high:.1f})"
        return f"{accuracy}  {self.images_per_second:.3g} images/s"


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar for each attack on the terminal; what it yields is `evaluate`'s `on_progress`."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[so_far]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns) as bars:
        tasks: dict[str, object] = {}

        def show(progress: Progress) -> None:
            name = progress.attack
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=progress.total, so_far="")
            bars.update(tasks[name], completed=progress.done, so_far=str(progress))  # type: ignore[arg-type]

        yield show
