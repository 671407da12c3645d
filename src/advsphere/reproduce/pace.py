"""How long a plan will take on this machine, from a short measurement of each of its networks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from advsphere.classifier import low_precision
from advsphere.config import Config
from advsphere.data import ImageSet
from advsphere.experiment import build_model, device
from advsphere.reproduce.jobs import Job

_CLASSES, _SIZES = {"imagefolder": 40, "cifar100": 100}, {"digits": (1, 8)}


def seconds(jobs: Sequence[Job]) -> dict[str, float]:
    """By name, how long each job will take alone. A network is measured once, for about half a second."""
    paces: dict[str, float] = {}
    with _one_thread():
        for job in jobs:
            key = _key(job.config)
            if key not in paces:
                paces[key] = seconds_per_pass(job.config)
    return {job.name: job.passes * paces[_key(job.config)] for job in jobs}


@contextmanager
def _one_thread() -> Iterator[None]:
    """As the jobs will run; and threads that wait for each other would count as work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds_per_pass(config: Config, *, at_least: float = 0.4) -> float:
    """Time for one image to go forward and back, in the precision that training takes."""
    channels, size = _SIZES.get(config.data.name, (3, config.data.image_size or 32))
    count = _CLASSES.get(config.data.name, 10)
    where = device()
    # A GPU needs many images to be busy; on a CPU few large ones tell as much, without taking minutes and gigabytes.
    batch = max(1, min(64, 64**3 // size**2)) if where.type == "cpu" else 64
    images = ImageSet(torch.zeros(1, channels, size, size, dtype=torch.uint8), torch.zeros(1, dtype=torch.long),
                    classes=tuple(map(str, range(count))), name="blank")  # fmt: skip
    model = build_model(config, images).to(where)
    x = torch.rand(batch, channels, size, size, device=where).to(memory_format=torch.channels_last)
    y = torch.arange(batch, device=where) % count
    dtype = low_precision(where)
    # A busy machine's clock says little of what the job takes; the time that the processor spends on it does.
    clock = time.process_time if where.type == "cpu" else time.perf_counter
    done, began = -1, 0.0  # the first pass warms up
    while done < 1 or clock() - began < at_least:
        with torch.autocast(where.type, dtype=dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        float(loss.detach())  # waits for a GPU
        done += 1
        if done == 0:
            began = clock()
    return (clock() - began) / (done * batch)


def in_words(seconds: float) -> str:
    """12 s, 8 min, 2.5 h, 6 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"


def _key(config: Config) -> str:
    return f"{config.model.name} {config.data.name} {config.data.image_size}"
