"""The minimal-norm attacks in AttackBench: how near to the smallest norm that any attack finds.

    pip install "attackbenchlib[attacks]" && pip install --no-deps adv-lib
    python benchmarks/optimality.py --runs runs/digits-pgd-at --rows benchmarks/optimality.jsonl

AttackBench (Cina et al. 2025, arXiv 2404.19460) gives every attack the same budget of forwards and backwards for each
image and keeps the smallest perturbation that the model saw. Local optimality compares the area under the curve of
robust accuracy over the radius with that of the pool, the smallest norm of all attacks on each image. Its own runner
counts and its own metric compares. adv-lib wants visdom, which only draws; an empty visdom.py in its place serves.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from comparison import peer, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from advsphere.attacks import deepfool, fab, fab_targeted, fmn, sigma_zero
from advsphere.classifier import fooled
from advsphere.cli.arguments import parse
from advsphere.named import trust
from advsphere.reproduce.results import write_between
from advsphere.runs.folder import load_run

ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}
CURE = 'pip install "attackbenchlib[attacks]" && pip install --no-deps adv-lib'
MARKERS = {"begin": "<!-- optimality -->", "end": "<!-- /optimality -->"}
Run = Callable[[nn.Module, Tensor, Tensor], Any]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    runs: tuple[Path, ...] = ()
    """Folders that `advsphere train` wrote. Without any, only the table is written."""
    rows: Path
    """The file of results, a line for each network, norm and attack. What it holds is not run again."""
    readme: Path | None = None
    """A page that gets the table, between its markers."""
    n: int = 30
    """How many test images, from the first on, of those that are classified correctly."""
    propagations: int = 2000
    norms: tuple[str, ...] = tuple(ORDER)
    attacks: tuple[str, ...] = ()
    """Only these, by the names in the table; all by default."""


def ours(norm: Any, budget: int) -> dict[str, Run]:
    """Our attacks, each with the steps that the budget buys."""
    if norm == "l0":
        return {
            "sigma_zero": lambda m, x, y: sigma_zero(m, x, y, steps=budget // 2),
            "sigma_zero, 4 starts": lambda m, x, y: sigma_zero(m, x, y, steps=budget // 8, starts=4),
            "sigma_zero, 8 starts": lambda m, x, y: sigma_zero(m, x, y, steps=budget // 16, starts=8),
        }
    attacks: dict[str, Run] = {
        "fmn": lambda m, x, y: fmn(m, x, y, norm=norm, steps=budget // 2),
        "fab": lambda m, x, y: fab(m, x, y, norm=norm, steps=budget // 11 - 1),
        "fab_targeted": lambda m, x, y: fab_targeted(m, x, y, norm=norm, steps=budget // 19),
        "fmn, 8 starts": lambda m, x, y: fmn(m, x, y, norm=norm, steps=budget // 16, starts=8),
        "half fab_targeted, half fmn, 4 starts": lambda m, x, y: [
            fab_targeted(m, x, y, norm=norm, steps=budget // 38),
            fmn(m, x, y, norm=norm, steps=budget // 16, starts=4),  # what the model saw before it counts too
        ][-1],
    }
    if norm != "l1":
        attacks["deepfool"] = lambda m, x, y: deepfool(m, x, y, norm=norm)
    return attacks


def pool(norm: str, budget: int, registry: Any) -> dict[str, Run]:
    """The original codes and adv-lib's, as AttackBench sets and calls them, with the steps that the budget buys."""
    steps, build = budget // 2, partial(built, registry, norm)
    attacks = {
        "original fmn": build("original", "fmn", num_steps=steps),
        "adv-lib fmn": build("adv_lib", "fmn", num_steps=steps),
        "adv-lib pdpgd": build("adv_lib", "pdpgd", num_steps=steps),
    }
    if norm == "l0":
        attacks["original sigma_zero"] = build("original", "sigma_zero", num_steps=steps)
        attacks["adv-lib vfga"] = build("adv_lib", "vfga")
        return attacks
    attacks["original fab"] = build("original", "fab", num_steps=budget // 12)
    attacks["original fab_t"] = original_fab_t(norm, budget // 28)
    attacks["adv-lib fab"] = build("adv_lib", "fab", num_steps=budget // 12)
    if norm != "linf":
        attacks["adv-lib alma"] = build("adv_lib", "alma", num_steps=steps)
    if norm != "l1":
        attacks["original tr"] = build("original", "tr", adaptive=True)
    if norm == "l2":
        attacks["adv-lib ddn"] = build("adv_lib", "ddn_NQ", num_steps=steps)
        attacks["adv-lib pdgd"] = build("adv_lib", "pdgd", num_steps=steps)
    return attacks


def built(registry: Any, norm: str, library: str, name: str, **settings: Any) -> Run:
    """AttackBench's `get_attack`, which refuses norms that an attack knows but its settings do not name."""
    known, getter = registry.attack_configs[library], registry.library_getters[library][name]
    own = known[f"{name}_{norm}" if f"{name}_{norm}" in known else name]()
    settings = own | {"threat_model": norm} | settings
    attack = getter(**{key: settings[key] for key in signature(getter).parameters if key in settings})
    wrapper = registry.library_modules[library]._wrapper
    return lambda model, x, y: wrapper(attack=attack, model=model, inputs=x, labels=y)


def original_fab_t(norm: str, steps: int) -> Run:
    """AttackBench's copy of FAB, a walk to each target; without a radius, its own loop ends after the first."""
    code = peer("attackbench.attacks.original.fast_adaptive_boundary", None, CURE)

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        search = code.FABAttack_PT(model, norm=norm.capitalize(), n_iter=steps, eps=float("inf"), n_target_classes=9)
        for search.target_class in range(2, 11):  # counted from the most likely class
            search.attack_single_run(x, y, is_targeted=True)
        return x  # what the model saw counts

    return attack


def measured(options: Arguments, rows: list[dict[str, Any]]) -> None:
    bench, wrapper = peer("attackbench", None, CURE), peer("attackbench.models.benchmodel_wrapper", None, CURE)
    registry = peer("attackbench.attacks.registry", None, CURE)
    warnings.filterwarnings("ignore", module="attackbench")  # one for each forward beyond the budget
    trust(["half_size:cifar10"])  # lies beside this script
    for folder in options.runs:
        run = load_run(folder)
        model = run.model.eval().requires_grad_(False)
        x, y = run.test.batch(torch.arange(min(len(run.test), 4 * options.n)))
        right = (~fooled(model(x), y)).nonzero().squeeze(1)[: options.n]
        images, view = TensorDataset(x[right].contiguous(), y[right]), wrapper.BenchModel(model).eval()
        for norm in options.norms:
            for name, attack in (ours(norm, options.propagations) | pool(norm, options.propagations, registry)).items():
                key = {"network": folder.name, "norm": norm, "attack": name}
                if any(key.items() <= row.items() for row in rows) or name not in (options.attacks or (name,)):
                    continue
                found = bench.run_attack(
                    view,
                    DataLoader(images, batch_size=len(images)),
                    lambda model, inputs, labels, attack=attack: attack(model, inputs, labels),
                    norm,
                    device=torch.device("cpu"),
                    query_budget=options.propagations,
                )
                if any(found["batch_failures"]) or view.training or not all(found["correct"]):
                    raise SystemExit(f"{name} failed in {norm}, or left another network behind; see above")
                spent = {key: sum(found[f"num_{key}"]) / len(images) for key in ("forwards", "backwards")}
                rows.append(key | {"norms": [round(value, 6) for value in found["distances"][norm]]} | spent)
                with options.rows.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")


def optimalities(rows: Sequence[dict[str, Any]]) -> list[list[object]]:
    """AttackBench's local optimality, a line for each norm and attack, the best on average first; empty if not run."""
    compare = peer("attackbench.metrics.optimality", None, CURE).compare_attacks_optimality
    networks, lines = sorted({row["network"] for row in rows}), list[list[object]]()
    for norm in ORDER:
        scores = dict[str, dict[str, float]]()
        for network in networks:
            of = {row["attack"]: row["norms"] for row in rows if (row["network"], row["norm"]) == (network, norm)}
            if len(of) < 2:
                continue
            results = [{"distances": {norm: norms}, "correct": [True] * len(norms)} for norms in of.values()]
            for name, score in compare(results, norm, list(of))["optimality_scores"].items():
                scores.setdefault(name, {})[network] = score
        for name, values in sorted(scores.items(), key=lambda pair: -mean(pair[1].values())):
            lines.append([norm, name, *(f"{values[network]:.3f}" if network in values else "" for network in networks)])
    return [["norm", "attack", *networks], *lines]


def main(options: Arguments) -> None:
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()] if options.rows.exists() else []
    measured(options, rows)
    head, *lines = optimalities(rows)
    shown = table([str(cell) for cell in head], lines)
    print(shown)
    if options.readme is not None:
        write_between(options.readme, shown, **MARKERS)


if __name__ == "__main__":
    main(parse(Arguments, sys.argv[1:] or ["--help"], prog="optimality.py"))
