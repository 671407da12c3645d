"""Several ranks of one program, without torchrun's agent: it takes longer to start than most tests to run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_ranks(
    size: int, program: str, *arguments: object, seconds: float = 60
) -> list[subprocess.CompletedProcess[str]]:
    """What each rank of a world of `size` gave; program: Python source, which finds `arguments` in sys.argv."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    last = "\nfrom advsphere.distributed import leave\nleave(0)\n"
    command = [sys.executable, "-c", program + last, *map(str, arguments)]
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {k: str(v) for k, v in (place | {"RANK": rank, "LOCAL_RANK": rank}).items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        said = [rank.communicate(timeout=seconds) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [
        subprocess.CompletedProcess(command, rank.returncode, *words) for rank, words in zip(ranks, said, strict=True)
    ]
