"""The minimal-norm attacks in AttackBench's protocol: how near to the smallest norm that any attack finds.

    python benchmarks/optimality.py --runs runs/digits-pgd-at runs/digits-standard --rows benchmarks/optimality.jsonl

Every attack has the same budget of forwards and backwards for each image, and the smallest perturbation that the model
sees in it counts. Local optimality compares the area under the curve of robust accuracy over the radius with that of
the pool, the smallest norm of all attacks on each image (Cina et al. 2025, arXiv 2404.19460, eq. 4 and 5). AttackBench
answers what exceeds the budget with constants; here it is not counted, and a search ends when all images have used it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from comparison import peer, show
from torch import Tensor, nn

from advsphere.attacks import cw, deepfool, fab, fab_targeted, fmn, sigma_zero
from advsphere.classifier import fooled
from advsphere.cli.arguments import parse
from advsphere.runs.folder import load_run

ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}
CURE = "pip install adv-lib, or give the folder that it is in as --peer"
Run = Callable[[nn.Module, Tensor, Tensor], Any]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    runs: tuple[Path, ...]
    """Folders that `advsphere train` wrote."""
    rows: Path
    """The file of results, a line for each network, norm and attack. What it holds is not run again."""
    peer: Path | None = None
    """Where adv-lib lies, if it is not installed."""
    n: int = 50
    """How many test images, from the first on, of those that are classified correctly."""
    propagations: int = 2000
    norms: tuple[str, ...] = ("linf", "l2", "l1", "l0")


class Spent(Exception):
    """All images have used their budget."""


class Counted(nn.Module):
    """A model that counts each image's forwards and backwards, and notes the smallest perturbation that fools it."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, order: float, budget: int) -> None:
        super().__init__()
        self.model, self.x, self.y, self.order, self.budget = model, x, y, order, budget
        self.spent = torch.zeros(len(x))
        self.smallest = torch.full((len(x),), torch.inf)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clamp(0.0, 1.0)
        size, place = torch.cdist(x.detach().flatten(1), self.x.flatten(1), p=self.order).min(1)
        self.spend(place)
        logits: Tensor = self.model(x)
        counts = fooled(logits.detach(), self.y[place]) & (self.spent[place] <= self.budget)
        self.smallest.scatter_reduce_(0, place[counts], size[counts], "amin")
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self.spend(place))
        return logits

    def spend(self, place: Tensor) -> None:
        self.spent.index_add_(0, place, torch.ones(len(place)))
        if (self.spent > self.budget).all():
            raise Spent


class Result(NamedTuple):
    network: str
    norm: str
    attack: str
    norms: list[float]
    propagations: float


def ours(norm: Any, budget: int) -> dict[str, Run]:
    """Our attacks, each with the steps that the budget buys."""
    if norm == "l0":
        return {"sigma_zero": lambda m, x, y: sigma_zero(m, x, y, steps=budget // 2)}
    attacks: dict[str, Run] = {
        "fmn": lambda m, x, y: fmn(m, x, y, norm=norm, steps=budget // 2),
        "fab": lambda m, x, y: fab(m, x, y, norm=norm, steps=budget),
        "fab_targeted": lambda m, x, y: fab_targeted(m, x, y, norm=norm, steps=budget // 19),
        "half fab_targeted, half fmn": lambda m, x, y: (
            fab_targeted(m, x, y, norm=norm, steps=budget // 38),
            fmn(m, x, y, norm=norm, steps=budget // 4),
        ),
    }
    if norm != "l1":
        attacks["deepfool"] = lambda m, x, y: deepfool(m, x, y, norm=norm)
        attacks["cw"] = lambda m, x, y: cw(m, x, y, norm=norm, steps=budget // 18)
    return attacks


def pool(norm: str, budget: int, adv_lib: Any) -> dict[str, Run]:
    """adv-lib's attacks with AttackBench's settings."""
    steps, settings = budget // 2, {"norm": ORDER[norm]}
    attacks: dict[str, Callable[..., Any]] = {
        "fmn": partial(adv_lib.fmn, **settings, steps=steps, α_init=10.0 if norm == "linf" else 1.0)
    }
    if norm == "l0":
        attacks["sigma_zero"] = partial(adv_lib.sigma_zero, num_steps=steps)
    else:
        attacks["fab"] = partial(adv_lib.fab, **settings, n_iter=budget)
        attacks["pdpgd"] = partial(adv_lib.pdpgd, **settings, num_steps=steps)
    if norm == "l2":
        attacks["ddn"] = partial(adv_lib.ddn, steps=steps, levels=None)
    if norm in ("l2", "l1"):
        attacks["alma"] = partial(adv_lib.alma, distance=norm, num_steps=steps, init_lr_distance=0.1)

    def run(attack: Callable[..., Any]) -> Run:
        return lambda model, x, y: attack(model=model, inputs=x, labels=y)

    return {f"adv-lib {name}": run(attack) for name, attack in attacks.items()}


def area(norms: Tensor, farthest: float) -> float:
    """The area under robust accuracy up to the radius `farthest`: the mean of the norms, at most that radius."""
    return float(norms.clamp(max=farthest).double().mean())


def optimality(norms: Tensor, best: Tensor) -> float:
    """Local optimality: 1 for the pool, 0 for an attack that fools nothing up to the pool's largest norm."""
    farthest = float(best[best.isfinite()].max())
    return (farthest - area(norms, farthest)) / (farthest - area(best, farthest))


def measured(options: Arguments, done: dict[tuple[str, str, str], Result]) -> None:
    adv_lib = peer("adv_lib.attacks", options.peer, CURE)
    for folder in options.runs:
        run = load_run(folder)
        model = run.model.eval().requires_grad_(False)
        x, y = run.test.batch(torch.arange(min(len(run.test), 2 * options.n)))
        right = (~fooled(model(x), y)).nonzero().squeeze(1)[: options.n]
        x, y = x[right].contiguous(), y[right]
        for norm in options.norms:
            everyone = ours(norm, options.propagations) | pool(norm, options.propagations, adv_lib)
            for name, attack in everyone.items():
                if (folder.name, norm, name) in done:
                    continue
                view = Counted(model, x, y, ORDER[norm], options.propagations)
                torch.manual_seed(0)
                with suppress(Spent):
                    attack(view, x.clone(), y.clone())
                spent = float(view.spent.clamp(max=options.propagations).mean())
                one = Result(folder.name, norm, name, [round(v, 6) for v in view.smallest.tolist()], spent)
                with options.rows.open("a") as file:
                    file.write(json.dumps(one._asdict()) + "\n")
                done[one[:3]] = one
                print(folder.name, norm, name, float(view.smallest.median()), flush=True, file=sys.stderr)


def main(options: Arguments) -> None:
    lines = options.rows.read_text().splitlines() if options.rows.exists() else []
    done = {one[:3]: one for one in (Result(**json.loads(line)) for line in lines)}
    measured(options, done)
    networks, table = sorted({one.network for one in done.values()}), list[list[object]]()
    for norm in options.norms:
        shares = dict[str, list[float]]()
        for network in networks:
            of = {one.attack: torch.tensor(one.norms) for one in done.values() if one[:2] == (network, norm)}
            best = torch.stack(list(of.values())).amin(0)
            for name, norms in of.items():
                shares.setdefault(name, []).append(optimality(norms, best))
        for name, values in sorted(shares.items(), key=lambda pair: -sum(pair[1])):
            table.append([norm, name, *(f"{value:.3f}" for value in values)])
    show(["norm", "attack", *networks], table)


if __name__ == "__main__":
    main(parse(Arguments, sys.argv[1:] or ["--help"], prog="optimality.py"))
