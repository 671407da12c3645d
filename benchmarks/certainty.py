"""AutoAttack with a bound: the passes that `certainty` needs, against those of the official code.

    python benchmarks/certainty.py --run runs/cifar10-small-fastat --n 1000 --certainty 1 0.5 --peer ../auto-attack
    python benchmarks/certainty.py --defence "the wrong sign leaks" --n 360 --certainty 2 0 --masked

A pass is one image that goes through the network, forward or backward; passes do not depend on the machine or its
load. Ours include everything that `evaluate` does: clean predictions, judgement in float32 and probes. Those of the
official code are measured on the first `--official` images of a random order, and stated for an image; with all images
it is run whole. Each result is a row in `--out`, and a row that is there is not computed again. A `--defence` is one of
tests/evaluation/defences.py, on the digits. A certainty of 0 is AutoAttack on every image that the search leaves.
certainty_page.py makes the tables and the figure.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from comparison import Options, Target, misclassified, peer, timed
from torch import Tensor, nn

from advsphere.cli.arguments import parse
from advsphere.evaluation import evaluate
from advsphere.machine import low_precision
from advsphere.named import fitting, trust
from advsphere.rng import permutation

ROOT = Path(__file__).parents[1]
CURE = "clone github.com/fra31/auto-attack and give its folder as --peer"
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Passes of AutoAttack with a bound, against the official code."""

    run: Path | None = None
    """A folder that `advsphere train` wrote."""
    defence: str | None = None
    """A defence of tests/evaluation/defences.py, in place of a run."""
    peer: Path | None = None
    """Where the official code lies; without it, only ours are counted."""
    certainty: tuple[float, ...] = (0.5,)
    """Points that AutoAttack may still take at most, one run each."""
    eps: float | None = None
    """Radius in pixel units, e.g. 12/255; by default that of the run or of the defence."""
    n: int = 1000
    """How many test images, from the first on."""
    official: int = 300
    """How many of them, drawn at random, the official code attacks."""
    out: Path = ROOT / "benchmarks" / "certainty.jsonl"
    """The file of the rows."""
    masked: bool = False
    """For the table: the network hides its gradients."""
    threads: int = 1
    batch_size: int = 250
    seed: int = 0
    float32: bool = False
    """Search in float32 too, though the machine computes in bfloat16."""


class Passes:
    """The images that went through a network, forward and backward."""

    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[Passes]:
        def forward(_: nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> None:
            self.forwards += len(given[0])
            if logits.requires_grad:
                logits.register_hook(backward)

        def backward(grad: Tensor) -> None:
            self.backwards += len(grad)

        handle = model.register_forward_hook(forward)
        try:
            yield self
        finally:
            handle.remove()


def target_of(options: Arguments) -> Target:
    if options.defence is None:
        if options.run is None:
            raise SystemExit("give a --run or a --defence")
        trust(["half_size:cifar10"])  # lies beside this script
        return Target.of(Options(**{k: v for k, v in vars(options).items() if k in Options.__dataclass_fields__}))
    sys.path.insert(0, str(ROOT))
    from advsphere.data import load
    from tests.evaluation.defences import CASES

    torch.set_num_threads(options.threads)
    case = CASES[options.defence]
    threat = case.threat if options.eps is None else replace(case.threat, eps=options.eps)
    test = load("digits").test
    x, y = test.batch(torch.arange(min(options.n, len(test))))
    dtype = None if options.float32 else low_precision(x.device)
    return Target(case.make(), copy.deepcopy(case.make()), x, y, threat, dtype)


def ours(target: Target, options: Arguments, certainty: float) -> Row:
    """The passes of one evaluation with a certainty, and its result."""
    given: dict[str, Any] = {"threat": target.threat, "suite": "autoattack", "certainty": certainty}
    given |= {"seed": options.seed, "batch_size": options.batch_size}
    given |= {"precision": "float32" if target.dtype is None else "bfloat16"}
    with Passes().of(target.model) as passes:
        result, took = timed(lambda: evaluate(target.model, target.x, target.y, **given))
    assert result.bound is not None
    row = {"who": "ours", "certainty": certainty, **counts(passes, len(target.x)), "seconds": took.cpu}
    row |= {"attacks": {one.name: [one.k, one.forwards] for one in result.rows}}  # images left, forwards of the search
    return row | {"robust": result.worst.outcomes, "bound": result.bound.to_dict()}


def official(target: Target, options: Arguments) -> Row:
    """The passes of the official code on some of the images, and which of them it leaves."""
    package = peer("autoattack", options.peer, CURE)
    index = permutation(len(target.x), seed=options.seed, epoch=0, purpose="official")[: options.official].sort().values
    x, y = target.x[index], target.y[index]
    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[target.threat.norm]
    quiet = fitting(package.AutoAttack, {"verbose": False})
    settings = {"norm": norm, "eps": target.threat.eps, "seed": options.seed, "device": str(x.device)}
    attack = package.AutoAttack(target.plain, **settings, **quiet)
    size = fitting(attack.run_standard_evaluation, {"bs": options.batch_size, "batch_size": options.batch_size})
    with Passes().of(target.plain) as passes:
        found, took = timed(lambda: attack.run_standard_evaluation(x.contiguous(), y, **size))
    left = ~misclassified(target.plain, found[0] if isinstance(found, tuple) else found, y)
    row = {"who": "official", **counts(passes, len(x)), "seconds": took.cpu, "images": index.tolist()}
    return row | {"robust": "".join("1" if one else "0" for one in left.tolist())}


def counts(passes: Passes, n: int) -> Row:
    """Passes of an image."""
    return {"forwards": passes.forwards / n, "backwards": passes.backwards / n}


def question(options: Arguments) -> Row:
    """What all rows of one comparison share. eps: None for the network's own radius."""
    name = options.defence or (options.run or Path()).name
    return {"network": name, "n": options.n, "eps": options.eps, "seed": options.seed, "masked": options.masked}


def measured(options: Arguments) -> None:
    """Compute the rows that are missing, and append each as soon as it is there."""
    known = read(options.out)
    jobs: dict[tuple[str, float | None], Callable[[Target], Row]] = {
        ("ours", certainty): lambda target, c=certainty: ours(target, options, c)  # type: ignore[misc]
        for certainty in options.certainty
    }
    if options.peer is not None:
        jobs["official", None] = lambda target: official(target, options)
    asked, target = question(options), None
    for (who, certainty), job in jobs.items():
        wanted = {**asked, "who": who, "certainty": certainty}
        if any(all(row.get(key) == value for key, value in wanted.items()) for row in known):
            continue
        target = target or target_of(options)
        row = {**asked, **job(target), "load": round(os.getloadavg()[0], 1)}
        row |= {"search": str(target.dtype or torch.float32).removeprefix("torch."), "torch": torch.__version__}
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{asked['network']}: {who} {certainty if certainty is not None else ''} done", flush=True)


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    measured(parse(Arguments, sys.argv[1:] or ["--help"], prog="certainty.py"))
