"""A training step of each objective, as a ratio to a plain loop of the official codes (`plain_loop.py`).

    python benchmarks/training.py --threads 2

Our side is the loop of `advsphere train`, in the precision, layout and folding that it chooses on this machine. Both
sides take steps in turn on the same batches; making the batches is not timed. A row is kept in training.jsonl as soon
as it is measured, and replaces an earlier row of the same processor. The README's table is made from all rows.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from comparison import Seconds, table, timed
from cost import Operations
from plain_loop import PlainLoop
from torch import Tensor, nn
from torchvision.models import resnet18

from advsphere.cli.arguments import parse
from advsphere.data import Augment, ImageSet
from advsphere.errors import UserError
from advsphere.hypersphere import HypersphereConfig
from advsphere.machine import bfloat16_instructions, low_precision, processor
from advsphere.objectives import ALP, PGDAT, TRADES, FastAT, FreeAT, Objective, Standard
from advsphere.provenance import commit
from advsphere.reproduce.results import write_between
from advsphere.runs.build import assemble
from advsphere.runs.config import Config, ModelSettings
from advsphere.training import Hooks, Stopped, Trainer, TrainSettings

HERE = Path(__file__).parent
OBJECTIVES: dict[str, Objective] = {
    "PGD-AT": PGDAT(),
    "TRADES": TRADES(),
    "ALP": ALP(),
    "FastAT": FastAT(),
    "FreeAT": FreeAT(),
    "standard": Standard(),
}
SPHERE = HypersphereConfig()
LR = 0.01


@dataclass(frozen=True, kw_only=True)
class Arguments:
    only: tuple[str, ...] = ()
    """Parts to measure, such as resnet-18/PGD-AT or wrn-10-2/TRADES+HE; all by default."""
    threads: int = torch.get_num_threads()
    repeats: int = 5
    batch_size: int = 64
    """The official codes take 128, which doubles the time and changes the ratios little."""
    minutes: float = 9.0
    """No row is begun later than this. The longest takes about three minutes on two cores."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Ours; the plain loop is in float32."""
    rows: Path = HERE / "training.jsonl"
    page: Path = HERE / "README.md"
    """The page whose table is written anew."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one row compares."""

    network: Literal["resnet-18", "wrn-10-2"]
    objective: str
    sphere: bool

    def __str__(self) -> str:
        return f"{self.network}/{self.objective}{'+HE' if self.sphere else ''}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measurement. plain, ours: seconds of each step, by the clock and by the processor. plain_gflop, ours_gflop:
    operations that one step executes.
    """

    machine: str
    precision: str
    versions: str
    limits: dict[str, float]
    network: str
    objective: str
    sphere: bool
    batch_size: int
    plain: list[Seconds]
    ours: list[Seconds]
    plain_gflop: float
    ours_gflop: float

    @property
    def most(self) -> float:
        """The ratio if ours computed as fast as a matrix product in its precision."""
        return median(each.wall for each in self.plain) * self.limits[self.precision] / self.ours_gflop

    @property
    def ratios(self) -> list[Seconds]:
        pairs = zip(self.plain, self.ours, strict=True)
        return [Seconds(theirs.wall / mine.wall, theirs.cpu / mine.cpu) for theirs, mine in pairs]


def parts() -> Iterator[Part]:
    """The most informative parts first."""
    yield Part(network="resnet-18", objective="PGD-AT", sphere=False)
    for objective in OBJECTIVES:
        for sphere in (False, True):
            yield Part(network="wrn-10-2", objective=objective, sphere=sphere)
    yield Part(network="resnet-18", objective="FastAT", sphere=False)
    yield Part(network="resnet-18", objective="PGD-AT", sphere=True)
    yield Part(network="resnet-18", objective="TRADES", sphere=False)


def small_resnet() -> nn.Module:
    """ResNet-18 for images of 32 pixels: a first convolution of 3x3 without stride, and no pooling after it."""
    network = resnet18(num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return network


class Turns:
    """Takes a step of the plain loop before each step of ours, and times both. The first turn is to warm up: a network
    is tried before its first batch. In the second, operations are counted.
    """

    def __init__(self, loop: PlainLoop, x: Tensor, y: Tensor, repeats: int) -> None:
        self.loop, self.x, self.y, self.repeats = loop, x, y, repeats
        self.plain, self.ours = list[Seconds](), list[Seconds]()
        self.gflop: tuple[float, float] | None = None
        self.running, self.warm = ExitStack(), False

    def before_step(self) -> None:
        if not self.warm:
            self.loop.step(self.x, self.y)
            return
        if self.gflop is None:
            with Operations() as self.theirs:  # type: ignore[no-untyped-call]
                self.loop.step(self.x, self.y)
            self.mine = self.running.enter_context(Operations())  # type: ignore[no-untyped-call]
            return
        self.plain.append(timed(lambda: self.loop.step(self.x, self.y))[1])
        self.began = Seconds.now()

    def stop(self) -> bool:
        if not self.warm:
            self.warm = True
        elif self.gflop is None:
            self.running.close()
            self.gflop = self.theirs.total / 1e9, self.mine.total / 1e9
        else:
            self.ours.append(Seconds.now().minus(self.began))
        return len(self.ours) == self.repeats


def measured(part: Part, options: Arguments, limits: dict[str, float]) -> Row:
    objective = OBJECTIVES[part.objective]
    n = options.batch_size * (options.repeats + 2)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (n,), generator=generator)
    images = ImageSet(pixels, labels, tuple("0123456789"))
    settings = TrainSettings(
        epochs=1, batch_size=options.batch_size, lr=LR, precision=options.precision, augment=Augment(),
        checkpoint_minutes=60.0,
    )  # fmt: skip
    config = Config(
        recipe="benchmark",
        model=ModelSettings(name=part.network, statistics="cifar10"),
        objective=objective,
        sphere=SPHERE if part.sphere else None,
        training=settings,
    )
    mine = assemble(config, images, network=small_resnet() if part.network == "resnet-18" else None)
    theirs = copy.deepcopy(mine.model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    x, y = images.batch(torch.arange(options.batch_size))
    turns = Turns(PlainLoop(theirs, objective, config.sphere, LR), x, y, options.repeats)

    def before_step(progress: float) -> None:
        turns.before_step()
        mine.before_step(progress)

    hooks = Hooks(before_step=before_step, shift=mine.shift, stop=turns.stop)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(mine.model, objective, mine.criterion, images, settings=settings, folder=folder, hooks=hooks)
        with suppress(Stopped):
            trainer.fit()
    assert turns.gflop is not None
    return Row(
        machine=f"{machine()}, {options.threads} thread(s)",
        precision=str(trainer.dtype or torch.float32).removeprefix("torch."),
        versions=f"torch {torch.__version__}, commit {commit()}",
        limits=limits,
        **asdict(part),
        batch_size=options.batch_size,
        plain=turns.plain,
        ours=turns.ours,
        plain_gflop=turns.gflop[0],
        ours_gflop=turns.gflop[1],
    )


def machine() -> str:
    """The processor and the instructions that PyTorch uses of it."""
    used = os.environ.get("ONEDNN_MAX_CPU_ISA")
    limited = f", limited to {used}" if used else ""
    bfloat16 = "" if used else f", {bfloat16_instructions() or 'no bfloat16'}"
    return f"{processor()} ({torch.backends.cpu.get_cpu_capability()}{bfloat16}{limited})"


def matrix_limits(precision: str, size: int = 1024, budget: float = 1.0) -> dict[str, float]:
    """GFLOP/s of a matrix product in both sides' precisions, the fastest within `budget` seconds, of at least two."""
    found = {}
    ours = torch.bfloat16 if precision == "bfloat16" else low_precision(torch.device("cpu"))
    for dtype in {torch.float32, torch.float32 if precision == "float32" or ours is None else ours}:
        a, spent = torch.rand(size, size).to(dtype), list[float]()
        while len(spent) < 2 or sum(spent) < budget:
            spent.append(timed(lambda: a @ a)[1].wall)  # noqa: B023
        found[str(dtype).removeprefix("torch.")] = 2 * size**3 / min(spent) / 1e9
    return found


def read(path: Path) -> list[Row]:
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        row: dict[str, Any] = json.loads(line)
        rows.append(Row(**row | {side: [Seconds(*each) for each in row[side]] for side in ("plain", "ours")}))
    return rows


def keep(row: Row, path: Path) -> None:
    """Add the row to the file, in place of an earlier one of the same machine and part."""
    names = ("machine", "precision", "network", "objective", "sphere", "batch_size")
    others = [r for r in read(path) if any(getattr(r, name) != getattr(row, name) for name in names)]
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in [*others, row]))


def spread(values: Sequence[Seconds], part: Literal["wall", "cpu"] = "wall") -> str:
    """The median, least and most."""
    numbers = [getattr(value, part) for value in values]
    return f"{median(numbers):.2f} ({min(numbers):.2f}-{max(numbers):.2f})"


def rate(gflop: float, values: Sequence[Seconds]) -> str:
    return f"{gflop / median(value.wall for value in values):.0f}"


def page(rows: list[Row]) -> str:
    """A table for each machine, with its limits."""
    order = [str(part) for part in parts()]
    tables = []
    for name, group in groupby(sorted(rows, key=lambda row: row.machine), key=lambda row: row.machine):
        here = sorted(group, key=lambda row: (order.index(str(_part(row))), row.batch_size, row.precision))
        kinds = {kind: [row.limits[kind] for row in here if kind in row.limits] for kind in ("float32", "bfloat16")}
        limits = [f"{median(rates):.0f} GFLOP/s in {kind}" for kind, rates in kinds.items() if rates]
        tables.append(
            f"**{name}**, {len(here[0].ours)} repetitions, {here[0].versions}. A product of 1024 x 1024 matrices "
            f"reaches {' and '.join(limits)}.\n\n"
            + table(
                [
                    *("", "batch", "ours in", "plain loop, s", "ours, s", "ratio", "ratio of cpu", "at most"),
                    *("plain loop, GFLOP/s", "ours, GFLOP/s"),
                ],
                [
                    [
                        str(_part(row)),
                        row.batch_size,
                        row.precision,
                        spread(row.plain),
                        spread(row.ours),
                        spread(row.ratios),
                        spread(row.ratios, "cpu"),
                        f"{row.most:.1f}",
                        rate(row.plain_gflop, row.plain),
                        rate(row.ours_gflop, row.ours),
                    ]
                    for row in here
                ],
            )
        )
    return "\n\n".join(tables)


def _part(row: Row) -> Part:
    return Part(network=row.network, objective=row.objective, sphere=row.sphere)  # type: ignore[arg-type]


def main(options: Arguments) -> None:
    torch.set_num_threads(options.threads)
    until = time.monotonic() + 60 * options.minutes
    wanted = [part for part in parts() if not options.only or str(part) in options.only]
    if unknown := [name for name in options.only if name not in map(str, parts())]:
        raise UserError(f"there is no part {unknown[0]}; choose among {', '.join(map(str, parts()))}")
    limits = matrix_limits(options.precision)
    print(f"{machine()}, {options.threads} thread(s), load {os.getloadavg()[0]:.1f}; limits {limits}", flush=True)
    for part in wanted:
        if time.monotonic() > until:
            print(f"{part} and what follows it are not measured: {options.minutes:g} minutes are over", flush=True)
            break
        row = measured(part, options, limits)
        keep(row, options.rows)
        print(f"{part}: plain {spread(row.plain)} s, ours {spread(row.ours)} s, ratio {spread(row.ratios)}", flush=True)
    marks = {"begin": "<!-- training -->", "end": "<!-- /training -->"}
    write_between(options.page, page(read(options.rows)), **marks)


if __name__ == "__main__":
    main(parse(Arguments, sys.argv[1:], prog="training.py"))
