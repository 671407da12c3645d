"""Metrics of a run: one JSON line an epoch, and the same in TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

from advsphere.files import write_atomically
from advsphere.training.loop import Metrics


class MetricsLog:
    """Appends to `metrics.jsonl` and to TensorBoard's files in a run's folder.

    from_epoch: the epoch a resumed run begins with; lines from there on belong to work that was lost, and are dropped.
    """

    def __init__(self, folder: Path, from_epoch: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.path = folder / "metrics.jsonl"
        kept = [m for m in read_metrics(folder) if m["epoch"] <= from_epoch]
        self._write(kept)
        self._lines = kept
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_epoch + 1)

    def __call__(self, metrics: Metrics) -> None:
        self._lines.append(metrics)
        self._write(self._lines)
        for name, value in metrics.items():
            self.board.add_scalar(name, value, metrics["epoch"])
        self.board.flush()

    def _write(self, lines: list[Metrics]) -> None:
        write_atomically(self.path, "".join(json.dumps(m) + "\n" for m in lines).encode())


def read_metrics(folder: Path) -> list[Metrics]:
    """The metrics of each finished epoch; none where there is no file."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
