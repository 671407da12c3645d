"""What a search in bfloat16 costs in verdict and saves in time: each attack of AutoAttack, alone on all images.

    python benchmarks/low_precision.py --run runs/cifar10-small-fastat --n 200

Both searches are judged in float32, and what believed itself successful in bfloat16 and is not is attacked again in
float32, in the time of the former. The peer is our own float32 search with the same draws. `chance`: how likely so
lopsided a disagreement is, if neither search is better (the exact sign test).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import comb

import torch
from comparison import Options, Target, ratio, show, timed

from advsphere.attacks.ensemble import stages
from advsphere.cli.arguments import parse
from advsphere.evaluation.judge import Verdict, exact_float32, judge_attack
from advsphere.evaluation.specs import AttackSpec
from advsphere.rng import Rng


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    only: tuple[str, ...] = ()
    """Of the attacks, such as APGD-CE; all by default."""
    steps: int = 100
    """Of APGD and FAB."""
    queries: int = 5000
    """Of Square."""


def chance(a: int, b: int) -> float:
    """Two-sided, of splits at least as uneven as a : b."""
    n = a + b
    return min(1.0, 2 * sum(comb(n, k) for k in range(min(a, b) + 1)) / 2**n)


def main(options: Arguments) -> None:
    target = Target.of(options)
    if target.dtype is None:
        raise SystemExit("this machine does not compute in bfloat16, or --float32 was given: nothing to compare")
    right = target.right()
    print(f"{target.describe()}; {len(right)} classified correctly\n", flush=True)
    rows = list[list[object]]()
    for name, attack in stages(target.threat, steps=options.steps, queries=options.queries).items():
        if options.only and name not in options.only:
            continue

        def run(dtype: torch.dtype | None, spec: AttackSpec = AttackSpec(name, attack)) -> list[Verdict]:  # noqa: B008
            parts = right.split(options.batch_size)
            return [
                judge_attack(
                    target.model, spec, target.threat, target.x[i], target.y[i], Rng(options.seed, i), dtype=dtype
                )
                for i in parts
            ]

        exact, slow = timed(lambda: run(None))
        low, fast = timed(lambda: run(target.dtype))
        hit32, hit16 = (torch.cat([verdict.fooled for verdict in side]) for side in (exact, low))
        robust = [f"{(len(right) - int(hit.sum())) / len(target.x):.1%}" for hit in (hit32, hit16)]
        only32, only16 = int((hit32 & ~hit16).sum()), int((hit16 & ~hit32).sum())
        odds = f"{chance(only32, only16):.2f}"
        rows.append([name, *robust, only32, only16, odds, slow, fast, ratio(slow, fast)])
        print(f"... {name}: {slow} s against {fast} s", flush=True)
    print()
    titles = ["robust, float32", "robust, bfloat16", "only float32 fools", "only bfloat16 fools", "chance"]
    show(["", *titles, "float32, s (cpu)", "bfloat16, s (cpu)", "ratio (cpu)"], rows)


if __name__ == "__main__":
    with exact_float32():
        main(parse(Arguments, sys.argv[1:] or ["--help"], prog="low_precision.py"))
