"""Models and images whose robust accuracy is known exactly, and ways to break a ledger."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from advsphere.attacks import pgd
from advsphere.evaluation import AttackSpec
from advsphere.evaluation.results import FORMAT
from advsphere.files import content_checksum, read_json
from advsphere.losses import margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel

SHAPE = (1, 3, 3)
THREAT = ThreatModel(norm="linf", eps=0.1)


class Known(NamedTuple):
    """A classifier with images and labels of which all but a few are classified as labelled."""

    model: nn.Module
    images: Tensor
    labels: Tensor


def linear(n: int = 60, *, classes: int = 2, wrong: int = 6) -> Known:
    """A linear model; every `n / wrong`-th label is wrong. Many pixels are close to 0 or 1, so the box matters."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 9, classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(classes, 9, generator=generator))
        images = torch.rand(n, *SHAPE, generator=generator)
        logits = images.flatten(1) @ model[1].weight.T
        model[1].bias.copy_(-logits.mean(0))
        labels = model(images).argmax(1)
    labels[:: n // wrong] = (labels[:: n // wrong] + 1) % classes
    return Known(model.eval(), images, labels)


def robust(known: Known, threat: ThreatModel) -> Tensor:
    """(N,) bool: whether any allowed perturbation changes the prediction of a linear model under linf.

    The margin over each other class is linear in the pixels, so the worst case moves every pixel to that end of its
    interval (ball and box) which lowers it most.
    """
    weight, bias = known.model[1].weight.detach().double(), known.model[1].bias.detach().double()  # type: ignore[index]
    x, y = known.images.flatten(1).double(), known.labels
    low, high = (x - threat.eps).clamp(min=0), (x + threat.eps).clamp(max=1)
    result = torch.ones(len(x), dtype=torch.bool)
    for other in range(len(weight)):
        d, offset = weight[y] - weight[other], bias[y] - bias[other]
        worst = torch.minimum(d * low, d * high).sum(1) + offset
        result &= (worst > 0) | (y == other)
    return result


def pgd_spec(name: str = "PGD", *, threat: ThreatModel = THREAT, steps: int = 20, **options: Any) -> AttackSpec:
    settings = {"threat": threat, "steps": steps, "step_size": threat.eps / 4, "until_fooled": True} | options
    return AttackSpec(name, partial(pgd, **settings))


FEW = (pgd_spec("PGD-5", steps=5), pgd_spec("margin PGD-5", steps=5, loss=margin))
"""Enough attacks to see two rows, and quick."""


def tiny() -> nn.Module:
    """A model to be called by its name: two classes of 6x6 pixels, by their brightness."""
    model = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 108, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(-1, 1, 216).view(2, 108))
        model[1].bias.copy_(-0.5 * model[1].weight.sum(1))
    return model.eval()


def leave_the_ball(model: nn.Module, x: Tensor, y: Tensor, /, *, rng: Rng | None = None) -> Tensor:
    """Fools everything, by breaking the rules."""
    return 1 - x


def do_nothing(model: nn.Module, x: Tensor, y: Tensor, /, *, rng: Rng | None = None) -> Tensor:
    return x.clone()


class Fused(nn.Module):
    """A model that fails on its `calls`-th call from now, as if the power went; None never fails."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls: int | None = None
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        if self.calls is not None:
            self.calls -= 1
            if self.calls == 0:
                raise KeyboardInterrupt
        logits: Tensor = self.model(x)
        return logits


def change(ledger: Path, sql: str, *values: object) -> None:
    """Edit a ledger behind its back."""
    with sqlite3.connect(ledger) as db:
        assert db.execute(sql, values).rowcount > 0
    db.close()


def forge(path: Path, **entries: Mapping[str, object] | object) -> None:
    """Change entries of an evaluation's file and make its checksum fit again."""
    data = read_json(path, FORMAT)
    for key, value in entries.items():
        data[key] = {**data[key], **value} if isinstance(value, Mapping) else value
    path.write_text(json.dumps(data | {"checksum": content_checksum(data)}))
