"""Progress on the terminal: a bar and one line per epoch for training, a bar per attack or stage for other work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from advsphere.evaluation.work import Progress
from advsphere.runs.config import Config, title_of
from advsphere.training import Collapse, Metrics, Tick, Trainer


class TrainingProgress:
    """Callbacks for `advsphere.train` that show its progress on a console. Use it as a context manager."""

    def __init__(self, config: Config, console: Console) -> None:
        self.config, self.console = config, console
        self.bar = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(config.recipe, total=None, note="")
        self.robust = ""

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def start(self, trainer: Trainer, notes: list[str]) -> None:
        """Print the recipe, network, objective and data, and all notes."""
        settings = trainer.settings
        weights = sum(p.numel() for p in trainer.model.parameters())
        processes = "" if trainer.world.size == 1 else f"{trainer.world.size} x "
        precision = "float32" if trainer.dtype is None else str(trainer.dtype).removeprefix("torch.")
        self.console.print(
            Text(self.config.recipe, "bold"),
            f": {self.config.model.name} ({weights:,} weights), "
            f"{title_of(self.config.objective)} on {len(trainer.images):,} images of {self.config.data.name}, "
            f"{settings.epochs} epochs, {precision} on {processes}{trainer.device.type}",
            sep="",
            soft_wrap=True,
        )
        for note in (*self.config.notes, *notes):
            self.console.print(f"note: {note}", style="dim", soft_wrap=True)
        images = len(trainer.images)
        self.began, self.done_before = time.monotonic(), trainer.cursor.epoch * images
        self.bar.update(self.task, total=settings.epochs * images, completed=self.done_before)

    def tick(self, tick: Tick) -> None:
        """Move the bar."""
        done = tick.epoch * tick.of + tick.images
        rate = (done - self.done_before) / (time.monotonic() - self.began)
        note = f"loss {tick.loss:.3f}  {rate:,.0f} images/s{self.robust}"
        self.bar.update(self.task, completed=done, note=note)

    def epoch(self, metrics: Metrics) -> None:
        """Print a line for the epoch; validation, if it was due, uses held-out training images."""
        validated = ""
        if "robust" in metrics:
            self.robust = f"  robust {metrics['robust']:.1%}"
            validated = f"validation: clean {metrics['clean']:.1%}, robust (PGD-10) {metrics['robust']:.1%}  "
        self.console.print(
            f"epoch {metrics['epoch']:3.0f}/{self.config.training.epochs}  loss {metrics['loss']:.3f}  {validated}"
            f"{metrics['images_per_second']:,.0f} images/s  {metrics['seconds']:,.0f} s",
            soft_wrap=True,
        )

    def collapse(self, collapse: Collapse) -> None:
        """Print what the guard saw and did."""
        self.console.print(f"! {collapse}", markup=False, soft_wrap=True)


@contextmanager
def stage_bars(console: Console) -> Iterator[Callable[[str, str, int, int], None]]:
    """A bar for each network and stage. Yields a function to be called with (network, stage, done, total)."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn())
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[tuple[str, str], TaskID] = {}

        def show(name: str, stage: str, done: int, total: int) -> None:
            key = (name, stage)
            if key not in tasks:
                tasks[key] = bars.add_task(f"{name:<24} {stage:<13}", total=total)
            bars.update(tasks[key], completed=done)

        yield show


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar for each attack. Yields a function for `on_progress` of `evaluate`."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[so_far]}", markup=False),
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
