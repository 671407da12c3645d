"""Running a plan: on this machine, in this process, or on a Ray cluster; the same commands in any case."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advsphere.errors import UserError
from advsphere.reproduce.jobs import Job

Start = Callable[[Job], "Future[int]"]
"""Begin a job; the future has its exit status."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Of each job: several jobs fill the cores better than several threads, and a fixed count keeps sums reproducible."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that failed. log: what it printed, and why."""

    job: Job
    status: int
    log: Path


def run(
    jobs: Sequence[Job],
    start: Start,
    *,
    logs: Path,
    at_once: int,
    on_start: Callable[[Job], None] = lambda job: None,
    on_end: Callable[[Job, int], None] = lambda job, status: None,
) -> list[Failure]:
    """Do what is not done yet, each job after those it needs, those that come first as early as can be; returns what
    failed. A failure stops only the jobs that need its output.
    """
    named = {job.name for job in jobs}
    finished = {job.name for job in jobs if job.done}
    waiting = [job for job in jobs if job.name not in finished]
    running: dict[Future[int], Job] = {}
    failures: list[Failure] = []
    while True:
        for job in [job for job in waiting if {*job.after} & named <= finished][: at_once - len(running)]:
            waiting.remove(job)
            on_start(job)
            running[start(job)] = job
        if not running:
            return failures
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job, status = running.pop(future), future.result()
            if status == 0 and job.done:
                finished.add(job.name)
            else:
                failures.append(Failure(job=job, status=status, log=log_of(job, logs)))
            on_end(job, status)


def log_of(job: Job, logs: Path) -> Path:
    """Where what a job prints is kept."""
    return logs / f"{job.name.replace(': ', '_').replace(' ', '_')}.log"


@contextmanager
def here(jobs: int, logs: Path) -> Iterator[Start]:
    """Each job a process of one thread. When left early, those that run are asked to stop, and write a checkpoint."""
    processes: set[subprocess.Popen[bytes]] = set()

    def work(job: Job) -> int:
        with log_of(job, logs).open("ab") as log:
            line = [sys.executable, "-m", "advsphere", *job.command]
            process = subprocess.Popen(line, env=os.environ | ONE_THREAD, stdout=log, stderr=log)
            processes.add(process)
            return process.wait()

    logs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield lambda job: pool.submit(work, job)
        finally:
            for process in processes:
                process.terminate()


@contextmanager
def inside(main: Callable[[list[str]], int], logs: Path) -> Iterator[Start]:
    """Each job in this process, one after the other: for jobs that take less time than Python takes to start. main: of
    the command line.
    """

    def begin(job: Job) -> Future[int]:
        ended: Future[int] = Future()
        with log_of(job, logs).open("a") as log, redirect_stdout(log), redirect_stderr(log):
            ended.set_result(main(list(job.command)))
        return ended

    logs.mkdir(parents=True, exist_ok=True)
    yield begin


@contextmanager
def on_ray(logs: Path, address: str | None = None) -> Iterator[Start]:
    """Each job a task of one core on a Ray cluster whose machines share this folder; a local one is started where none
    is named. Raises UserError where Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--on ray needs Ray: pip install 'advsphere[ray]'; or leave it out") from error
    logs.mkdir(parents=True, exist_ok=True)
    began = not ray.is_initialized()
    if began:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)

    def work(command: Sequence[str], folder: str, log: str) -> int:
        with open(log, "ab") as file:
            line = [sys.executable, "-m", "advsphere", *command]
            return subprocess.run(line, cwd=folder, env=os.environ | ONE_THREAD, stdout=file, stderr=file).returncode

    task: Any = ray.remote(work)

    def begin(job: Job) -> Future[int]:
        future: Future[int] = task.remote(job.command, str(Path.cwd()), str(log_of(job, logs).absolute())).future()
        return future

    try:
        yield begin
    finally:
        if began:
            ray.shutdown()
