"""Square against the official code: how many queries until how many images are fooled.

    python benchmarks/square.py --run runs/cifar10-small-fastat --n 200 --peer ../auto-attack

Both get the images that are classified correctly, 5,000 queries each, and AutoAttack's schedule, `seeds` times. A
wrapper of the model counts: how many images it is given in a round is how many are not fooled yet. So the queries of
each image are known, whatever an attack says of itself. The official code's first and last round, in which it only
looks at what it was given and what it returns, are not counted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from comparison import Counted, Options, Target, peer, show, timed

from advsphere.attacks import square
from advsphere.classifier import Classifier, frozen
from advsphere.cli.arguments import parse
from advsphere.evaluation.judge import exact_float32
from advsphere.rng import Rng

CURE = "clone github.com/fra31/auto-attack and give its folder as --peer"
BUDGETS = (10, 30, 100, 300, 1000, 3000, 5000)


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    queries: int = 5000
    seeds: int = 3


def theirs(target: Target, model: Classifier, package: Any, queries: int, seed: int) -> list[int]:
    counted = Counted(model)
    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[target.threat.norm]
    # Its loop runs n_queries times after the query of the stripes.
    budget = {"n_queries": queries - 1, "p_init": 0.8, "resc_schedule": False, "n_restarts": 1}
    device = str(target.x.device)
    attack = package.SquareAttack(
        counted, norm=norm, eps=target.threat.eps, seed=seed, device=device, verbose=False, **budget
    )
    attack.perturb(target.x.contiguous(), target.y)
    return counted.sizes[1:-1]


def ours(target: Target, model: Classifier, queries: int, seed: int) -> list[int]:
    counted = Counted(model)
    rng = Rng.of(target.x, seed)
    square(counted, target.x, target.y, threat=target.threat, queries=queries, horizon=10_000, rng=rng)
    return counted.sizes


def queries_of(rounds: Sequence[int], queries: int) -> list[int]:
    """The queries of each fooled image: as many stop after round i as are missing from round i + 1. What is still there
    in the last of all rounds counts as not fooled, since it can't be seen.
    """
    after = [*rounds[1:], 0 if len(rounds) < queries else rounds[-1]]
    return [i + 1 for i, (now, then) in enumerate(zip(rounds, after, strict=True)) for _ in range(now - then)]


def main(options: Arguments) -> None:
    target = Target.of(options)
    package = peer("autoattack.square", options.peer, CURE)
    right = target.right()
    target = target._replace(x=target.x[right], y=target.y[right])
    print(f"{target.describe()}, all classified correctly; both query in float32\n", flush=True)
    rows = list[list[object]]()
    with frozen(target.model) as model:
        for seed in range(options.seed, options.seed + options.seeds):
            for name in ("official", "ours"):

                def run(name: str = name, seed: int = seed) -> list[int]:
                    if name == "ours":
                        return ours(target, model, options.queries, seed)
                    return theirs(target, model, package, options.queries, seed)

                rounds, took = timed(run)
                each = queries_of(rounds, options.queries)
                by = [sum(q <= budget for q in each) for budget in BUDGETS if budget <= options.queries]
                rows.append([seed, name, *by, f"{sum(each) / max(len(each), 1):.0f}", sum(rounds), took])
    budgets = [f"by {budget}" for budget in BUDGETS if budget <= options.queries]
    show(["seed", "", *(f"fooled {b}" for b in budgets), "mean of the fooled", "all queries", "s (cpu)"], rows)


if __name__ == "__main__":
    with exact_float32():
        main(parse(Arguments, sys.argv[1:] or ["--help"], prog="square.py"))
