"""What each trick of fast training buys under attack: accuracy at equal cost, and the cost of a given worst case.

    python benchmarks/speedrun.py --minutes 60
    python benchmarks/speedrun.py --report benchmarks/README.md

Every arm changes one thing of the base, a FastAT on a part of CIFAR-10, and trains on the same images in the same
number of passes. Cost is counted in passes, each a forward or a backward pass of one image, because seconds of a busy
machine mean little. A run is a line of `--rows`, and runs that have one are skipped. The arms take turns within a seed,
so that an interrupted ablation is complete for its first seeds. The worst case is taken over images that the training
did not see and the tests do not use.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from advsphere.attacks import pgd
from advsphere.cli.arguments import parse
from advsphere.data import Dataset, Images, load
from advsphere.data.augmentation import Augment
from advsphere.errors import UserError
from advsphere.evaluation import AttackSpec, evaluate
from advsphere.files import disk_errors
from advsphere.hypersphere import HypersphereConfig
from advsphere.losses import margin
from advsphere.objectives import Criterion
from advsphere.provenance import environment
from advsphere.recipes import recipe
from advsphere.reproduce.markdown import head, line, percent, points
from advsphere.reproduce.results import write_between
from advsphere.runs.config import Config
from advsphere.runs.train import train
from advsphere.schedule import Linear
from advsphere.stats import ENOUGH_SEEDS, mean_over_seeds
from advsphere.training import Metrics, Stopped, read_metrics

PASSES = 5
"""Of FastAT for an image: forward and backward to craft, forward and backward to train, of which one to the weights."""
BEGIN, END = "<!-- speedrun -->", "<!-- /speedrun -->"
CROP_AND_FLIP = Augment(padding=4, flip=True)
WARM_UP = Linear(((0.0, 0.2), (0.23, 1.0), (1.0, 0.07)))
"""The triangle of airbench (Jordan 2024, arXiv 2404.00498)."""

ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "short warm-up": {"lr_schedule": WARM_UP},
    "average of weights": {"ema": 0.98},
    "label smoothing": {"label_smoothing": 0.1},
    "alternating flips": {"augment": replace(CROP_AND_FLIP, alternate=True)},
    "cutout": {"augment": replace(CROP_AND_FLIP, cutout=8)},
    "Nesterov": {"optimizer": "torch.optim:SGD", "optimizer_arguments": {"nesterov": True}},
    "hypersphere embedding": {"sphere": HypersphereConfig(scale=15.0, margin=0.2)},
    "large batch": {"batch_size": 512, "lr": 0.4},
    "together": {
        "lr_schedule": WARM_UP,
        "ema": 0.98,
        "label_smoothing": 0.1,
        "augment": replace(CROP_AND_FLIP, alternate=True),
        "optimizer": "torch.optim:SGD",
        "optimizer_arguments": {"nesterov": True},
    },
    "float32": {"precision": "float32"},
}
"""What each arm changes."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    rows: Path = Path("benchmarks/speedrun.jsonl")
    """Where each finished run is a line."""
    runs: Path = Path("runs/speedrun")
    """Folders of the runs."""
    minutes: float | None = None
    """Stop after so long, also within a run, which then goes on from its checkpoint; no limit by default."""
    seeds: int = 3
    arms: tuple[str, ...] = tuple(ARMS)
    data: str = "cifar10"
    network: str = "wrn-10-1"
    images: int = 6000
    """To train on."""
    validation: int = 500
    """Images for the worst case after each epoch of the second half."""
    held_out: int = 1000
    """Images for the worst case at the end."""
    epochs: int = 6
    threads: int = 1
    report: Path | None = None
    """Run nothing; write the table into this page, between its marks."""


def config_of(options: Arguments, arm: str, seed: int) -> Config:
    """The config of one run."""
    base = recipe("cifar10-small-fastat")
    changes = dict(ARMS[arm])
    sphere = changes.pop("sphere", None)
    training = replace(base.training, epochs=options.epochs, augment=CROP_AND_FLIP, seed=seed)
    return replace(
        base,
        recipe=f"speedrun-{arm.replace(' ', '-')}",
        model=replace(base.model, name=options.network),
        data=replace(base.data, validation=options.validation),
        training=replace(training, **changes),
        sphere=sphere,
    )


def parts(options: Arguments) -> tuple[Dataset, Images]:
    """The images to train on, and those for the worst case: the first and the last of the training set."""
    images = load(options.data).train
    used = options.images + options.validation
    if used + options.held_out > len(images):
        raise UserError(f"{options.data} has {len(images)} images; take fewer than {used + options.held_out}")
    ours = images.first(used)
    held_out = images.take(torch.arange(len(images) - options.held_out, len(images)))
    return Dataset(ours, held_out), held_out


def attacks(config: Config) -> list[AttackSpec]:
    """PGD-20 on the margin, then on cross-entropy for those that resisted."""
    ascent = partial(pgd, threat=config.threat, steps=20, step_size=config.threat.eps / 4, until_fooled=True)
    return [
        AttackSpec("margin PGD-20", partial(ascent, loss=margin, keep="best")),
        AttackSpec("PGD-20", partial(ascent, keep="best"), after=("margin PGD-20",)),
    ]


def run(options: Arguments, arm: str, seed: int, until: float) -> dict[str, Any]:
    """Train one run, or its rest, and return its line. Raises Stopped at the time `until`."""
    config, folder = config_of(options, arm, seed), options.runs / f"{arm.replace(' ', '-')}-{seed}"
    dataset, held_out = parts(options)

    def worst(model: nn.Module, images: Images, criterion: Criterion) -> Metrics:
        if 2 * (len(read_metrics(folder)) + 1) < options.epochs:
            return {}
        return {"worst": evaluate(model, images, threat=config.threat, suite=attacks(config)[:1]).worst.accuracy}

    model = train(
        config, folder, data=dataset, resume=True, record=worst, stop=lambda: time.monotonic() > until, device="cpu"
    )
    found = evaluate(model, held_out, threat=config.threat, suite=attacks(config))
    history = [
        {"passes": PASSES * options.images * int(m["epoch"]), "worst": m["worst"]}
        for m in read_metrics(folder)
        if "worst" in m
    ]
    return {
        "arm": arm,
        "seed": seed,
        "settings": settings_of(options),
        "passes": PASSES * options.images * options.epochs,
        "history": history,
        "clean": found.clean.outcomes,
        "worst": found.worst.outcomes,
        "images": found.identity["data"],
        "environment": environment(torch.device("cpu")),
    }


def settings_of(options: Arguments) -> dict[str, Any]:
    """What all runs of a table have in common."""
    names = ("data", "network", "images", "validation", "held_out", "epochs")
    return {name: getattr(options, name) for name in names}


def read(path: Path, settings: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """The finished runs of these settings, by arm and seed."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [row for row in map(json.loads, lines) if row["settings"] == settings]
    return {(row["arm"], row["seed"]): row for row in rows}


def cost(history: Sequence[Mapping[str, float]], target: float) -> float | None:
    """The passes after which the worst case reaches the target, by straight lines between epochs; None if never."""
    before: Mapping[str, float] | None = None
    for now in history:
        if now["worst"] >= target:
            if before is None:
                return now["passes"]
            share = (target - before["worst"]) / (now["worst"] - before["worst"])
            return before["passes"] + share * (now["passes"] - before["passes"])
        before = now
    return None


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The table of all arms in Markdown, and what it was made with. Raises UserError without a finished base."""
    runs: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["arm"], {})[row["seed"]] = row
    if "base" not in runs:
        raise UserError("there is no finished run of the base yet: run the benchmark first")
    target = fmean(row["history"][-1]["worst"] for row in runs["base"].values())
    whole = next(iter(runs["base"].values()))["passes"]
    out = head(["arm", "seeds", "clean, %", "worst case, %", "against the base, points", "passes to the base's, %"])
    for arm in [name for name in ARMS if name in runs]:
        mine = runs[arm]
        clean, worst = (columns(mine.values(), which) for which in ("clean", "worst"))
        both = sorted(mine.keys() & runs["base"].keys())
        gain = worst_of(mine, both) - worst_of(runs["base"], both) if both and arm != "base" else None
        reached = [cost(mine[seed]["history"], target) for seed in sorted(mine)]
        told = ", ".join("never" if passes is None else f"{100 * passes / whole:.0f}" for passes in reached)
        cells = [percent(e.value, e.low, e.high) for e in map(mean_over_seeds, (clean, worst))]
        apart = "" if gain is None else points(*(getattr(mean_over_seeds(gain), n) for n in ("value", "low", "high")))
        out.append(line([arm, str(len(mine)), *cells, apart, told]))
    return "\n".join([*out, "", told_of(runs["base"], whole, target)])


def columns(rows: Iterable[Mapping[str, Any]], which: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(seeds, images): 1 where the image was classified correctly."""
    return np.array([[outcome == "1" for outcome in row[which]] for row in rows], dtype=np.float64)


def worst_of(runs: Mapping[int, Mapping[str, Any]], seeds: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return columns([runs[seed] for seed in seeds], "worst")


def told_of(base: Mapping[int, Mapping[str, Any]], whole: int, target: float) -> str:
    """How the numbers were made, in a few sentences."""
    first = next(iter(base.values()))
    s, e = first["settings"], first["environment"]
    return (
        f"{s['network']} trained with FastAT for {s['epochs']} epochs on {s['images']:,} images of {s['data']}, "
        f"{whole:,} passes of one image in every run; worst case of PGD-20 on the margin and on cross-entropy at 8/255 "
        f"on {s['held_out']:,} training images that no run saw. Intervals cover images and, from {ENOUGH_SEEDS} seeds "
        f"on, seeds; differences are between runs of the same seed. Last column, for each seed: the passes after which "
        f"the worst case over {s['validation']} further images reaches {target:.1%}, the base's mean at its end, as a "
        f"share of all; one such value is uncertain by several points of accuracy. Passes were counted and no seconds "
        f"measured. {e['processor']}, {e['threads']} thread(s), torch {e['torch']}, commit {e['commit']}."
    )


def main(options: Arguments) -> None:
    torch.set_num_threads(options.threads)
    settings = settings_of(options)
    if options.report is not None:
        text = table(read(options.rows, settings).values())
        write_between(options.report, text, begin=BEGIN, end=END)
        print(text)
        return
    until = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    for seed in range(options.seeds):
        for arm in options.arms:
            if (arm, seed) in read(options.rows, settings):
                continue
            row = run(options, arm, seed, until)
            with disk_errors(options.rows), options.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{arm}, seed {seed}: worst case {row['worst'].count('1') / len(row['worst']):.1%}", flush=True)


if __name__ == "__main__":
    try:
        main(parse(Arguments, sys.argv[1:], prog="speedrun.py"))
    except (UserError, Stopped) as said:
        raise SystemExit(str(said)) from None
