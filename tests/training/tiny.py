"""Runs that take a fraction of a second, and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from advsphere import provenance
from advsphere.data import Dataset, ImageSet, load
from advsphere.data.crops import ResizedCrops
from advsphere.distributed import World
from advsphere.losses import cross_entropy
from advsphere.objectives import Criterion, Objective, Standard
from advsphere.recipes import recipe
from advsphere.runs import build as building
from advsphere.runs.config import Config
from advsphere.runs.train import train
from advsphere.training import Hooks, Stopped, Trainer, TrainSettings, load_checkpoint
from advsphere.training.checkpoint import section
from tests.laws import conv_net

TIME_FIELDS = {"seconds", "images_per_second"}
"""The only ones in which two equal runs may differ."""


def few_images(n: int = 22) -> ImageSet:
    """(n, 3, 8, 8) uint8 images of four classes that a network can tell apart, for `conv_net`."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(n) % 4
    pixels = torch.randint(0, 196, (n, 3, 8, 8), generator=generator) + 20 * labels[:, None, None, None]
    return ImageSet(pixels.to(torch.uint8), labels, ("a", "b", "c", "d"))


def tiny_trainer(
    folder: Path,
    objective: Objective,
    *,
    criterion: Criterion = cross_entropy,
    images: ImageSet | None = None,
    hooks: Hooks | None = None,
    model: nn.Module | None = None,
    make_optimizer: Callable[[Any], optim.Optimizer] | None = None,
    world: World = World(),
    **settings: Any,
) -> Trainer:
    """`conv_net` for two epochs of three batches (8, 8 and 6 images), in float32 unless `settings` say otherwise."""
    chosen = {"epochs": 2, "batch_size": 8, "lr": 0.01, "precision": "float32"} | settings
    return Trainer(
        conv_net() if model is None else model,
        objective,
        criterion,
        few_images() if images is None else images,
        settings=TrainSettings(**chosen),
        folder=folder,
        hooks=hooks,
        optimizer=make_optimizer,
        world=world,
    )


def tiny_config(name: str, **settings: Any) -> Config:
    """A digits recipe for the images of `few_digits`: two epochs of two batches (16 and 9 images), short attacks."""
    config = recipe(f"digits-{name}")
    objective: Any = config.objective
    if hasattr(objective, "steps"):
        objective = replace(objective, steps=min(objective.steps, 2))
    if hasattr(objective, "repeats"):
        objective = replace(objective, repeats=3)
    chosen = {"epochs": 2, "batch_size": 16} | settings
    return replace(
        config,
        data=replace(config.data, validation=15),
        objective=objective,
        training=replace(config.training, **chosen),
    )


def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every run load 40 digits to train on and 20 to test on, whatever the config's data; nor does it ask
    git for the commit, which takes longer than the training.
    """
    digits = load("digits")
    few = Dataset(digits.train.first(40), digits.test.first(20))
    monkeypatch.setattr(building, "load", lambda name, root=None, **_: few)
    monkeypatch.setattr(provenance, "commit", lambda: "0123456789ab")
    monkeypatch.setattr(building, "load_test", lambda name, root=None, **_: few.test)


def stopping_after(steps: int) -> Callable[[], bool]:
    """A `stop` hook that says so after this many optimiser steps."""
    taken = 0

    def stop() -> bool:
        nonlocal taken
        taken += 1
        return taken == steps

    return stop


def train_in_pieces(config: Config, folder: Path, *, steps: int) -> int:
    """Train to the end, stopped after every so many steps and resumed; returns how often it was stopped."""
    for stops in range(1000):
        try:
            train(config, folder, resume=stops > 0, stop=stopping_after(steps))
        except Stopped:
            continue
        return stops
    raise AssertionError("it never ends")


def left_behind(folder: Path) -> dict[str, Any]:
    """All that a run wrote, but for the time it took: tensors as bytes by name, numbers, the lines of metrics.jsonl."""
    found: dict[str, Any] = {}
    for which in ("last", "best"):
        tensors, meta = load_checkpoint(folder / f"{which}.safetensors")
        found |= {f"{which} {name}": (t.dtype, t.flatten().tolist()) for name, t in tensors.items()}
        found |= {f"{which} {key}": without_time(value) for key, value in without_time(meta).items()}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return found | {f"line {i}": without_time(json.loads(line)) for i, line in enumerate(lines)}


def without_time(value: Any) -> Any:
    return {k: v for k, v in value.items() if k not in TIME_FIELDS} if isinstance(value, dict) else value


def assert_same_run(one: Path, other: Path) -> None:
    a, b = left_behind(one), left_behind(other)
    differing = sorted(key for key in a.keys() | b.keys() if key not in a or key not in b or a[key] != b[key])
    assert not differing, f"{len(differing)} differ: {differing[:9]}"


def names_in(folder: Path) -> set[str]:
    """The names of a run's files; TensorBoard's folder counts as one."""
    return {path.name for path in folder.iterdir()}


State = dict[str, Tensor]
"""A network's, by name."""


def state(model: nn.Module) -> State:
    return {name: t.clone() for name, t in model.state_dict().items()}


def kept(folder: Path, which: str, part: str = "model") -> State:
    """What a run's last or best checkpoint holds of its network."""
    return section(part, load_checkpoint(folder / f"{which}.safetensors")[0])


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@dataclass(frozen=True, eq=False)
class Noted(ImageSet):
    """Images that note which were asked for."""

    asked: list[list[int]] = field(default_factory=list)

    def stored(self, index: Tensor, crops: ResizedCrops | None = None) -> tuple[Tensor, Tensor]:
        self.asked.append(index.tolist())
        return super().stored(index, crops)


def order_of(folder: Path, **settings: Any) -> list[list[int]]:
    """The numbers of the images in each batch of a run."""
    few = few_images()
    images = Noted(few.pixels, few.labels, few.classes)
    tiny_trainer(folder, Standard(), images=images, **settings).fit()
    return images.asked
