"""What is seen of a training: a bar, and a line for each epoch."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from advsphere.bars import WHOLE, Bars, in_notebook
from advsphere.runs.config import Config, title_of
from advsphere.runs.outcome import warnings_of
from advsphere.training import Collapse, Metrics, Tick, Trainer


class TrainingProgress:
    """Callbacks for `advsphere.train` that show its progress on a console, by default stderr, or in a notebook. Use it
    as a context manager.
    """

    def __init__(self, config: Config, console: Console | None = None) -> None:
        if console is None and in_notebook():
            console = Console(force_jupyter=False, color_system=None, highlight=False, markup=False, emoji=False)
        self.config = config
        self.console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.bar = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(table_column=WHOLE),
            console=self.console,
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
            f"{settings.epochs} epoch{'s' * (settings.epochs > 1)}, {precision} on {processes}{trainer.device.type}",
            sep="",
            soft_wrap=True,
        )
        for note in (*self.config.notes, *notes):
            self.console.print(f"note: {note}", style="dim", soft_wrap=True)
        images = len(trainer.images)
        self.bar.update(self.task, total=settings.epochs * images, completed=trainer.cursor.epoch * images)

    def tick(self, tick: Tick) -> None:
        """Move the bar."""
        note = f"epoch {tick.epoch + 1}/{self.config.training.epochs}  loss {tick.loss:.3f}{self.robust}"
        self.bar.update(self.task, completed=tick.epoch * tick.of + tick.images, note=note)

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

    def end(self, folder: Path) -> None:
        """Print what a user of the run's networks must know."""
        for line in warnings_of(folder):
            self.console.print(f"! {line}", markup=False, soft_wrap=True)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGINT or SIGTERM has come; a second signal interrupts at once."""
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("stopping after this step; the checkpoint is being written ...", file=sys.stderr)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
