"""Campaigns against the promises of docs/guarantees.md. Run `make campaign`, or

    python -m tests.campaign --minutes 60 --only kills fuzz

Each outcome is a line in results/campaign/record.jsonl, written as it goes. Start the command again to go on.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main(arguments: list[str]) -> int:
    """Run the parts, and count the faults of the whole record."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign", description="Disturb everything, compare the end."
    )
    parser.add_argument("--minutes", type=float, default=600.0, help="end after so long; start again to go on")
    parser.add_argument("--only", nargs="*", default=[], help="words; only parts with one of them in their names")
    parser.add_argument("--share", type=float, default=1.0, help="the share of the cases, such as 0.01")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "campaign" / "record.jsonl")
    parser.add_argument("--first", type=int, help="only so many kinds of training, evaluation and file")
    parser.add_argument("--page", action="store_true", help="only write the figures into docs/guarantees.md")
    options = parser.parse_args(arguments)
    if options.page:
        from tests.campaign import page

        page.write(options.out)
        return 0
    from tests.campaign.machine import under_the_library

    under_the_library(arguments)
    warmed()
    from tests.campaign import crashes, fuzz, killing, pairs, surroundings
    from tests.campaign.record import GOOD, Record
    from tests.campaign.subjects import EVALUATIONS, TRAININGS

    trainings, evaluations = (dict([*all.items()][: options.first]) for all in (TRAININGS, EVALUATIONS))
    record = Record(options.out, time.monotonic() + 60 * options.minutes)

    def some(cases: int) -> int:
        return max(1, round(options.share * cases))

    parts: dict[str, Callable[[], None]] = {
        "training killed": partial(killing.kill, record, "training killed", trainings, some(220)),
        pairs.PART: partial(pairs.kill_one, record, some(24)),
        "evaluation killed": partial(killing.kill, record, "evaluation killed", evaluations, some(120)),
        crashes.PART: partial(crashes.lose_power, record, trainings | evaluations, some(200)),
        surroundings.PART: partial(surroundings.disturb, record, trainings | evaluations, options.share),
        fuzz.PART: partial(fuzz.attempt, record, some(101_000), options.first),
    }
    for name, part in parts.items():
        if not options.only or any(word in name for word in options.only):
            part()
    faults = [line for line in record.lines if line["outcome"] not in GOOD]
    print(f"{len(record.lines)} lines, {len(faults)} faults: {options.out}")
    return 1 if faults else 0


def warmed() -> None:
    """Import what takes seconds, so that no fork has to, and make the data small."""
    os.environ["XDG_CACHE_HOME"] = str(ROOT / ".pytest_cache" / "advsphere")
    import pytest
    import torch
    import torch._dynamo
    import torch.fx.experimental.symbolic_shapes
    import torch.utils.tensorboard

    from tests.training.tiny import few_digits

    torch.set_num_threads(1)  # other threads don't survive a fork
    few_digits(pytest.MonkeyPatch())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
