"""Everything that needs a GPU, as one command of at most 570 seconds whose results are written as they come.

    python benchmarks/on_gpu.py --plan
    python benchmarks/on_gpu.py --pack runs/pack
    python benchmarks/on_gpu.py --packed runs/pack --out results-of-the-gpu

Parts: smoke (every attack, objective and suite runs there and agrees with the CPU), speed (images a second and memory,
beside a plain loop), table 3 (trained at full size, attacked at both scales and with AutoAttack), speedrun (the recipes
of that name, likewise), official (AutoAttack beside the official code). Steps that would not fit into the budget are
named as skipped: the first call has time for smoke and the first pair of table 3, a second one for speed and official.
`--only` picks steps by a part of their names. A step that is done is not run again, so the same command goes on after
an interruption; on a new machine give the rows of before as `--done`. `--tiny` rehearses every step in seconds on a
CPU.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))  # for `tests.laws`, which lists every attack

import gpu_smoke
import gpu_speed
import gpu_tables
import torch
import travel
from comparison import show
from gpu_session import Setting, Step, chosen, read, run

from advsphere.cli.arguments import parse
from advsphere.data import load
from advsphere.errors import UserError
from advsphere.files import disk_errors
from advsphere.provenance import environment
from advsphere.runs.build import DEVICE, chosen_device

ROWS = "rows.jsonl"
THERE = (
    "python3 -m pip install -q --no-index --no-deps --target /tmp/site {pack}/{wheels}/*.whl; "
    "PYTHONPATH=src:/tmp/site python3 benchmarks/on_gpu.py --packed {pack} --out $OUT"
)
"""The command for a machine that got the repository and the pack."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    out: Path = Path("runs/on_gpu/out")
    """The folder for what is brought home: rows, logs, results, a checkpoint."""
    work: Path = Path("runs/on_gpu/work")
    """The folder for runs and ledgers."""
    seconds: float = 570.0
    """The budget. Steps that are expected to exceed it are skipped."""
    only: tuple[str, ...] = ()
    """Only steps whose names contain one of these words, such as smoke or "fastat-he seed 0", and the steps that they
    need. Several words are separated by commas or spaces."""
    tiny: bool = False
    """Rehearse every step on a few images."""
    plan: bool = False
    """List the steps with the seconds that they are expected to take, and end."""
    pack: Path | None = None
    """Write what must travel into this folder, and end."""
    python: str = "3.12"
    """With --pack: the version of Python there."""
    packed: Path | None = None
    """The folder that --pack wrote."""
    peer: Path | None = None
    """The folder with the official autoattack package; by default the packed one."""
    done: Path | None = None
    """The rows of an earlier call, whose finished steps are not run again."""
    collect: bool = False
    """Only put logs and the smallest checkpoint into --out, as every call does at its end."""
    device: str | None = None


def steps() -> list[Step]:
    """All steps in the order in which they are run."""
    first = [Step("machine", 1, machine), *gpu_smoke.steps(), *gpu_tables.first()]
    return [*first, *gpu_speed.steps(), *gpu_tables.further()]


def machine(setting: Setting) -> dict[str, Any]:
    """The versions and the device."""
    found = environment(setting.device)
    if setting.device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(setting.device)
        found |= {"memory, MiB": whole // 2**20, "free, MiB": free // 2**20}
    return found


def plan(found: Sequence[Step]) -> None:
    """Print the expected seconds of each part and step."""
    parts: dict[str, float] = {}
    for step in found:
        part = step.name.partition("/")[0]
        parts[part] = parts.get(part, 0) + step.seconds
    show(["step", "expected s"], [[step.name, f"{step.seconds:g}"] for step in found])
    print()
    show(["part", "expected s"], [[part, f"{seconds:g}"] for part, seconds in parts.items()])
    print("\nThe seconds are estimates for one H100 from counted operations. None of them has been measured.")


def setting_of(options: Arguments, began: float) -> Setting:
    """Prepare the folders, the images and the device."""
    data, peer = None, options.peer
    if options.packed is not None:
        with disk_errors(options.work):
            data = travel.unpack_images(options.packed / travel.IMAGES, options.work / "data")
        peer = peer or options.packed / travel.PEERS
    device = chosen_device(options.device)
    os.environ[DEVICE] = str(device)  # for what chooses a device by itself
    return Setting(
        device=device,
        work=options.work,
        out=options.out,
        until=began + options.seconds,
        tiny=options.tiny,
        data=data,
        peer=peer,
    )


def main(options: Arguments) -> int:
    """Run the steps; returns 1 if one failed."""
    began = time.monotonic()
    found = chosen(steps(), [word for words in options.only for word in words.split(",")])
    if options.plan:
        plan(found)
        return 0
    if options.pack is not None:
        peers = Path(sys.prefix) / "peers"
        for line in travel.pack(options.pack, load("cifar10"), Path("constraints.txt"), peers, options.python):
            print(line)
        print(f"there: {THERE.format(pack=options.pack, wheels=travel.WHEELS)}")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    states: dict[str, str] = {}
    if not options.collect:
        rows = options.out / ROWS
        if options.done is not None and not rows.exists():
            shutil.copy(options.done, rows)
        states = run(found, setting_of(options, began), rows)
        result = read(rows)
        show(
            ["step", "state", "s", "expected s"],
            [[name, state, result.get(name, {}).get("seconds", ""), step.seconds]
             for step in found for name, state in [(step.name, states[step.name])]],
        )  # fmt: skip
    for line in travel.collect(options.work, options.out):
        print(line)
    return int("failed" in states.values())


if __name__ == "__main__":
    try:
        raise SystemExit(main(parse(Arguments, sys.argv[1:] or ["--help"], prog="on_gpu.py")))
    except UserError as error:
        raise SystemExit(str(error)) from None
