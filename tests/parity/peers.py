"""The released attack packages that ours are compared with, each attack as a function of (model, x, y, seed).

They live in a folder of their own, `peers` in the virtual environment, where `make test` puts what peers.txt lists.
Nothing but `package` looks there. Settings are those of our own rows in `test_peers_parity.py`: same radius, steps,
step sizes and queries, whatever a package's own defaults are.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn

FOLDER = Path(sys.prefix) / "peers"
UNUSED = ("visdom", "requests", "git")
"""What the packages import at the top and no attack uses: plots, and downloads of models."""

Peer = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""(model, x, y, seed) -> x_adv."""

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
ORDERS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}


@contextmanager
def _importable() -> Iterator[None]:
    absent = [name for name in UNUSED if find_spec(name) is None]
    sys.path.append(str(FOLDER))  # the end: what is installed for us goes first
    sys.modules.update({name: MagicMock() for name in absent})
    try:
        yield
    finally:
        sys.path.remove(str(FOLDER))
        for name in absent:
            del sys.modules[name]


@cache
def package(name: str) -> ModuleType:
    """The package or module of that name; the test that asks is skipped where it is not installed."""
    with _importable():
        if find_spec(name.split(".")[0]) is None:
            pytest.skip(f"there is no {name} in {FOLDER}, where `make test` installs it")
        return importlib.import_module(name)


@contextmanager
def alone(seed: int) -> Iterator[None]:
    """The peers draw from torch's global generator, and some print; neither gets out of here."""
    with torch.random.fork_rng(devices=[]), redirect_stdout(StringIO()):
        torch.manual_seed(seed)
        yield


def torchattacks(name: str, **settings: Any) -> Peer:
    """A class of torchattacks; those that take a seed get it."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        peer = getattr(package("torchattacks"), name)(model, **settings)
        if hasattr(peer, "seed"):
            peer.seed = seed
        return peer(x, y)

    return attack


def foolbox(name: str, eps: float | None, **settings: Any) -> Peer:
    """A class of foolbox; without eps, a minimal-norm attack. An image that it could not fool comes back as it was.

    (Its Carlini-Wagner returns a black image there.)
    """

    def attack(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        peers = package("foolbox")
        wrapped = peers.PyTorchModel(model, bounds=(0, 1))
        x_adv = getattr(peers.attacks, name)(**settings).run(
            wrapped, x, peers.criteria.Misclassification(y), **({} if eps is None else {"epsilon": eps})
        )
        black = x_adv.flatten(1).amax(1) == 0
        return torch.where(black.view(-1, 1, 1, 1), x, x_adv)

    return attack


def adv_lib(name: str, **settings: Any) -> Peer:
    """A function of adv-lib."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        return getattr(package("adv_lib.attacks"), name)(model=model, inputs=x, labels=y, **settings).detach()

    return attack


def official(part: str, name: str, norm: str, eps: float, **settings: Any) -> Peer:
    """A class of the official AutoAttack code, from its module `part`."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        make = getattr(package(f"pyautoattack.{part}"), name)
        return make(model, norm=NORMS[norm], eps=eps, seed=seed, device="cpu", **settings).perturb(x, y)

    return attack
