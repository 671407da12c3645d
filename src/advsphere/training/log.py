"""The metrics of a run: one JSON line for each epoch, and the same in TensorBoard, Weights & Biases or MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from advsphere.errors import UserError
from advsphere.files import write_atomically
from advsphere.training.hooks import Metrics
from advsphere.training.trackers import Tracker, begin


class MetricsLog:
    """Appends to `metrics.jsonl` in a run's folder and to a tracker. Call `close` at the end.

    A resumed run drops the lines of epochs after `from_epoch`, because these epochs are repeated. Raises UserError if
    the disk is full or not writable.
    """

    def __init__(
        self, folder: Path, from_epoch: int = 0, to: Tracker = "tensorboard", config: Mapping[str, Any] | None = None
    ) -> None:
        self.path = folder / "metrics.jsonl"
        # A damaged line must not keep a run from being resumed.
        self.lines = [m for m, _ in _read(self.path) if m is not None]
        self._begin = partial(begin, to, folder, config=config or {})
        self._start(from_epoch)

    def go_back(self, epoch: int) -> None:
        """Drop what comes after an epoch, because it will be repeated."""
        self.close()
        self._start(epoch)

    def _start(self, from_epoch: int) -> None:
        self.lines = [m for m in self.lines if m["epoch"] <= from_epoch]
        self._write()
        self.show, self.close = self._begin(from_epoch)

    def __call__(self, metrics: Metrics) -> None:
        self.lines.append(metrics)
        self._write()
        self.show(metrics)

    def _write(self) -> None:
        write_atomically(self.path, "".join(json.dumps(m) + "\n" for m in self.lines).encode())


def read_metrics(folder: Path | str) -> list[Metrics]:
    """Read the metrics of a run.

    Args:
        folder: The folder of the run.

    Returns:
        The metrics of each finished epoch; an empty list before the first.

    Raises:
        UserError: If a line is damaged.
    """
    path = Path(folder) / "metrics.jsonl"
    found = []
    for metrics, number in _read(path):
        if metrics is None:
            raise UserError(f"line {number} of {path} is damaged; remove it to go on without that epoch")
        found.append(metrics)
    return found


def _read(path: Path) -> Iterator[tuple[Metrics | None, int]]:
    """The metrics of each line and its number; None for a damaged line."""
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], start=1):
        try:
            found = json.loads(line)
            if not all(isinstance(value, int | float) for value in (found["epoch"], *found.values())):
                found = None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            found = None
        yield found, number
