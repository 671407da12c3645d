"""Property tests draw the same cases every time, none is failed for being slow, and long tests begin first."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")

LONG = (
    "reproduce/test_smoke.py",
    "distributed/test_elastic.py",
    "cli/test_demo.py",
    "test_robust_training.py",
    "test_examples.py",
    "training/test_ranks.py",
    "evaluation/test_work.py",
    "cli/test_commands.py",
    "reproduce/test_running.py",
    "reproduce/test_pages.py",
)
"""Files with single tests or fixtures of many seconds, the longest first."""


@pytest.fixture(scope="module")
def simulation(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The script in benchmarks/ that the test module names as SIMULATION, imported as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        yield importlib.import_module(request.module.SIMULATION)


def pytest_configure(config: pytest.Config) -> None:
    """Tests keep what they cache, and what they trust, out of the user's own folder."""
    os.environ["XDG_CACHE_HOME"] = str(config.rootpath / ".pytest_cache" / "advsphere")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deal the long files out to the beginnings of the parts that pytest-xdist gives its workers (--dist worksteal), so
    that no worker is left with one when the others are done.
    """
    here = Path(__file__).parent
    if any(item.path.is_relative_to(here / "device") for item in items):
        from tests.device import stand_in

        stand_in.install()  # autograd counts the devices at the first backward pass of a process, whichever test has it
    long: dict[Path, list[pytest.Item]] = {here / name: [] for name in LONG}
    short: list[pytest.Item] = []
    for item in items:
        long.get(item.path, short).append(item)
    workers = getattr(config, "workerinput", {"workercount": 1})["workercount"]
    left = len(items)
    items.clear()
    for worker in range(workers):
        begin = [item for file in [*long.values()][worker::workers] for item in file]
        rest = max(0, left // (workers - worker) - len(begin))
        items += [*begin, *short[:rest]]
        del short[:rest]
        left -= len(begin) + rest
    items += short
