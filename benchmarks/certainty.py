"""AutoAttack with a bound: the passes that `certainty` needs, against those of the official code.

    python benchmarks/certainty.py --run runs/cifar10-small-fastat --n 1000 --certainty 1 0.5 --peer ../auto-attack
    python benchmarks/certainty.py --defence "the wrong sign leaks" --n 360 --certainty 2 0

A pass is one image that goes through the network, forward or backward; passes do not depend on the machine or its
load. Ours include everything that `evaluate` does: clean predictions, judgement in float32 and probes. Those of the
official code are measured on the first `--official` images of a random order, and stated for an image; with all images
it is run whole. Each result is a row in `--out`, and a row that is there is not computed again. A `--defence` is one of
tests/evaluation/defences.py, on the digits. A certainty of 0 is AutoAttack on every image that the search leaves.
`--table` prints the rows as a table, and with `--seconds` the processor's seconds too, which need a quiet machine.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comparison import Options, Target, misclassified, peer, table, timed
from torch import Tensor, nn

from advsphere.cli.arguments import parse
from advsphere.evaluation import evaluate
from advsphere.machine import low_precision
from advsphere.named import fitting
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
    n: int = 1000
    """How many test images, from the first on."""
    official: int = 300
    """How many of them, drawn at random, the official code attacks."""
    out: Path = ROOT / "benchmarks" / "certainty.jsonl"
    """The file of the rows."""
    table: bool = False
    """Print the table of all rows."""
    seconds: bool = False
    """With the processor's seconds."""
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
        return Target.of(Options(**{k: v for k, v in vars(options).items() if k in Options.__dataclass_fields__}))
    sys.path.insert(0, str(ROOT))
    from advsphere.data import load
    from tests.evaluation.defences import CASES

    torch.set_num_threads(options.threads)
    case = CASES[options.defence]
    test = load("digits").test
    x, y = test.batch(torch.arange(min(options.n, len(test))))
    dtype = None if options.float32 else low_precision(x.device)
    return Target(case.make(), copy.deepcopy(case.make()), x, y, case.threat, dtype)


def ours(target: Target, options: Arguments, certainty: float) -> Row:
    """The passes of one evaluation with a certainty, and its result."""
    given: dict[str, Any] = {"threat": target.threat, "suite": "autoattack", "certainty": certainty}
    given |= {"seed": options.seed, "batch_size": options.batch_size}
    given |= {"precision": "float32" if target.dtype is None else "bfloat16"}
    with Passes().of(target.model) as passes:
        result, took = timed(lambda: evaluate(target.model, target.x, target.y, **given))
    assert result.bound is not None
    row = {"who": "ours", "certainty": certainty, **counts(passes, len(target.x)), "seconds": took.cpu}
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
    """What all rows of one comparison share."""
    name = options.defence or (options.run or Path()).name
    return {"network": name, "n": options.n, "seed": options.seed, "masked": options.defence is not None}


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


def shown(rows: list[Row], *, seconds: bool = False) -> str:
    """The table: one line for each run of ours, beside the official code on the same network."""
    lines = []
    for row in rows:
        if row["who"] != "ours":
            continue
        same = [r for r in rows if all(r[key] == row[key] for key in ("network", "n", "seed"))]
        theirs = next((r for r in same if r["who"] == "official"), None)
        whole = next((r for r in same if r.get("certainty") == 0), None)
        lines.append(_line(row, theirs, whole, seconds))
    header = ["network", "images", "certainty", "official: passes an image", "ours", "ratio", "robust, ours"]
    header += ["official, on its images", "ours, on these", "bound", "sampled, fell", "against certainty 0"]
    return table([*header, *["seconds an image, official", "ours"] * seconds], lines)


def _line(row: Row, theirs: Row | None, whole: Row | None, seconds: bool) -> list[object]:
    bound: Mapping[str, Any] = row["bound"]
    n, passes = row["n"], row["forwards"] + row["backwards"]
    line = [row["network"], f"{n:,}", f"{row['certainty']:g}"]
    others = [""] * 3
    if theirs is not None:
        total = theirs["forwards"] + theirs["backwards"]
        part = [row["robust"][i] for i in theirs["images"]]
        line += [f"{total:,.0f} ({theirs['forwards']:,.0f} + {theirs['backwards']:,.0f})"]
        others = [f"{total / passes:.1f}", *(f"{sum(map(int, one))} / {len(one)}" for one in (theirs["robust"], part))]
    else:
        line.append("")
    line += [f"{passes:,.0f} ({row['forwards']:,.0f} + {row['backwards']:,.0f})", others[0]]
    line += [f"{row['robust'].count('1') / len(row['robust']):.1%}", *others[1:], f"{bound['points']:.2f}"]
    line += [f"{bound['sampled']:,} of {bound['survivors']:,}, {bound['fell']}"]
    line.append("" if whole is None else f"{row['robust'].count('1') - whole['robust'].count('1')} more robust")
    if seconds:
        line.append("" if theirs is None else f"{theirs['seconds'] / len(theirs['images']):.2f}")
        line.append(f"{row['seconds'] / n:.2f}")
    return line


def main(options: Arguments) -> None:
    if options.run is not None or options.defence is not None:
        measured(options)
    if options.table:
        print(shown(read(options.out), seconds=options.seconds), flush=True)


if __name__ == "__main__":
    main(parse(Arguments, sys.argv[1:] or ["--help"], prog="certainty.py"))
