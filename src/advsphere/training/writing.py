"""Checkpoints that don't hold training up: copied in memory at once, written to disk beside it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from advsphere.training.checkpoint import save


class CheckpointWriter:
    """Writes checkpoints in the order they are given, one at a time, in a thread of its own. After one that could not
    be written no other is, since it may speak of that one.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: list[Future[None]] = []

    def save(self, path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """As `checkpoint.save`, of the tensors as they are now; returns before the file is written. An error in writing
        an earlier file is raised here, or by `wait`.
        """
        while len(self.pending) > 1:  # a disk that can't keep up must not fill the memory with copies
            self.pending.pop(0).result()
        copied = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
        before = self.pending[-1] if self.pending else None
        self.pending.append(self.thread.submit(_write, before, path, copied, dict(meta)))

    def wait(self) -> None:
        """Until all is written. Raises what `checkpoint.save` raised for the first that could not be."""
        pending, self.pending = self.pending, []
        for each in pending:
            each.result()


def _write(before: Future[None] | None, path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    if before is not None:
        before.result()  # raises what it raised
    save(path, tensors, meta)
