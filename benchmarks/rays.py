"""RayS against the official code: how many queries until how many images are fooled, and how near both come.

    python benchmarks/rays.py --run runs/cifar10-small-fastat --n 50 --peer ../RayS

Both get the images that are classified correctly, and query in float32. A wrapper of the model counts. The official
code goes on within the ball until its queries are spent; what it says of when each image entered the ball counts for
it, and every query for ours.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comparison import Counted, Options, Target, peer, show, timed
from torch import Tensor

from advsphere.attacks import rays
from advsphere.classifier import Classifier, fooled, frozen
from advsphere.cli.arguments import parse
from advsphere.evaluation.judge import exact_float32

CURE = "clone github.com/uclaml/RayS and give its folder as --peer"


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    queries: int = 1000


class HardLabel(Counted):
    """The model as the official code calls it."""

    def predict_label(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self(x).argmax(1)


def theirs(target: Target, model: Classifier, package: Any, queries: int) -> tuple[Tensor, Tensor, int]:
    """The results, when each image entered the ball, and all queries."""
    counted = HardLabel(model)
    attack = package.RayS(counted, epsilon=target.threat.eps)
    cuda, bar = Tensor.cuda, package.progress_bar
    Tensor.cuda, package.progress_bar = (lambda self, *_: self), (lambda *_: None)  # type: ignore[method-assign]
    try:
        x_adv, entered, _, _ = attack(target.x.contiguous(), target.y, query_limit=queries)
    finally:
        Tensor.cuda, package.progress_bar = cuda, bar  # type: ignore[method-assign]
    return x_adv, entered, sum(counted.sizes)


def ours(target: Target, model: Classifier, queries: int, eps: float | None) -> tuple[Tensor, Tensor, int]:
    """As `theirs`. Whatever is asked in round i was asked in all before, so one image at a time tells its own count."""
    results, entered = [], []
    for x, y in zip(target.x.split(1), target.y.split(1), strict=True):
        counted = Counted(model)
        results.append(rays(counted, x, y, bounds=target.threat.bounds, queries=queries, eps=eps))
        entered.append(len(counted.sizes) - 1)  # the clean image was known to be right
    return torch.cat(results), torch.tensor(entered), sum(entered)


def main(options: Arguments) -> None:
    target = Target.of(options)
    package = peer("RayS", options.peer, CURE)
    right = target.right()
    target = target._replace(x=target.x[right], y=target.y[right], dtype=None)
    print(f"{target.describe()}, all classified correctly; {options.queries} queries\n", flush=True)
    rows = list[list[object]]()
    with frozen(target.model) as model:
        sides = {
            "official": partial(theirs, target, model, package, options.queries),
            "ours, smallest norm": partial(ours, target, model, options.queries, None),
            "ours, verdict at eps": partial(ours, target, model, options.queries, target.threat.eps),
        }
        for name, side in sides.items():
            (x_adv, entered, asked), took = timed(side)
            with torch.no_grad():
                hit = fooled(model(x_adv), target.y)
            size = torch.where(hit, target.threat.distance(x_adv, target.x), torch.inf)
            inside = hit & target.threat.contains(x_adv, target.x)
            spent = "" if "smallest" in name else f"{entered[inside].double().mean():.1f}"
            rows.append([name, int(inside.sum()), spent, asked, f"{size.median():.5f}", took])
    show(["", "fooled at eps", "queries of these, mean", "all queries", "median norm", "s (cpu)"], rows)


if __name__ == "__main__":
    with exact_float32():
        main(parse(Arguments, sys.argv[1:] or ["--help"], prog="rays.py"))
