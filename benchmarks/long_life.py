"""One process that trains and evaluates for hours: does its memory, or its number of handles or threads, grow?

    python benchmarks/long_life.py --minutes 120 --out benchmarks/long_life.jsonl
    python benchmarks/long_life.py --out benchmarks/long_life.jsonl --slope

A cycle trains one digits recipe, evaluates the run with a named suite, verifies the evaluation and loads the run once
more. The objectives follow each other. Every cycle writes a line. The slope is a line fitted to the second half of the
record, because caches fill in the first.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import advsphere as adv
from advsphere.cli import main as command
from advsphere.provenance import commit

NAMES = ("standard", "pgd-at-he", "alp-he", "trades", "fastat-he", "freeat")
KEPT = ("rss_mib", "handles", "threads", "objects")


def state() -> dict[str, float]:
    """What this process holds now: resident memory in MiB, open handles, threads, and objects that Python tracks."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "rss_mib": round(int(status["VmRSS"].split()[0]) / 1024, 2),
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "python_threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }


def cycle(name: str, folder: Path) -> None:
    """Train, evaluate, verify and load one run of the digits, as the command line does."""
    config = adv.recipe(f"digits-{name}")
    config = replace(
        config,
        data=replace(config.data, validation=100),
        training=replace(config.training, epochs=1, checkpoint_minutes=0.01, ema=0.9),
    )
    adv.train(config, folder)
    assert command(["evaluate", str(folder), "-n", "100", "--steps", "4", "--batch-size", "50"]) == 0
    (evaluation,) = (folder / "evaluations").iterdir()
    assert command(["verify", str(evaluation)]) == 0
    run = adv.load_run(folder)
    with torch.no_grad():
        run.model(run.test.batch(torch.arange(10))[0])


def live(minutes: float, out: Path) -> None:
    """Repeat the cycle for so many minutes; one line for each is added to `out`."""
    torch.set_num_threads(1)
    began, count = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as place, out.open("a") as record:
        first = {"commit": commit(), "torch": torch.__version__, "python_threads": threading.active_count()}
        record.write(json.dumps({"started": time.strftime("%Y-%m-%dT%H:%M:%S"), **first}) + "\n")
        while time.monotonic() - began < 60 * minutes:
            name = NAMES[count % len(NAMES)]
            cycle(name, Path(place, "run"))
            shutil.rmtree(Path(place, "run"))
            count += 1
            minute = round((time.monotonic() - began) / 60, 3)
            record.write(json.dumps({"cycle": count, "minute": minute, "recipe": name, **state()}) + "\n")
            record.flush()


def slope(out: Path) -> dict[str, dict[str, float]]:
    """For the second half of the last record: the values at its begin and end, and the growth an hour and a cycle."""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    start = max(i for i, line in enumerate(lines) if "started" in line)
    cycles = [line for line in lines[start:] if "cycle" in line]
    half = cycles[len(cycles) // 2 :]
    minutes, numbers = ([line[key] for line in half] for key in ("minute", "cycle"))
    found = {"cycles": {"all": cycles[-1]["cycle"], "minutes": cycles[-1]["minute"]}}
    for name in KEPT:
        values = [line[name] for line in half]
        found[name] = {
            "after the first cycle": cycles[0][name],
            "at half": values[0],
            "at the end": values[-1],
            "most": max(line[name] for line in cycles),
            "an hour": round(60 * float(np.polyfit(minutes, values, 1)[0]), 3),
            "a cycle": round(float(np.polyfit(numbers, values, 1)[0]), 5),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/long_life.jsonl"))
    parser.add_argument("--slope", action="store_true", help="only print the slope of the record")
    options = parser.parse_args()
    if not options.slope:
        live(options.minutes, options.out)
    found = slope(options.out)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
