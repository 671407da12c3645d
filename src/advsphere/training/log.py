"""The metrics of a run: one JSON line for each epoch, and the same in TensorBoard."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

from advsphere.errors import UserError, needs
from advsphere.files import disk_errors, write_atomically
from advsphere.training.hooks import Metrics


class MetricsLog:
    """Appends to `metrics.jsonl` and to TensorBoard's files in a run's folder. Call `close` at the end.

    A resumed run drops the lines of epochs after `from_epoch`, because these epochs are repeated. Raises UserError if
    the disk is full or not writable.
    """

    def __init__(self, folder: Path, from_epoch: int = 0) -> None:
        needs("train", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.path, self.board_folder = folder / "metrics.jsonl", folder / "tensorboard"
        # A damaged line must not keep a run from being resumed.
        self.lines = [m for m, _ in _read(self.path) if m is not None and m["epoch"] <= from_epoch]
        self._write()
        self.hook, threading.excepthook = threading.excepthook, self._thread_failed
        with disk_errors(self.board_folder):
            self.board = SummaryWriter(str(self.board_folder), purge_step=from_epoch + 1)

    def __call__(self, metrics: Metrics) -> None:
        self.lines.append(metrics)
        self._write()
        with disk_errors(self.board_folder):
            for name, value in metrics.items():
                self.board.add_scalar(name, value, metrics["epoch"])
            self.board.flush()

    def close(self) -> None:
        """Close TensorBoard's file and end its thread."""
        try:
            with disk_errors(self.board_folder):
                self.board.close()
        finally:
            threading.excepthook = self.hook

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """The next call raises an error of TensorBoard's thread again, so a traceback of it is not printed."""
        ours = type(failure.thread).__module__.startswith("tensorboard.")
        if not (ours and issubclass(failure.exc_type, OSError)):
            self.hook(failure)

    def _write(self) -> None:
        write_atomically(self.path, "".join(json.dumps(m) + "\n" for m in self.lines).encode())


def read_metrics(folder: Path) -> list[Metrics]:
    """Read the metrics of a run.

    Args:
        folder: The folder of the run.

    Returns:
        The metrics of each finished epoch; an empty list before the first.

    Raises:
        UserError: If a line is damaged.
    """
    path = folder / "metrics.jsonl"
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
