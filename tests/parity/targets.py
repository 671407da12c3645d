"""What the attacks are compared on: small trained networks and images that they classify rightly.

linear     ridge regression on the digits, on images that stay clear of the box: every distance is known
digits     a small convolutional network, adversarially trained
masked     the same behind a quantisation of its input, which has no gradient: only Square sees through it
cifar10    WRN-10-1, adversarially trained, on test images whose original pixels are in ../shared/data
"""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advsphere.classifier import fooled
from advsphere.data import load, load_test
from advsphere.models import build
from advsphere.models.by_name import STATISTICS
from advsphere.threat import Norm, ThreatModel
from advsphere.training.checkpoint import load as read
from tests.laws import linear_net

WEIGHTS = Path(__file__).parent / "weights"
"""Checkpoints in float16; each says in its metadata which command trained it."""
ORIGINALS = Path(__file__).parents[2] / ".." / "shared" / "data" / "cifar10-first-originals.npz.xz"


class Target(NamedTuple):
    """model: in eval mode, its weights without gradients. x, y: images that it classifies rightly. radii: at which the
    strongest attacks leave some of them and break others.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    radii: dict[Norm, float]

    def first(self, n: int) -> Target:
        return self._replace(x=self.x[:n], y=self.y[:n])

    def threat(self, norm: Norm) -> ThreatModel:
        return ThreatModel(norm=norm, eps=self.radii[norm])


def linear() -> Target:
    """Images in [0.3, 0.7], which no radius here takes to the box."""
    train, test = load("digits").train, load_test("digits")
    x, y = train.batch(torch.arange(len(train)))
    x = _clear_of_the_box(x).flatten(1).double()
    ones, goals = torch.ones(len(x), 1, dtype=x.dtype), torch.eye(10, dtype=x.dtype)[y]
    a = torch.cat([x, ones], 1)
    solved = torch.linalg.solve(a.T @ a + 0.1 * torch.eye(a.shape[1], dtype=x.dtype), a.T @ goals).T
    model = linear_net(30 * solved[:, :-1].float(), 30 * solved[:, -1].float())
    x, y = test.batch(torch.arange(300))
    return _rightly_classified(model, _clear_of_the_box(x), y, {"linf": 0.02, "l2": 0.12, "l1": 0.3})


def exact_distances(target: Target, norm: Norm) -> Tensor:
    """How far the nearest boundary of the linear target is from each image, where the box plays no part: (B,)."""
    head = target.model[-1]
    logits = target.model(target.x)
    slopes = head.weight[None] - head.weight[target.y][:, None]
    steepness = torch.linalg.vector_norm(slopes, {"linf": 1.0, "l2": 2.0, "l1": float("inf")}[norm], dim=2)
    gaps = logits.gather(1, target.y[:, None]) - logits
    return (gaps / steepness).scatter(1, target.y[:, None], torch.inf).amin(1)


def digits() -> Target:
    test = load_test("digits")
    model = _trained("digits-pgd-at", "small-cnn", "digits", 1, 8)
    return _rightly_classified(model, *test.batch(torch.arange(300)), {"linf": 0.2, "l2": 0.8, "l1": 2.0})


class Quantised(nn.Module):
    """A network that sees its pixels rounded to nine levels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network((8 * x).round() / 8)


def masked() -> Target:
    plain = digits()
    return _rightly_classified(Quantised(plain.model), plain.x, plain.y, plain.radii)


def cifar10() -> Target:
    if not ORIGINALS.exists():
        pytest.skip("no CIFAR-10 in ../shared/data")
    with lzma.open(ORIGINALS) as file, np.load(io.BytesIO(file.read())) as arrays:
        x = torch.from_numpy(arrays["test_batch_images"][:300]).float() / 255
        y = torch.from_numpy(arrays["test_batch_labels"][:300]).long()
    model = _trained("cifar10-small-fastat", "wrn-10-1", "cifar10", 3, 32)
    return _rightly_classified(model, x, y, {"linf": 8 / 255, "l2": 0.5, "l1": 8.0})


TARGETS: dict[str, Callable[[], Target]] = {f.__name__: f for f in (linear, digits, masked, cifar10)}


@cache
def target(name: str) -> Target:
    return TARGETS[name]()


def _clear_of_the_box(x: Tensor) -> Tensor:
    return 0.3 + 0.4 * x


def _trained(run: str, network: str, data: str, channels: int, size: int) -> nn.Module:
    mean, std = STATISTICS[data]
    model = build(network, num_classes=10, in_channels=channels, image_size=size, mean=mean, std=std)
    tensors, _ = read(WEIGHTS / f"{run}.safetensors")
    model.load_state_dict(tensors)
    return model


def _rightly_classified(model: nn.Module, x: Tensor, y: Tensor, radii: dict[Norm, float]) -> Target:
    model.eval().requires_grad_(False)
    right = ~fooled(model(x), y)
    return Target(model, x[right], y[right], radii)
