"""Jobs: each is an ordinary command whose folder tells whether it is done, so that any of them can be skipped,
repeated, or run elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from advsphere.classifier import low_precision
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.recipes import recipe
from advsphere.reproduce.budgets import Effort
from advsphere.runs.build import build_model, device
from advsphere.runs.config import Config, differences, flags
from advsphere.training import read_metrics


@dataclass(frozen=True, kw_only=True)
class Job:
    """name: unique in a plan. command: the arguments of `advsphere`. after: names of the jobs whose output it needs.
    made: the file that is there once it is done; of a run that has `epochs`, with a line for each. config: of the run
    that is trained or judged. passes: of an image through its network and back, about how many it takes.
    """

    name: str
    command: tuple[str, ...]
    made: Path
    after: tuple[str, ...] = ()
    epochs: int | None = None
    passes: float = 0.0
    config: Config

    @property
    def done(self) -> bool:
        if not self.made.is_file():
            return False
        return self.epochs is None or len(read_metrics(self.made.parent)) >= self.epochs


def validated(job: Job) -> float | None:
    """Of a training, the accuracy on held-out images that chose its best checkpoint, in [0, 1]; None before it is
    done.
    """
    by = job.config.objective.chosen_by
    return max(float(epoch[by]) for epoch in read_metrics(job.made.parent)) if job.done else None


def run_name(config: Config) -> str:
    """A folder's name for a run, which is another for every other config: the recipe and what differs from it."""
    changes = differences(recipe(config.recipe), config)
    return "_".join([config.recipe, *(f"{c.path.removeprefix('training.')}={c.new}" for c in changes)])


def training(config: Config, runs: Path, *, images: int, data_root: Path | None = None) -> Job:
    """Train a config into its own folder under `runs`. images: how many a training epoch has, for the estimate. Raises
    UserError where flags can't say what it is.
    """
    folder = runs / run_name(config)
    typed = flags(recipe(config.recipe), config)
    if typed is None:
        raise UserError(f"{folder.name} differs from its recipe in what no flag can say; make it a recipe")
    where = [] if data_root is None else ["--data.root", str(data_root)]
    steps = getattr(config.objective, "steps", 0)
    twice = 2 if type(config.objective).__name__ in ("ALP", "TRADES") else 1
    return Job(
        name=f"train {folder.name}",
        command=("train", config.recipe, *typed, *where, "--resume", "--out", str(folder)),
        made=folder / "metrics.jsonl",
        epochs=config.training.epochs,
        passes=config.training.epochs * images * config.objective.replays * (steps + twice),
        config=config,
    )


FORWARDS = {
    "paper": 70,
    "quick": 90,
    "table2": 1300,
    "table4": 50,
    "table6": 6000,
    "survival": 3500,
    "autoattack": 2400,
}
"""Passes for an image in each suite, about: as counted on small CIFAR-10 networks, on which most images fall early."""


def evaluation(trained: Job, suite: str, effort: Effort, *, data_root: Path | None = None) -> Job:
    """Attack a run's best checkpoint."""
    folder = trained.made.parent
    asked: list[object] = ["--n", effort.n] if effort.n else []
    asked += ["--guides", effort.guides] if effort.guides != 100 else []
    asked += ["--steps", effort.steps] if effort.steps else []
    where = [] if data_root is None else ["--data", str(data_root)]
    name = "-".join([suite, *(str(word).strip("-") for word in asked)])
    out = folder / "evaluations" / name
    return Job(
        name=f"attack {folder.name}: {name}",
        command=("evaluate", str(folder), "--suite", suite, *map(str, asked), *where, "--out", str(out)),
        after=(trained.name,),
        made=out / "evaluation.json",
        passes=FORWARDS.get(suite, 1000) * (effort.n or 10_000),
        config=trained.config,
    )


def corruption(trained: Job, effort: Effort, *, data_root: Path | None = None) -> Job:
    """Measure a run's best checkpoint under the generated corruptions."""
    folder = trained.made.parent
    asked = ["--n", str(effort.n)] if effort.n else []
    where = [] if data_root is None else ["--data", str(data_root)]
    out = folder / "corruptions" / "-".join(["generated", *(word.strip("-") for word in asked)])
    return Job(
        name=f"corrupt {folder.name}: {out.name}",
        command=("corruptions", str(folder), *asked, *where, "--out", str(out)),
        after=(trained.name,),
        made=out / "corruptions.png",  # drawn when the record is complete
        passes=76 * (effort.n or 10_000),
        config=trained.config,
    )


def diagnosis(trained: Job, baseline: Job | None, effort: Effort, *, data_root: Path | None = None) -> Job:
    """Look inside a run's best checkpoint, beside its baseline if there is one."""
    folder = trained.made.parent
    beside = [] if baseline is None else ["--baseline", str(baseline.made.parent)]
    n = ["--n", str(effort.n)] if effort.n else []
    where = [] if data_root is None else ["--data", str(data_root)]
    out = folder / "diagnosis" / "-".join(["pair" if baseline else "alone", *(word.strip("-") for word in n)])
    return Job(
        name=f"diagnose {folder.name}: {out.name}",
        command=("diagnose", str(folder), *beside, *n, *where, "--out", str(out)),
        after=(trained.name, *([] if baseline is None else [baseline.name])),
        made=out / "diagnosis.json",
        passes=1500 * (effort.n or 500) * (1 if baseline is None else 2),
        config=trained.config,
    )


# FOLDED pace: How long a plan will take on this machine, from a short measurement of each of its networks.

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
