"""What the benchmarks share: the target, the peer, the clock and the table.

A benchmark runs us and a named peer in one process, on one model, on the same images, in turns, and prints ratios.
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from advsphere.classifier import Classifier, fooled, frozen
from advsphere.machine import low_precision, processor
from advsphere.provenance import commit
from advsphere.runs.folder import load_run
from advsphere.threat import ThreatModel

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Us against a peer."""

    run: Path
    """A folder that `advsphere train` wrote."""
    peer: Path | None = None
    """Where the peer's package lies, if it is not installed."""
    n: int = 200
    """How many test images, from the first on."""
    eps: float | None = None
    """Radius in pixel units, e.g. 4/255; the run's own by default."""
    threads: int = 1
    batch_size: int = 250
    seed: int = 0
    float32: bool = False
    """Search in float32 too, though the machine computes in bfloat16."""


class Target(NamedTuple):
    """What both sides attack. plain: the same network for the peer, in PyTorch's standard memory layout, its weights
    taking gradients, as its users have it. dtype: what we search in, None for float32.
    """

    model: nn.Module
    plain: nn.Module
    x: Tensor
    y: Tensor
    threat: ThreatModel
    dtype: torch.dtype | None

    @classmethod
    def of(cls, options: Options) -> Self:
        torch.set_num_threads(options.threads)
        run = load_run(options.run)
        x, y = run.test.batch(torch.arange(min(options.n, len(run.test)), device=run.test.labels.device))
        own = run.config.threat
        threat = own if options.eps is None else ThreatModel(norm=own.norm, eps=options.eps, bounds=own.bounds)
        plain = copy.deepcopy(run.model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return cls(run.model, plain, x, y, threat, None if options.float32 else low_precision(x.device))

    def right(self) -> Tensor:
        """The positions of the images that are classified as their label before any attack."""
        with frozen(self.model) as exact:
            return (~misclassified(exact, self.x, self.y)).nonzero().squeeze(1)

    def describe(self) -> str:
        """One line for the head of a table: the machine and the question."""
        return (
            f"{processor()}, {torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}; torch "
            f"{torch.__version__}, commit {commit()}; {self.threat.norm} {self.threat.eps * 255:g}/255, "
            f"{len(self.x)} images, our search in {str(self.dtype or torch.float32).removeprefix('torch.')}"
        )


class Seconds(NamedTuple):
    """wall: what a user waits. cpu: what the process computed, which other work on the machine disturbs less."""

    wall: float = 0.0
    cpu: float = 0.0

    @classmethod
    def now(cls) -> Self:
        return cls(time.perf_counter(), time.process_time())

    def minus(self, earlier: Seconds) -> Seconds:
        return Seconds(self.wall - earlier.wall, self.cpu - earlier.cpu)

    def plus(self, more: Seconds) -> Seconds:
        return Seconds(self.wall + more.wall, self.cpu + more.cpu)

    def __str__(self) -> str:
        return f"{self.wall:.1f} ({self.cpu:.1f})"


def timed(call: Callable[[], T]) -> tuple[T, Seconds]:
    began = Seconds.now()
    result = call()
    return result, Seconds.now().minus(began)


def ratio(theirs: Seconds, ours: Seconds) -> str:
    return f"{theirs.wall / ours.wall:.2f} ({theirs.cpu / ours.cpu:.2f})"


class Counted:
    """A classifier that notes the size of each batch it is given."""

    def __init__(self, classify: Classifier) -> None:
        self.classify = classify
        self.sizes = list[int]()

    def __call__(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.classify(x)


@torch.no_grad()
def misclassified(classify: Classifier, x: Tensor, y: Tensor, batch_size: int = 250) -> Tensor:
    """(B,) bool, in batches."""
    parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
    return torch.cat([fooled(classify(a), b) for a, b in parts])


def peer(module: str, folder: Path | None, cure: str) -> ModuleType:
    """A module of the peer, from its folder or as installed; leaves with the cure in one line where there is none."""
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SystemExit(f"no {module} to compare with ({error}); {cure}") from None


def show(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print(table(header, rows), flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, with columns lined up."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
