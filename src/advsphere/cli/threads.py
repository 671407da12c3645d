"""The number of threads in a container. PyTorch takes one for each core of the machine, however few are granted."""

from __future__ import annotations

import os
from pathlib import Path

CONTROL = Path("/sys/fs/cgroup")


def limit_threads() -> None:
    """Use as many threads as the container may use cores, unless OMP_NUM_THREADS says otherwise. More threads than that
    wait for each other most of the time. PyTorch reads the variable when it is imported.
    """
    cores = granted()
    if cores is not None and cores < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(cores))))


def granted() -> float | None:
    """The cores that Linux grants to this container, None without a limit."""
    for quota_and_period in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # version 2, version 1
        try:
            quota, period = " ".join((CONTROL / name).read_text() for name in quota_and_period).split()
            return int(quota) / int(period) if int(quota) > 0 else None
        except (OSError, ValueError):  # there is no such file, or the quota is "max"
            continue
    return None
