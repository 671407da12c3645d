"""One row per attack and per objective. `test_laws.py` runs every law over every row, and fails where a row is missing.

Here too: the small models and images that the laws and the other tests of the core share. Nothing here touches global
randomness.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from advsphere.attacks import (
    Attack,
    Cosines,
    Guides,
    apgd,
    apgd_targeted,
    auto_attack,
    cw,
    deepfool,
    expected,
    fab,
    fab_targeted,
    feature_attack,
    fgsm,
    fmn,
    mim,
    pgd,
    rays,
    restarts,
    sigma_zero,
    square,
    surrogate,
    worst_case,
)
from advsphere.classifier import Classifier, split
from advsphere.losses import log_odds
from advsphere.objectives import ALP, NFGSM, PGDAT, TRADES, FastAT, FreeAT, Standard
from advsphere.rng import Rng
from advsphere.threat import Norm, ThreatModel

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
RADII = {"linf": 0.012, "l2": 0.12, "l1": 0.6}
"""Radii at which `conv_net` keeps about half of its predictions, so that tests see both outcomes."""


class AttackRow(NamedTuple):
    """make: (threat, steps=, step_size=) -> the attack. random: results depend on the seed. iterates: reaches the
    optimum on a linear model in any norm, given the steps. targeted: the same attack towards its target, if it can.
    until_fooled: leaves fooled examples out. search: at random, so that on a linear model it comes close to the optimum
    at best. minimal: looks for the smallest norm, and given eps returns that or the clean image. norms: those it has.
    surrogate: climbs something else than a loss of the logits, so that a linear model has no known answer for it.
    """

    make: Callable[..., Attack]
    random: bool
    iterates: bool
    targeted: Callable[..., Attack] | None
    until_fooled: bool = False
    search: bool = False
    minimal: bool = False
    norms: tuple[Norm, ...] = NORMS
    surrogate: bool = False


def _fgsm(threat: ThreatModel, *, steps: int = 1, step_size: float = 0.0, **options: Any) -> Attack:
    return partial(fgsm, threat=threat, **options)


def _pgd(threat: ThreatModel, *, steps: int = 10, step_size: float | None = None, **options: Any) -> Attack:
    return partial(
        pgd, threat=threat, steps=steps, step_size=threat.eps / 4 if step_size is None else step_size, **options
    )


def _mim(threat: ThreatModel, *, steps: int = 10, step_size: float | None = None, **options: Any) -> Attack:
    return partial(
        mim, threat=threat, steps=steps, step_size=threat.eps / 4 if step_size is None else step_size, **options
    )


def _restarts(threat: ThreatModel, **options: Any) -> Attack:
    return restarts(_pgd(threat, **options), 2)


def _worst_case(threat: ThreatModel, **options: Any) -> Attack:
    return worst_case([_fgsm(threat), _pgd(threat, **options)])


def _apgd(threat: ThreatModel, *, steps: int = 10, step_size: float | None = None, **options: Any) -> Attack:
    return partial(apgd, threat=threat, steps=steps, **options)


def _apgd_targeted(threat: ThreatModel, *, steps: int = 10, step_size: float | None = None, **options: Any) -> Attack:
    return partial(apgd_targeted, threat=threat, steps=steps, targets=2, **options)


def _square(threat: ThreatModel, *, steps: int = 10, step_size: float | None = None, **options: Any) -> Attack:
    return partial(square, threat=threat, queries=30 * steps, horizon=1000, **options)


def _deepfool(threat: ThreatModel, *, steps: int = 10, step_size: float | None = None) -> Attack:
    return partial(deepfool, **_minimal(threat), steps=steps, overshoot=0.01)


def _fab(threat: ThreatModel, *, steps: int = 10, step_size: float | None = None) -> Attack:
    return partial(fab, **_minimal(threat), steps=steps)


def _fab_targeted(threat: ThreatModel, *, steps: int = 10, step_size: float | None = None) -> Attack:
    return partial(fab_targeted, **_minimal(threat), steps=steps, targets=2)


def _cw(threat: ThreatModel, *, steps: int = 10, step_size: float | None = None, **options: Any) -> Attack:
    return partial(cw, **_minimal(threat), steps=5 * steps, step_size=0.02, rounds=8, first_c=1.0, **options)


def _fmn(threat: ThreatModel, *, steps: int = 10, step_size: float | None = None, **options: Any) -> Attack:
    return partial(fmn, **_minimal(threat), steps=2 * steps, step_size=0.2, **options)


def _sigma_zero(threat: ThreatModel, *, steps: int = 10, step_size: float | None = None) -> Attack:
    return partial(sigma_zero, bounds=threat.bounds, steps=3 * steps)


def _rays(threat: ThreatModel, *, steps: int = 10, step_size: float | None = None) -> Attack:
    return partial(rays, bounds=threat.bounds, eps=threat.eps, queries=30 * steps)


def _auto_attack(threat: ThreatModel, *, steps: int = 6, step_size: float | None = None) -> Attack:
    return auto_attack(threat, steps=steps, queries=2 * steps)


def _expected(threat: ThreatModel, **options: Any) -> Attack:
    return expected(_pgd(threat, **options), log_odds, 2)


def _surrogate(threat: ThreatModel, **options: Any) -> Attack:
    def attack(model: Classifier, x: Tensor, y: Tensor, /, *, rng: Rng | None = None) -> Tensor:
        view = Cosines(split(_network(model)).head, 10.0)
        return surrogate(model, x, y, ascent=_compacting(threat, **options), view=view, rng=rng)

    return attack


def _network(model: Classifier) -> nn.Module:
    """The network behind a frozen view."""
    return model if isinstance(model, nn.Module) else inspect.getclosurevars(model).nonlocals["model"]


def _feature(threat: ThreatModel, *, steps: int = 6, step_size: float | None = None) -> Attack:
    def attack(model: Classifier, x: Tensor, y: Tensor, /, *, rng: Rng | None = None) -> Tensor:
        return bound(model, x, y, head=split(_network(model)).head, rng=rng)

    guides = Guides(images(12, seed=77), labels(12))
    bound = partial(feature_attack, threat=threat, guides=guides, tries=3, steps=steps, step_size=threat.eps / 4)
    return attack


def _minimal(threat: ThreatModel) -> dict[str, Any]:
    return {"norm": threat.norm, "bounds": threat.bounds, "eps": threat.eps}


_compacting = partial(_pgd, until_fooled=True, keep="best")

ATTACKS: dict[str, AttackRow] = {
    "fgsm": AttackRow(_fgsm, random=False, iterates=False, targeted=partial(_fgsm, targeted=True)),
    "pgd": AttackRow(_pgd, random=True, iterates=True, targeted=partial(_pgd, targeted=True)),
    "pgd (best, until fooled)": AttackRow(
        _compacting, random=True, iterates=True, targeted=partial(_compacting, targeted=True), until_fooled=True
    ),
    "mim": AttackRow(_mim, random=False, iterates=True, targeted=partial(_mim, targeted=True)),
    "apgd": AttackRow(_apgd, random=True, iterates=False, targeted=partial(_apgd, targeted=True)),
    "apgd (three radii, until fooled)": AttackRow(
        partial(_apgd, multi_eps=True, until_fooled=True), random=True, iterates=False, targeted=None, until_fooled=True
    ),
    "apgd_targeted": AttackRow(_apgd_targeted, random=True, iterates=False, targeted=None, until_fooled=True),
    "square": AttackRow(
        _square, random=True, iterates=False, targeted=partial(_square, targeted=True), until_fooled=True, search=True
    ),
    "deepfool": AttackRow(
        _deepfool, random=False, iterates=False, targeted=None, until_fooled=True, minimal=True, norms=("linf", "l2")
    ),
    "fab": AttackRow(_fab, random=False, iterates=False, targeted=None, until_fooled=True, minimal=True),
    "fab_targeted": AttackRow(
        _fab_targeted, random=False, iterates=False, targeted=None, until_fooled=True, minimal=True
    ),
    "cw": AttackRow(
        _cw,
        random=False,
        iterates=False,
        targeted=partial(_cw, targeted=True),
        until_fooled=True,
        search=True,
        minimal=True,
        norms=("linf", "l2"),
    ),
    "fmn": AttackRow(
        _fmn, random=False, iterates=False, targeted=partial(_fmn, targeted=True), until_fooled=True, minimal=True
    ),
    "sigma_zero": AttackRow(  # l0 has no ball; its laws are in tests/attacks/test_sparse.py
        _sigma_zero, random=False, iterates=False, targeted=None, until_fooled=True, surrogate=True, norms=()
    ),
    "rays": AttackRow(  # from its few first directions it may reach nothing at all, hence a search
        _rays,
        random=False,
        iterates=False,
        targeted=None,
        until_fooled=True,
        search=True,
        minimal=True,
        norms=("linf",),
    ),
    "feature_attack": AttackRow(
        _feature, random=True, iterates=False, targeted=None, until_fooled=True, search=True, surrogate=True
    ),
    "surrogate": AttackRow(_surrogate, random=True, iterates=False, targeted=None, until_fooled=True, surrogate=True),
    "auto_attack": AttackRow(_auto_attack, random=True, iterates=False, targeted=None, until_fooled=True),
    "expected": AttackRow(_expected, random=True, iterates=True, targeted=None),
    "restarts": AttackRow(_restarts, random=True, iterates=True, targeted=None, until_fooled=True),
    "worst_case": AttackRow(_worst_case, random=True, iterates=True, targeted=None, until_fooled=True),
}
"""The key's first word is the public name in `advsphere.attacks`."""


class ObjectiveRow(NamedTuple):
    """objective: with steps that a test can afford. forwards: of its craft, for each example. random: its craft is.
    reach: how far from the clean image it crafts, in radii, with steps of half a radius.
    """

    objective: Any
    forwards: int
    random: bool
    reach: float = 1.0


OBJECTIVES: dict[str, ObjectiveRow] = {
    "Standard": ObjectiveRow(Standard(), forwards=0, random=False),
    "PGDAT": ObjectiveRow(PGDAT(steps=3), forwards=3, random=True),
    "ALP": ObjectiveRow(ALP(steps=4), forwards=4, random=True),
    "TRADES": ObjectiveRow(TRADES(steps=3), forwards=4, random=True),
    "FastAT": ObjectiveRow(FastAT(), forwards=1, random=True),
    "NFGSM": ObjectiveRow(NFGSM(), forwards=1, random=True, reach=2.5),
    "FreeAT": ObjectiveRow(FreeAT(repeats=3), forwards=0, random=False),
}
"""By class name."""


def images(n: int, *, seed: int = 0, size: int = 8, low: float = 0.0, high: float = 1.0) -> Tensor:
    """(n, 3, size, size) pixels, uniform in [low, high]; the first rows of a longer batch with the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, 3, size, size, generator=generator)


def labels(n: int, classes: int = 4) -> Tensor:
    return torch.arange(n) % classes


def conv_net(*, seed: int = 0, classes: int = 4, dropout: float = 0.0) -> nn.Sequential:
    """Two convolutions with batch norm, whose running statistics are those of a trained network, and a linear head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(72, classes),
        )
        for module in net:
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.2, 1.5)
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.3)
        with torch.no_grad():  # logits as of a trained network too: no class preferred, a few units apart
            logits = net.eval()(images(100, seed=1000))
            net[-1].weight.mul_(3 / logits.std(0)[:, None])
            net[-1].bias.copy_(-(net(images(100, seed=1000)) - net[-1].bias).mean(0))
    return net.train()


def linear_net(weight: Tensor, bias: Tensor | None = None) -> nn.Sequential:
    """logits = weight @ pixels + bias; weight: (K, D)."""
    head = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype, device="meta")
    head.to_empty(device="cpu")
    head.weight.data.copy_(weight)
    head.bias.data.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return nn.Sequential(nn.Flatten(), head)


class State(NamedTuple):
    """Everything about a model that an attack or a craft must leave as it was."""

    tensors: dict[str, Tensor]
    grads: dict[str, Tensor | None]
    trainable: dict[str, bool]
    modes: dict[str, bool]
    hooks: dict[str, int]


def state_of(model: nn.Module) -> State:
    parameters = dict(model.named_parameters())
    return State(
        {name: value.detach().clone() for name, value in model.state_dict().items()},
        {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()},
        {name: p.requires_grad for name, p in parameters.items()},
        {name: module.training for name, module in model.named_modules()},
        {name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in model.named_modules()},
    )


def assert_same_state(before: State, after: State) -> None:
    assert before.tensors.keys() == after.tensors.keys()
    for name, value in before.tensors.items():
        assert torch.equal(value, after.tensors[name]), f"{name} was changed"
    for name, grad in before.grads.items():
        now = after.grads[name]
        assert (grad is None) == (now is None), f"{name}.grad was set or cleared"
        assert grad is None or now is None or torch.equal(grad, now), f"{name}.grad was changed"
    assert before[2:] == after[2:]


@contextmanager
def global_randomness_untouched() -> Iterator[None]:
    """Fails where the body moves the global generators of torch, numpy or python."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), before[0]), "torch's global generator was moved"
    now = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before[1], now, strict=True)), "numpy's global generator was moved"
    assert random.getstate() == before[2], "python's global generator was moved"


def count_examples(model: nn.Module) -> list[int]:
    """A list to which the size of every batch that is forwarded through the model is appended."""
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


def mixed(model: nn.Sequential) -> nn.Sequential:
    """A model in an untidy state: its modules in different modes, some weights frozen, some gradients set."""
    model.train()
    for module in model:
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            module.eval()
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 3 != 1)
        if i % 2 == 0:
            p.grad = torch.full_like(p, 0.5)
    return model
