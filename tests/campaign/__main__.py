"""Campaigns against the promises of docs/guarantees.md. Run `make campaign`, or

    python -m tests.campaign --minutes 60 --only "training killed" fuzz
    python -m tests.campaign --page

A campaign writes each outcome to results/campaign/record.jsonl as it goes, and skips what is already there. `--page` only
writes the figures of that record into docs/guarantees.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description="Disturb everything, compare the end.")
    parser.add_argument("--minutes", type=float, default=240.0, help="end after so long; start again to go on")
    parser.add_argument("--only", nargs="*", help="parts, of those that --list shows")
    parser.add_argument("--share", type=float, default=1.0, help="the share of the cases, such as 0.01")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "campaign" / "record.jsonl")
    options = parser.parse_args(arguments)
    from tests.campaign.machine import under_the_library

    under_the_library(arguments)
    os.environ["XDG_CACHE_HOME"] = str(ROOT / ".pytest_cache" / "advsphere")
    import pytest

    import sklearn.datasets
    import torch
    import torch._dynamo
    import torch.fx.experimental.symbolic_shapes
    import torch.utils.tensorboard  # noqa: F401

    from tests.campaign import training_killed
    from tests.campaign.record import Record
    from tests.training.tiny import few_digits

    torch.set_num_threads(1)
    few_digits(pytest.MonkeyPatch())
    record = Record(options.out, time.monotonic() + 60 * options.minutes)
    def n(cases: int) -> int:
        return max(1, round(options.share * cases))
    parts: dict[str, Callable[[], None]] = {
        training_killed.PART: partial(training_killed.campaign, record, n(220)),
        training_killed.TOGETHER: partial(training_killed.campaign_of_pairs, record, n(24)),
    }
    for name, part in parts.items():
        if not options.only or name in options.only:
            part()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
