"""Part "smoke": whether everything runs on the device, and gives there what it gives on the CPU."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_session import Setting, Step
from torch import nn

from advsphere.attacks import Guides, feature_attack
from advsphere.classifier import fooled, split
from advsphere.data import Dataset, load
from advsphere.evaluation import AttackSpec, Effort, Evaluation, evaluate
from advsphere.evaluation.engine import prepare
from advsphere.evaluation.judge import exact_float32
from advsphere.evaluation.suites import SUITES
from advsphere.evaluation.verification import verify
from advsphere.recipes import recipe
from advsphere.rng import Rng
from advsphere.runs.train import train
from advsphere.threat import ThreatModel
from advsphere.training import load_checkpoint
from tests import laws

METHODS = ("standard", "pgd-at", "alp", "trades", "fastat", "nfgsm", "freeat")
EFFORT = Effort(steps=3, guides=3)
QUERIES = 40
"""Of Square and RayS in a suite."""


def steps() -> Iterator[Step]:
    for name in laws.ATTACKS:
        yield Step(f"smoke/attack {name}", 1, partial(attack, name))
    for method in METHODS:
        for he in ("", "-he"):
            yield Step(f"smoke/objective {method}{he}", 1.5, partial(objective, f"digits-{method}{he}"))
    for name in SUITES:
        yield Step(f"smoke/suite {name}", 3, partial(suite, name))
    yield Step("smoke/ledger of a CPU", 5, ledger_of_a_cpu)
    yield Step("smoke/equal runs", 6, equal_runs)


def attack(name: str, setting: Setting) -> dict[str, Any]:
    """One attack in each of its norms: within the ball, and how often it agrees with the CPU about an image."""
    row = laws.ATTACKS[name]
    found: dict[str, Any] = {}
    threats: dict[str, ThreatModel] = {n: ThreatModel(norm=n, eps=laws.RADII[n]) for n in row.norms}
    threats = threats or {"l0": ThreatModel(norm="linf", eps=1.0)}  # sigma_zero has no ball, only the pixels' range
    for norm, threat in list(threats.items())[: 1 if setting.tiny else None]:
        hits = []
        for device in (setting.device, torch.device("cpu")):
            net, x = laws.conv_net().eval().to(device), laws.images(8 if setting.tiny else 32).to(device)
            y = net(x).argmax(1)
            run = _with_guides(net, threat, device) if name == "feature_attack" else row.make(threat, steps=3)
            with exact_float32():
                x_adv = run(net, x, y, rng=Rng(0, torch.arange(len(x), device=device)))
                hits.append(fooled(net(x_adv), y).cpu())
            distance = float(threat.distance(x_adv, x).max())
            if x_adv.device.type != device.type or not distance <= threat.eps * 1.001:
                raise ValueError(
                    f"{norm}: an image on {x_adv.device}, {distance:.4g} from its original, {device} asked"
                )
        share = float((hits[0] == hits[1]).float().mean())
        found[norm] = {"fooled": int(hits[0].sum()), "fooled on the CPU": int(hits[1].sum()), "alike": share}
    return found


def _with_guides(net: nn.Module, threat: ThreatModel, device: torch.device) -> Any:
    guides = Guides(laws.images(12, seed=77).to(device), laws.labels(12).to(device))
    return partial(feature_attack, threat=threat, guides=guides, head=split(net).head, tries=3, steps=3)


def objective(name: str, setting: Setting) -> dict[str, Any]:
    """One epoch of a recipe, with and without HE by its name."""
    folder = setting.work / "smoke" / name
    model = _trained(name, folder, setting)
    finite = all(bool(p.isfinite().all()) for p in model.parameters())
    if not finite:
        raise ValueError("a weight is not finite")
    return {"on": str(next(model.parameters()).device)}


def suite(name: str, setting: Setting) -> dict[str, Any]:
    """All attacks of a suite, shortened, on a network that one epoch has trained."""
    model = _trained("digits-pgd-at-he", setting.work / "smoke" / "suites", setting, resume=True)
    found = _evaluated(name, model, setting)
    return {row.name: {"k": row.k, "n": row.n, "invalid": row.invalid} for row in found.rows}


def ledger_of_a_cpu(setting: Setting) -> dict[str, Any]:
    """Evaluate on the CPU, and verify the evidence on the device."""
    folder = setting.work / "smoke" / "ledger"
    model = _trained("digits-pgd-at-he", folder / "run", setting)
    images, threat = _digits(setting).test, recipe("digits-pgd-at-he").threat
    found = evaluate(model.cpu(), images, threat=threat, suite="quick", effort=EFFORT, ledger=folder / "ledger.sqlite")
    found.save(folder / "evaluation.json")
    checked = verify(
        folder / "evaluation.json", folder / "ledger.sqlite", model.to(setting.device), images.to(setting.device)
    )
    if not checked.passed:
        raise ValueError(str(checked))
    return {finding.check: f"{finding.status}: {finding.detail}" for finding in checked.findings}


def equal_runs(setting: Setting) -> dict[str, Any]:
    """Two trainings and evaluations with the same settings, bit by bit."""
    tensors, evaluations = [], list[Evaluation]()
    for name in ("one", "other"):
        folder = setting.work / "smoke" / f"equal-{name}"
        model = _trained("digits-fastat-he", folder, setting)
        tensors.append(load_checkpoint(folder / "last.safetensors")[0])
        evaluations.append(_evaluated("paper", model, setting))
    differing = [name for name, value in tensors[0].items() if not torch.equal(value, tensors[1][name])]
    outcomes = [[row.outcomes for row in one.rows] for one in evaluations]
    result = {"tensors": len(tensors[0]), "differing": differing, "outcomes alike": outcomes[0] == outcomes[1]}
    if differing or outcomes[0] != outcomes[1]:
        raise ValueError(f"two equal runs differ: {result}")
    return result


def _digits(setting: Setting) -> Dataset:
    digits = load("digits")
    return Dataset(digits.train.first(64 if setting.tiny else 512), digits.test.first(12 if setting.tiny else 64))


def _trained(name: str, folder: Path, setting: Setting, *, resume: bool = False) -> nn.Module:
    """The recipe after one epoch; with `resume`, of the first step that asked for it."""
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)  # of a step that failed
    data = _digits(setting)
    return train(recipe(name), folder, data=data, epochs=1, validation=16, device=setting.device, resume=resume)


def _evaluated(name: str, model: nn.Module, setting: Setting) -> Evaluation:
    """A suite with few steps and queries."""
    threat, images = recipe("digits-pgd-at").threat, _digits(setting).test.to(setting.device)
    specs = prepare(model, images, threat=threat, suite=name, effort=EFFORT).specs
    return evaluate(model, images, threat=threat, suite=[*map(_shortened, specs)])


def _shortened(spec: AttackSpec) -> AttackSpec:
    attack: Any = spec.attack
    known = inspect.signature(attack).parameters
    return replace(spec, attack=partial(attack, queries=QUERIES)) if "queries" in known else spec
