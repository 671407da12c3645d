"""Run the commands of a plan on this machine, in this process, or on a Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from advsphere.errors import UserError
from advsphere.files import disk_errors
from advsphere.reproduce.jobs import Job

Start = Callable[[Job], "Future[int]"]
"""Starts a job; the future returns its exit status."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Several jobs use the cores better than several threads, and a fixed count keeps sums reproducible."""


def run(
    jobs: Sequence[Job],
    start: Start,
    *,
    at_once: int,
    on_end: Callable[[Job, bool], None] = lambda job, done: None,
) -> list[Job]:
    """Run the open jobs in order, each after the jobs it needs; returns the failed jobs.

    A failure stops only the jobs that need its output. `on_end` is called with each job that ended, and whether it is
    done.
    """
    named = {job.name for job in jobs}
    finished = {job.name for job in jobs if job.done}
    waiting = [job for job in jobs if job.name not in finished]
    running: dict[Future[int], Job] = {}
    failed: list[Job] = []
    while True:
        for job in [job for job in waiting if {*job.after} & named <= finished][: at_once - len(running)]:
            waiting.remove(job)
            running[start(job)] = job
        if not running:
            return failed
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            done = future.result() == 0 and job.done
            if done:
                finished.add(job.name)
            else:
                failed.append(job)
            on_end(job, done)


def log_of(job: Job, logs: Path) -> Path:
    """The file for a job's output."""
    return logs / f"{job.name.replace(': ', '_').replace(' ', '_')}.log"


@contextmanager
def here(jobs: int, logs: Path) -> Iterator[Start]:
    """Run each job in a process with one thread. On an interrupt, running jobs write a checkpoint and stop."""
    processes: set[subprocess.Popen[bytes]] = set()

    def work(job: Job) -> int:
        with disk_errors(log_of(job, logs)), log_of(job, logs).open("ab") as log:
            line = [sys.executable, "-m", "advsphere", *job.command]
            process = subprocess.Popen(line, env=os.environ | ONE_THREAD, stdout=log, stderr=log)
            processes.add(process)
            return process.wait()

    with disk_errors(logs):
        logs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield lambda job: pool.submit(work, job)
        finally:
            for process in processes:
                process.terminate()


@contextmanager
def inside(main: Callable[[list[str]], int], logs: Path) -> Iterator[Start]:
    """Run each job in this process by the command line's `main`, for jobs that are shorter than the start of Python."""

    def begin(job: Job) -> Future[int]:
        ended: Future[int] = Future()
        path = log_of(job, logs)
        with disk_errors(path), path.open("a") as log, redirect_stdout(log), redirect_stderr(log):
            ended.set_result(main(list(job.command)))
        return ended

    with disk_errors(logs):
        logs.mkdir(parents=True, exist_ok=True)
    yield begin


@contextmanager
def on_ray(logs: Path, address: str | None = None) -> Iterator[Start]:
    """Run each job as a task of one core on a Ray cluster whose machines share this folder. Without an address a local
    cluster is started. Raises UserError if Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--on ray needs Ray: pip install 'advsphere[ray]'; or leave it out") from error
    with disk_errors(logs):
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
