"""What the network alone allows: images a second by batch size, as the peers run it and as we do. No attack.

    python benchmarks/network.py --run runs/cifar10-small-fastat

An attack on a robust example takes the same passes here and there, so the ratio of these rates is what is left to gain
once nothing is wasted between them. Processor time, the fastest of a few turns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from comparison import Options, Target, show
from torch import Tensor

from advsphere.classifier import Classifier, frozen, input_gradient
from advsphere.cli.arguments import parse
from advsphere.evaluation.judge import exact_float32
from advsphere.losses import margin


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    n: int = 500
    """At least as many images as the largest batch."""
    batches: tuple[int, ...] = (1, 4, 16, 64, 250, 500)
    turns: int = 5


def fastest(call: Callable[[], object], turns: int) -> float:
    spent = []
    for _ in range(turns):
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)
    return min(spent)


def rates(classify: Classifier, x: Tensor, y: Tensor, turns: int) -> list[str]:
    """Images a second: forward alone; forward and backward to the input."""
    with torch.no_grad():
        forward = fastest(lambda: classify(x), turns)
    return [f"{len(x) / t:.0f}" for t in (forward, fastest(lambda: input_gradient(classify, x, y, margin), turns))]


def main(options: Arguments) -> None:
    target = Target.of(options)
    with ExitStack() as stack:
        # Folding swaps modules, so each view has a network of its own.
        networks = [target.model, Target.of(options).model]
        ours = stack.enter_context(frozen(networks[0]))  # as `evaluate` does, which folds in low precision only
        low = stack.enter_context(frozen(networks[1], dtype=target.dtype, fold=True))
        rows = list[list[object]]()
        for size in options.batches:
            x, y = target.x[:size], target.y[:size]
            turns = options.turns * max(1, 64 // size)
            rows.append([size, *(rate for view in (target.plain, ours, low) for rate in rates(view, x, y, turns))])
    print(target.describe() + "\n")
    titles = [f"{name}, {what}" for name in ("peers'", "ours, float32", "ours") for what in ("forward", "gradient")]
    show(["batch", *titles], rows)


if __name__ == "__main__":
    with exact_float32():
        main(parse(Arguments, sys.argv[1:] or ["--help"], prog="network.py"))
