"""Peak memory of an evaluation by its number of images, each in a fresh process.

    python benchmarks/memory.py --run runs/cifar10-small-fastat

An evaluation holds one batch and writes what it finds to its ledger, so the peak must not grow. The attacks are
AutoAttack's with few steps: how many there are does not change what they hold.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from comparison import Options, show

from advsphere.attacks.ensemble import stages
from advsphere.cli.arguments import parse
from advsphere.evaluation import AttackSpec, evaluate
from advsphere.machine import processor
from advsphere.runs.folder import load_run


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    sizes: tuple[int, ...] = (250, 500, 1000)
    """Numbers of images."""
    alone: bool = False
    """Evaluate n images in this process and print the peak in KiB."""


def alone(options: Arguments) -> None:
    torch.set_num_threads(options.threads)
    run = load_run(options.run)
    threat = run.config.threat if options.eps is None else replace(run.config.threat, eps=options.eps)
    parts = stages(threat, steps=3, queries=30)
    with tempfile.TemporaryDirectory() as folder:
        evaluate(
            run.model,
            run.test.first(options.n),
            threat=threat,
            suite=[AttackSpec(name, attack) for name, attack in parts.items()],
            batch_size=options.batch_size,
            ledger=Path(folder) / "ledger.sqlite",
            precision="float32" if options.float32 else "auto",
        )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main(options: Arguments) -> None:
    rows = list[list[object]]()
    for n in options.sizes:
        flags = [*sys.argv[1:], "--n", str(n), "--alone"]
        done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True, check=True)
        rows.append([n, f"{int(done.stdout.split()[-1]) / 1024:.0f}"])
    print(f"{processor()}, {options.threads} thread(s), batches of {options.batch_size}\n")
    show(["images", "peak, MiB"], rows)


if __name__ == "__main__":
    parsed = parse(Arguments, sys.argv[1:] or ["--help"], prog="memory.py")
    alone(parsed) if parsed.alone else main(parsed)
