"""The minimal-norm attacks against every released one: who fools, how near, and how long it takes.

    python benchmarks/minimal_norm.py --run runs/cifar10-small-fastat --n 100 --official ../auto-attack

All get the images that are classified correctly and the same numbers of steps, and search in float32, whose last bits
decide where a boundary is. A result that leaves the box, or that float32 predicts correctly, is no success. The ratios
are the peer's over ours, so above 1 ours is nearer or faster. FAB-T of the official code drops an image at its first
target within eps; for the smallest norm its targets are run one by one, as ours are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comparison import Options, Seconds, Target, peer, ratio, show, timed
from torch import Tensor

from advsphere.attacks import cw, deepfool, fab, fab_targeted
from advsphere.classifier import fooled, frozen
from advsphere.cli.arguments import parse
from advsphere.evaluation.judge import exact_float32
from advsphere.threat import Norm, ThreatModel

ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}
OFFICIAL = {"linf": "Linf", "l2": "L2", "l1": "L1"}
CURE = "pip install it, or give the folder that it is in as --peer (auto-attack: as --official)"


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    official: Path | None = None
    """Where the official auto-attack lies, if it is not installed."""
    attacks: tuple[str, ...] = ("deepfool", "cw", "fab", "fab_targeted")
    norms: tuple[Norm, ...] = ("linf", "l2", "l1")
    steps: int = 100
    """Of Carlini-Wagner and FAB; DeepFool has 50."""


@dataclass(frozen=True)
class Sides:
    """Who attacks, by name; ours first. Each is (x, y) -> x_adv."""

    target: Target
    options: Arguments

    def of(self, attack: str, norm: Norm) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
        bounds = self.target.threat.bounds
        settings: dict[str, Any] = {"norm": norm, "bounds": bounds}
        if attack != "deepfool":
            settings["steps"] = self.options.steps
        yield "ours", partial(self.ours, attack, settings)
        yield from getattr(self, attack)(norm)

    def ours(self, attack: str, settings: dict[str, Any], x: Tensor, y: Tensor) -> Tensor:
        attacks: dict[str, Callable[..., Tensor]] = {
            "deepfool": deepfool,
            "cw": cw,
            "fab": fab,
            "fab_targeted": fab_targeted,
        }
        with frozen(self.target.model) as model:
            return attacks[attack](model, x, y, **settings)

    def deepfool(self, norm: Norm) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
        adv_lib, foolbox = self.package("adv_lib.attacks"), self.package("foolbox")
        yield "adv-lib", partial(adv_lib.df, self.target.plain, norm=ORDER[norm], steps=50)
        yield "foolbox", self.foolbox(foolbox.attacks, f"{OFFICIAL[norm]}DeepFoolAttack", steps=50)
        if norm == "l2":
            yield "torchattacks", self.package("torchattacks").DeepFool(self.target.plain, steps=50)

    def cw(self, norm: Norm) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
        adv_lib, steps = self.package("adv_lib.attacks"), self.options.steps
        run = adv_lib.carlini_wagner_l2 if norm == "l2" else adv_lib.carlini_wagner_linf
        yield "adv-lib", partial(run, self.target.plain, max_iterations=steps)
        if norm == "l2":
            attacks = self.package("foolbox").attacks
            yield "foolbox", self.foolbox(attacks, "L2CarliniWagnerAttack", binary_search_steps=9, steps=steps)
            yield "torchattacks, c = 1", self.package("torchattacks").CW(self.target.plain, c=1, steps=steps)

    def fab(self, norm: Norm) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
        adv_lib, torchattacks = self.package("adv_lib.attacks"), self.package("torchattacks")
        yield "adv-lib", partial(adv_lib.fab, self.target.plain, norm=ORDER[norm], n_iter=self.options.steps)
        if norm != "l1":  # where it fails
            settings = {"norm": OFFICIAL[norm], "eps": 1e3, "steps": self.options.steps}
            yield "torchattacks", torchattacks.FAB(self.target.plain, **settings)
        yield "official", self.fab_of_the_authors(norm, targeted=False).perturb

    def fab_targeted(self, norm: Norm) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
        attack, threat = self.fab_of_the_authors(norm, targeted=True), ThreatModel(norm=norm, eps=0.0)

        def run(x: Tensor, y: Tensor) -> Tensor:
            best, nearest = x.clone(), torch.full((len(x),), torch.inf)
            for target_class in range(2, 11):
                attack.target_class = target_class
                x_adv = attack.attack_single_run(x, y, is_targeted=True)
                with torch.no_grad():
                    hit = fooled(self.target.plain(x_adv), y)
                size = torch.where(hit, threat.distance(x_adv, x), torch.inf)
                better = size < nearest
                best[better], nearest[better] = x_adv[better], size[better]
            return best

        yield "official", run

    def fab_of_the_authors(self, norm: Norm, *, targeted: bool) -> Any:
        package = peer("autoattack.fab_pt", self.options.official, CURE)
        settings = {"norm": OFFICIAL[norm], "n_iter": self.options.steps, "eps": 1e3, "device": "cpu"}
        return package.FABAttack_PT(self.target.plain, targeted=targeted, **settings)

    def foolbox(self, attacks: Any, name: str, **settings: int) -> Callable[[Tensor, Tensor], Tensor]:
        package, bounds = self.package("foolbox"), self.target.threat.bounds
        model, attack = package.PyTorchModel(self.target.plain, bounds=bounds), getattr(attacks, name)(**settings)

        def run(x: Tensor, y: Tensor) -> Tensor:
            result: Tensor = attack(model, x, package.criteria.Misclassification(y), epsilons=None)[1]
            return result

        return run

    def package(self, name: str) -> Any:
        return peer(name, self.options.peer, CURE)


def main(options: Arguments) -> None:
    target = Target.of(options)
    right = target.right()
    x, y = target.x[right].contiguous(), target.y[right]
    target = target._replace(x=x, y=y, dtype=None)
    sides = Sides(target, options)
    print(f"{target.describe()}, all classified correctly\n", flush=True)
    rows = list[list[object]]()
    for attack in options.attacks:
        for norm in options.norms:
            if norm == "l1" and attack in ("deepfool", "cw"):
                continue
            base: tuple[float, Seconds] | None = None
            for name, run in sides.of(attack, norm):
                x_adv, took = timed(partial(run, x, y))
                success, nearest = measured(target, norm, x_adv)
                base = base or (nearest, took)
                row = [f"{attack} {norm}", name, f"{success:.1%}", f"{nearest:.5f}", took]
                rows.append([*row, f"{nearest / base[0]:.3f}", ratio(took, base[1])])
                print(*rows[-1], flush=True, file=sys.stderr)
    show(["attack", "", "success", "median norm", "s (cpu)", "norm / ours", "s / ours (cpu)"], rows)


def measured(target: Target, norm: Norm, x_adv: Tensor) -> tuple[float, float]:
    """The share of images that are fooled inside the box, and the median norm, infinite where it is not fooled."""
    threat = ThreatModel(norm=norm, eps=0.0, bounds=target.threat.bounds)
    x_adv, (low, high) = x_adv.detach(), threat.bounds
    with frozen(target.model) as exact, torch.no_grad():
        hit = fooled(exact(x_adv), target.y) & ((x_adv >= low) & (x_adv <= high)).flatten(1).all(1)
    size = torch.where(hit, threat.distance(x_adv, target.x), torch.inf)
    return float(hit.float().mean()), float(size.median())


if __name__ == "__main__":
    with exact_float32():
        main(parse(Arguments, sys.argv[1:] or ["--help"], prog="minimal_norm.py"))
