"""AutoAttack standard, with its full published budget, against the official code.

    python benchmarks/auto_attack.py --run runs/cifar10-small-fastat --n 200 --peer ../auto-attack

The two take turns, one attack at a time, each on what its own attacks before have left. "Time to verdict" is when our
robust accuracy so far reaches what the official code ends with. Where the two disagree on an image, the attack that
fooled it on one side is run again on both sides, eight times with other random numbers, which tells luck from
weakness. The official code's own checks of the model (a few forwards of each image) are part of its time, as our
judgement in float32 is of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from comparison import Options, Seconds, Target, misclassified, peer, ratio, show, timed
from torch import Tensor

from advsphere.attacks import Attack
from advsphere.attacks.ensemble import stages
from advsphere.classifier import frozen
from advsphere.cli.arguments import parse
from advsphere.evaluation.judge import exact_float32, judge_attack
from advsphere.evaluation.specs import AttackSpec
from advsphere.losses import margin
from advsphere.named import fitting
from advsphere.rng import Rng

Run = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(stage, x, y, ids) -> (x_adv, fooled)."""

CURE = "clone github.com/fra31/auto-attack and give its folder as --peer"
TRIES = 8


class Side:
    """One of the two: what its attacks have left so far, and how long they took."""

    def __init__(self, run: Run, target: Target, left: Tensor) -> None:
        self.run, self.target, self.left = run, target, left
        self.by = dict[int, int]()
        self.x_adv = target.x.clone()
        self.spent = Seconds()
        self.history = list[tuple[Seconds, int]]()

    def stage(self, number: int, batch_size: int) -> Seconds:
        def attack() -> None:
            for index in self.left.split(batch_size) if len(self.left) else ():
                x_adv, hit = self.run(number, self.target.x[index], self.target.y[index], index)
                self.x_adv[index] = x_adv
                self.by |= dict.fromkeys(index[hit].tolist(), number)

        _, took = timed(attack)
        self.left = torch.tensor([i for i in self.left.tolist() if i not in self.by], dtype=torch.long)
        self.spent = self.spent.plus(took)
        self.history.append((self.spent, len(self.left)))
        return took

    def again(self, number: int, example: int) -> int:
        """In how many of TRIES runs with other random numbers an attack fools one example."""
        x, y = (t[example].expand(TRIES, *t.shape[1:]).contiguous() for t in (self.target.x, self.target.y))
        return int(self.run(number, x, y, example + 1_000_000 * torch.arange(1, TRIES + 1))[1].sum())


def ours(target: Target, attacks: dict[str, Attack], seed: int) -> Run:
    def run(stage: int, x: Tensor, y: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        name, attack = list(attacks.items())[stage]
        spec = AttackSpec(name, attack)
        verdict = judge_attack(target.model, spec, target.threat, x, y, Rng(seed, ids), dtype=target.dtype)
        return verdict.x_adv, verdict.fooled

    return run


def official(target: Target, package: Any, seed: int, batch_size: int) -> Run:
    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[target.threat.norm]
    device = str(target.x.device)
    # The packaged version of the official code has other names, and returns the predictions too.
    quiet = fitting(package.AutoAttack, {"verbose": False})
    attack = package.AutoAttack(target.plain, norm=norm, eps=target.threat.eps, seed=seed, device=device, **quiet)
    names = attack.attacks_to_run

    def run(stage: int, x: Tensor, y: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        attack.attacks_to_run, attack.seed = [names[stage]], seed + int(ids[0]) // 1_000_000
        size = fitting(attack.run_standard_evaluation, {"bs": batch_size, "batch_size": batch_size})
        found = attack.run_standard_evaluation(x.contiguous(), y, **size)
        x_adv: Tensor = found[0] if isinstance(found, tuple) else found
        return x_adv, misclassified(target.plain, x_adv, y)

    return run


def main(options: Options) -> None:
    target = Target.of(options)
    package = peer("autoattack", options.peer, CURE)
    attacks = stages(target.threat)
    right, n = target.right(), len(target.x)
    there = Side(official(target, package, options.seed, options.batch_size), target, right)
    here = Side(ours(target, attacks, options.seed), target, right)
    print(f"{target.describe()}; {len(right)} classified correctly\n", flush=True)
    rows = list[list[object]]()
    for number, name in enumerate(attacks):
        theirs, mine = there.stage(number, options.batch_size), here.stage(number, options.batch_size)
        left = [f"{len(side.left) / n:.1%}" for side in (there, here)]
        rows.append([name, theirs, left[0], mine, left[1], ratio(theirs, mine)])
        print(f"... {name}: {theirs} s against {mine} s", flush=True)
    rows.append(["all", there.spent, left[0], here.spent, left[1], ratio(there.spent, here.spent)])
    print()
    show(["", "official, s (cpu)", "robust", "ours, s (cpu)", "robust", "ratio (cpu)"], rows)
    reached = [spent for spent, robust in here.history if robust <= len(there.left)]
    verdict = f"{reached[0]} s: {ratio(there.spent, reached[0])} times sooner" if reached else "never reached"
    print(f"\ntime to the official verdict of {left[0]}: {verdict}; load now {target.describe().split('load ')[1][:4]}")
    disagreements(target, list(attacks), there, here)


def disagreements(target: Target, names: list[str], there: Side, here: Side) -> None:
    """Each image that only one side fooled: how clearly, and how often both do with other random numbers."""
    apart = sorted(there.by.keys() ^ here.by.keys())
    print(f"\nthe sides disagree on {len(apart)} of {len(target.x)} images\n")
    rows = list[list[object]]()
    with frozen(target.model) as exact:
        for example in apart:
            side, word = (there, "official") if example in there.by else (here, "ours")
            number, y = side.by[example], target.y[example : example + 1]
            x, x_adv = target.x[example : example + 1], side.x_adv[example : example + 1]
            with torch.no_grad():
                lead = float(margin(exact(x_adv), y))
            distance = float(target.threat.distance(x_adv, x)) * 255
            tries = [f"{s.again(number, example)} of {TRIES}" for s in (there, here)]
            rows.append([example, word, names[number], f"{distance:.4f}/255", f"{lead:.2g}", *tries])
    if rows:
        show(["image", "fooled by", "attack", "distance", "margin", "again, official", "again, ours"], rows)


if __name__ == "__main__":
    with exact_float32():
        main(parse(Options, sys.argv[1:] or ["--help"], prog="auto_attack.py"))
