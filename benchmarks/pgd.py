"""PGD-100 against torchattacks: images a second, and what each leaves.

    python benchmarks/pgd.py --run runs/cifar10-small-fastat --n 250

Both attack all images, with steps of eps / 4 from a uniform start, in turns, `repeats` times; the medians count. Ours
is what an evaluation does: predict, leave out what is wrong, search, judge in float32 and attack again what then holds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from comparison import Options, Seconds, Target, misclassified, peer, show, timed
from torch import Tensor

from advsphere.attacks import pgd
from advsphere.cli.arguments import parse
from advsphere.evaluation.judge import exact_float32, judge_attack
from advsphere.evaluation.specs import AttackSpec
from advsphere.rng import Rng

CURE = "pip install torchattacks, or give the folder that it is in as --peer"
STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    repeats: int = 3


def theirs(target: Target, package: type, batch_size: int) -> Tensor:
    attack = package(target.plain, eps=target.threat.eps, alpha=target.threat.eps / 4, steps=STEPS, random_start=True)
    parts = zip(target.x.split(batch_size), target.y.split(batch_size), strict=True)
    x_adv = torch.cat([attack(x.contiguous(), y) for x, y in parts])
    return misclassified(target.plain, x_adv, target.y)


def ours(target: Target, batch_size: int, seed: int, dtype: torch.dtype | None) -> Tensor:
    threat = target.threat
    attack = partial(pgd, threat=threat, steps=STEPS, step_size=threat.eps / 4, until_fooled=True, keep="best")
    right = target.right()
    hit = torch.ones(len(target.x), dtype=torch.bool)
    for index in right.split(batch_size):
        x, y = target.x[index], target.y[index]
        verdict = judge_attack(target.model, AttackSpec("PGD", attack), threat, x, y, Rng(seed, index), dtype=dtype)
        hit[index] = verdict.fooled
    return hit


def main(options: Arguments) -> None:
    target = Target.of(options)
    package = peer("torchattacks", options.peer, CURE).PGD
    print(f"{target.describe()}; {len(target.right())} classified correctly\n", flush=True)
    sides: dict[str, Callable[[], Tensor]] = {
        "torchattacks": partial(theirs, target, package, options.batch_size),
        "ours, float32": partial(ours, target, options.batch_size, options.seed, None),
        "ours": partial(ours, target, options.batch_size, options.seed, target.dtype),
    }
    spent = {name: list[Seconds]() for name in sides}
    left = dict[str, float]()
    for _ in range(options.repeats):
        for name, side in sides.items():
            hit, took = timed(side)
            spent[name].append(took)
            left[name] = 1 - float(hit.float().mean())
    middle = {name: Seconds(*(median(part) for part in zip(*runs, strict=True))) for name, runs in spent.items()}
    base, n = middle["torchattacks"], len(target.x)
    rows = [
        [
            name,
            f"{left[name]:.1%}",
            took,
            f"{n / took.wall:.1f} ({n / took.cpu:.1f})",
            f"{base.wall / took.wall:.2f} ({base.cpu / took.cpu:.2f})",
        ]
        for name, took in middle.items()
    ]
    show(["PGD-100", "robust", "s (cpu)", "images/s (cpu)", "ratio (cpu)"], rows)


if __name__ == "__main__":
    with exact_float32():
        main(parse(Arguments, sys.argv[1:] or ["--help"], prog="pgd.py"))
