"""Parts "table 3", "speedrun" and "official": trainings and evaluations at full size."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import auto_attack
from comparison import Options
from gpu_session import Setting, Step

from advsphere.cli import evaluate as command
from advsphere.evaluation import Effort
from advsphere.evaluation.judge import exact_float32
from advsphere.files import write_atomically
from advsphere.recipes import recipe
from advsphere.reproduce import results
from advsphere.reproduce.collecting import evaluated
from advsphere.reproduce.jobs import run_name
from advsphere.runs.config import Config
from advsphere.runs.target import EvaluationTarget
from advsphere.runs.train import train

STORED = "results.jsonl"
"""The evaluations as `advsphere results` stores them."""
FURTHER = (
    *(("fastat-m-he", 0), ("freeat", 0), ("freeat-he", 0), ("freeat-m-he", 0)),
    *((method, seed) for seed in (1, 2) for method in ("fastat", "fastat-he")),
)
"""Methods of Table 3 and seeds, after the first pair."""
SPEEDRUNS = {"speedrun-he": 235.0, "speedrun-50-he": 390.0, "speedrun": 235.0, "speedrun-50": 390.0}
"""The recipes that aim at a given accuracy in the least time, and the seconds that their trainings are expected to
take: 9 and 15 passes where FastAT takes 5.
"""


def first() -> Iterator[Step]:
    """FastAT without and with HE."""
    for method in ("fastat", "fastat-he"):
        yield from _measured(method, 0)


def further() -> Iterator[Step]:
    """The official AutoAttack, the speedruns, the other methods of Table 3, and further seeds."""
    yield Step("official/AutoAttack on 250 images", 240, official, after="table 3/train fastat seed 0")
    for method, seconds in SPEEDRUNS.items():
        yield from _measured(method, 0, "speedrun", seconds)
    for method, seed in FURTHER:
        yield from _measured(method, seed)


def _measured(method: str, seed: int, part: str = "table 3", seconds: float | None = None) -> Iterator[Step]:
    """A training and its evaluations. FreeAT takes 8 steps of 3 passes where FastAT takes one of 5, in a third of the
    epochs.
    """
    label = f"{method} seed {seed}"
    trained = f"{part}/train {label}"
    if seconds is None:
        seconds = 130 if method.startswith("fast") else 210
    yield Step(trained, seconds, partial(training, method, seed), made=partial(checkpoint, method, seed))
    yield Step(f"{part}/PGD-50 {label}", 12, partial(evaluation, method, seed, "paper"), after=trained)
    yield Step(f"{part}/AutoAttack {label}", 90, partial(evaluation, method, seed, "autoattack"), after=trained)


def config_of(method: str, seed: int, setting: Setting) -> Config:
    """The recipe, in a rehearsal for one epoch of a small network on the digits."""
    config = recipe(f"cifar10-{method}")
    training, data = replace(config.training, seed=seed), replace(config.data, root=setting.data)
    if setting.tiny:
        small = recipe("digits-standard")
        training = replace(training, epochs=1, batch_size=256)
        return replace(config, data=small.data, model=small.model, training=training)
    return replace(config, data=data, training=training)


def folder_of(method: str, seed: int, setting: Setting) -> Path:
    return setting.work / "runs" / run_name(config_of(method, seed, setting))


def checkpoint(method: str, seed: int, setting: Setting) -> Path:
    return folder_of(method, seed, setting) / "best.safetensors"


def training(method: str, seed: int, setting: Setting) -> dict[str, Any]:
    """Train, or go on from the last checkpoint; stops in time for it to be written."""
    said: list[dict[str, Any]] = []
    train(
        config_of(method, seed, setting),
        folder_of(method, seed, setting),
        resume=True,
        device=setting.device,
        on_epoch=said.append,
        stop=lambda: setting.left < 0,
    )
    return {"epochs": said}


def evaluation(method: str, seed: int, suite: str, setting: Setting) -> dict[str, Any]:
    """A suite on the first 1,000 test images, within what is left of the budget."""
    options = command.Options(
        subject=EvaluationTarget(run=folder_of(method, seed, setting), n=8 if setting.tiny else 1000),
        suite=suite,
        effort=Effort(steps=2) if setting.tiny else Effort(),
        # A budget makes a suite cumulative, which AutoAttack is anyway.
        budget=(2.0 if setting.tiny else max(setting.left - 10, 5.0)) if suite == "autoattack" else None,
    )
    found, folder = command.evaluated(options)
    name = None if setting.data is None else "CIFAR-10 (JPEG)"
    results.add(setting.out / STORED, [evaluated(folder, data_name=name)])
    rows = {row.name: {"k": row.k, "n": row.n, "seconds": round(row.seconds, 2)} for row in found.rows}
    return {"rows": rows, "flags": found.flags, "ledger": found.ledger}


def official(setting: Setting) -> dict[str, Any]:
    """AutoAttack beside the official code, both in float32; what the benchmark prints is a file."""
    said = io.StringIO()
    options = Options(
        run=folder_of("fastat", 0, setting),
        peer=setting.peer,
        n=6 if setting.tiny else 250,
        eps=0.9 if setting.tiny else None,
        float32=True,
    )
    try:
        with redirect_stdout(_Both(said)), exact_float32():
            auto_attack.main(options)
    finally:
        write_atomically(setting.out / "official.txt", said.getvalue().encode())
    return {"table": [line for line in said.getvalue().splitlines() if line.startswith("|")]}


class _Both(io.TextIOBase):
    """Writes to a copy too."""

    def __init__(self, copy: io.StringIO) -> None:
        self.copy, self.shown = copy, sys.stdout

    def write(self, text: str) -> int:
        self.copy.write(text)
        return self.shown.write(text)
