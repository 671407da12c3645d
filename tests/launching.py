"""Programs in processes of their own, as one rank or as several, without the agent of torchrun: it starts slowly."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

SERVER = multiprocessing.get_context("forkserver")
"""Ranks are forked from one process that has already imported what takes seconds to import."""
PRELOADED = ["pytest", "sklearn.datasets", "torch._dynamo", "advsphere.cli.evaluate", "advsphere.cli.train"]
SERVER.set_forkserver_preload(PRELOADED)


def run_ranks(
    size: int, program: str, *arguments: object, seconds: float = 120
) -> list[subprocess.CompletedProcess[str]]:
    """What each rank of a world of `size` gave; program: Python source, which finds `arguments` in sys.argv."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    command = ["-c", *map(str, arguments)]
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        said = [(Path(folder, f"{rank}.out"), Path(folder, f"{rank}.err")) for rank in range(size)]
        ranks = [
            SERVER.Process(target=_run, args=(program, command, place | {"RANK": rank, "LOCAL_RANK": rank}, *streams))
            for rank, streams in enumerate(said)
        ]
        for rank in ranks:
            rank.start()
        try:
            for rank in ranks:
                rank.join(max(0.0, until - time.monotonic()))
            assert all(rank.exitcode is not None for rank in ranks), f"still running after {seconds:.0f} seconds"
        finally:
            for rank in ranks:
                rank.kill()
        return [
            subprocess.CompletedProcess(command, rank.exitcode or 0, out.read_text(), err.read_text())
            for rank, (out, err) in zip(ranks, said, strict=True)
        ]


def _run(program: str, command: list[str], environment: dict[str, object], out: Path, err: Path) -> None:
    """Run a program in this process as `python -c` would."""
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.chdir(ROOT)
    os.environ.update({name: str(value) for name, value in environment.items()})
    sys.argv = command
    exec(compile(program, "<rank>", "exec"), {"__name__": "__main__"})
    from advsphere.distributed import leave

    leave(0)
