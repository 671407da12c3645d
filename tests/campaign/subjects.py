"""What a campaign disturbs: trainings, evaluations, corruptions and a reproduction, each in a folder and within a
second, and what each leaves behind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advsphere.cli import main as command
from advsphere.corruption.evaluate import corruption_accuracy
from advsphere.corruption.generate import generated
from advsphere.corruption.result import RECORD
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation, Ledger, evaluate
from advsphere.runs.config import Config
from advsphere.runs.train import train
from tests.corruption.pictures import pictures
from tests.evaluation.cases import THREAT, linear
from tests.evaluation.dying import KINDS
from tests.training.tiny import left_behind, tiny_config


@dataclass(frozen=True)
class Subject:
    """`run` works in a folder, and goes on there if it is called again. `outcome` reads what must be equal in the end.

    With `steps`, `run` takes a `stop` hook that is called so many times.
    """

    run: Callable[..., object]
    outcome: Callable[[Path], object]
    steps: int = 0

    def differing(self, one: Path, other: Path) -> str:
        """What two folders hold differently, and hidden files that one holds and the other does not; "" if nothing."""
        a, b = self.outcome(one), self.outcome(other)
        found = []
        if a != b:
            found = ["the outcome"]
            if isinstance(a, dict) and isinstance(b, dict):
                found = sorted(k for k in a.keys() | b.keys() if k not in a or k not in b or a[k] != b[k])[:5]
        extra = left_over(other) - left_over(one)
        return ", ".join([*map(str, found), *(f"left over: {name}" for name in sorted(extra))])


def left_over(folder: Path) -> set[str]:
    """Files that only a running process may have."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != ".lock")
    return {path.name for path in files if path.name[0] == "." or path.name.endswith("-journal")}


def training(config: Config) -> Subject:
    def run(folder: Path, stop: Callable[[], bool] = lambda: False) -> None:
        train(config, folder, resume=True, stop=stop)

    return Subject(run, left_behind, 4 * config.objective.replays)


def often(name: str, **settings: object) -> Config:
    """A recipe that writes a checkpoint after each batch."""
    return tiny_config(name, checkpoint_minutes=0.0, **settings)


TRAININGS = {
    "Standard": training(often("standard-he")),
    "PGD-AT": training(often("pgd-at")),
    "ALP": training(often("alp-he")),
    "TRADES": training(often("trades")),
    "FastAT": training(often("fastat")),
    "FreeAT": training(often("freeat")),
    "FreeAT on the sphere": training(often("freeat-he")),
    "average of weights": training(often("pgd-at-he", ema=0.7)),
    "FreeAT, average": training(often("freeat", ema=0.7)),
    "accumulation": training(often("trades-he", accumulate=2)),
    "FreeAT, accumulation": training(often("freeat-he", accumulate=2)),
}


def judged(kind: str) -> Subject:
    """An evaluation of a linear model whose robust accuracy is known."""

    def run(folder: Path) -> None:
        known = linear(40, classes=3, wrong=4)
        folder.mkdir(exist_ok=True)
        result = evaluate(*known, threat=THREAT, batch_size=20, ledger=folder / "ledger.sqlite", **KINDS[kind])
        result.save(folder / "evaluation.json")

    def outcome(folder: Path) -> object:
        with Ledger.read(folder / "ledger.sqlite") as book:
            checksum = book.checksum()
        rows = Evaluation.load(folder / "evaluation.json").to_dict()
        return {"ledger": checksum} | timeless(rows)

    return Subject(run, outcome)


UNEQUAL = {"seconds", "images_per_second", "checksum", "file_checksum", "minutes", "environments", "environment"}
"""Entries in which two equal results may differ."""


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key not in UNEQUAL}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def corrupted() -> Subject:
    """Accuracy under corruption of a small network on six pictures."""

    def run(folder: Path) -> None:
        torch.manual_seed(0)
        images = ImageSet(pictures(6, 24), torch.arange(6) % 3, ("a", "b", "c"))
        model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(108, 3)).eval()
        folder.mkdir(exist_ok=True)
        corruption_accuracy(model, images, generated(images), record=folder / RECORD)

    def outcome(folder: Path) -> object:
        return timeless(json.loads((folder / RECORD).read_text()))

    return Subject(run, outcome)


def reproduced() -> Subject:
    """One row of Table 3 on the digits: trained, attacked, stored, shown."""
    rows = Path("runs", "results", "smoke.jsonl")

    def run(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        os.chdir(folder)
        status = command(["reproduce", "table3", "--budget", "smoke", "--methods", "FastAT"])
        if status:
            logs = "\n".join(path.read_text() for path in Path("runs", "logs").glob("*.log"))
            raise UserError(f"status {status}\n{logs[-3000:]}")

    def outcome(folder: Path) -> object:
        lines = [json.loads(line) for line in (folder / rows).read_text().splitlines()]
        for line in lines:
            if line["kind"] == "training":
                del line["evidence"]
        return timeless({line["kind"]: line for line in lines})

    return Subject(run, outcome)


EVALUATIONS = {
    **{f"evaluate, {kind}": judged(kind) for kind in KINDS if kind != "within a budget"},
    "corruptions": corrupted(),
    "reproduce": reproduced(),
}
ALL = TRAININGS | EVALUATIONS
