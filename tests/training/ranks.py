"""What `test_ranks` runs in worlds of one, two and three processes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from advsphere.data import Augment
from advsphere.distributed import World
from advsphere.files import tensor_checksum
from advsphere.hypersphere import AngularMargin, HypersphereConfig
from advsphere.objectives import FreeAT, Objective, Standard
from advsphere.threat import ThreatModel
from advsphere.training import Stopped, Trainer, guard
from tests.laws import OBJECTIVES, conv_net
from tests.training.tiny import few_images, stopping_after, tiny_trainer

STEPS = 5
TOGETHER: dict[str, tuple[Objective, int]] = {
    **{name: (row.objective, 1) for name, row in OBJECTIVES.items()},
    "FreeAT, l2": (FreeAT(repeats=3, threat=ThreatModel(norm="l2", eps=0.5), step_size=0.5), 1),
    "PGDAT in two parts": (OBJECTIVES["PGDAT"].objective, 2),
    "FreeAT in two parts": (OBJECTIVES["FreeAT"].objective, 2),
}
"""Objective, and in how many parts a rank takes its share."""


@dataclass(frozen=True, kw_only=True)
class Wide(Augment):
    """Its images are in float64."""

    def apply(self, pixels: Tensor, uniform: Tensor | None) -> Tensor:
        return super().apply(pixels, uniform).double()


def smooth_net() -> nn.Sequential:
    """(B, 3, 8, 8) -> (B, 4), float64, without batch norm: an example's gradient depends on no other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = nn.Conv2d(3, 6, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(54, 4)
        return nn.Sequential(*layers).double()


def trainer_of(name: str, folder: Path, world: World) -> Trainer:
    """On the sphere, in float64: two epochs of batches of 7, 7, 7 and 2. Two or three ranks divide a 7 unevenly, and
    the last batch leaves all but the first one without an image.
    """
    objective, parts = TOGETHER[name]
    net = smooth_net()
    head = HypersphereConfig(scale=6.0).attach(net)
    trainer = tiny_trainer(
        folder / name,
        objective,
        images=few_images(23),
        model=net,
        criterion=AngularMargin(head, 0.1),
        world=world,
        batch_size=7,
        accumulate=parts,
        augment=Wide(padding=1, flip=True),
        ema=0.5,
    )
    trainer.hooks.validate = lambda model: {"robust": 0.5}
    return trainer


def first_steps(folder: Path, world: World) -> None:
    """Each objective's first steps in a folder of its own."""
    for name in TOGETHER:
        trainer = trainer_of(name, folder, world)
        # One rank is told to stop, and all do.
        told = world.rank == world.size - 1
        trainer.hooks.stop = stopping_after(STEPS) if told else lambda: False
        try:
            trainer.fit()
        except Stopped:
            continue
        raise AssertionError("it was not stopped")


def go_on(folder: Path, world: World) -> None:
    """To the end from wherever another world left off."""
    for name in TOGETHER:
        trainer = trainer_of(name, folder, world)
        trainer.resume()
        trainer.fit()


def normalised(folder: Path, world: World) -> None:
    """One step with batch norm; the first rank notes whether all ended with the same network, buffers included."""
    trainer = tiny_trainer(folder / "normalised", Standard(), model=conv_net().double(), world=world, batch_size=7)
    trainer.settings = replace(trainer.settings, augment=Wide())
    trainer.hooks.stop = stopping_after(1)
    try:
        trainer.fit()
    except Stopped:
        seen = world.gather(tensor_checksum(trainer.model.state_dict()))
        if world.first:
            (folder / "seen.json").write_text(json.dumps(seen))


def collapsing(folder: Path, world: World) -> None:
    """The canary sees a collapse in the second epoch; the first rank notes with what each rank went on."""
    trainer = trainer_of("FastAT", folder / "collapsing", world)
    trainer.hooks.canary = lambda model, passes, robust: {
        guard.FGSM: 0.7,
        guard.PGD: 0.0 if trainer.cursor.epoch == 1 and not trainer.collapses else 0.6,
        guard.IMAGES: 50.0,
    }
    trainer.fit()
    seen = world.gather((repr(trainer.objective), len(trainer.collapses)))
    if world.first:
        (folder / "collapsing.json").write_text(json.dumps(seen))


def partly_used(folder: Path, world: World) -> None:
    """Two epochs with a layer whose output the loss does not use."""

    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.aside = smooth_net(), nn.Linear(4, 2).double()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.net(x)
            return logits, self.aside(logits)

    net = Twin()
    nn.init.ones_(net.aside.weight)
    nn.init.ones_(net.aside.bias)
    images = few_images(23)
    trainer = tiny_trainer(folder / "aside", Standard(), model=net, images=images, world=world, augment=Wide())
    trainer.fit()
