"""The jobs of a plan. Each is an ordinary command whose folder shows whether it is done, so it can be skipped,
repeated, or run on another machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from advsphere.errors import UserError
from advsphere.recipes import recipe
from advsphere.reproduce.budgets import SuiteSize
from advsphere.runs.config import Config, differences, flags
from advsphere.runs.folder import half_written
from advsphere.training import read_metrics


@dataclass(frozen=True, kw_only=True)
class Job:
    """One command of a plan.

    Attributes:
        name: A name that is unique in a plan.
        command: The arguments of `advsphere`.
        made: The file that exists once the job is done.
        after: The names of the jobs whose output it needs.
        epochs: For a training, the number of lines that `made` has when it is done; None for other jobs.
        config: The config of the run that is trained or evaluated.
    """

    name: str
    command: tuple[str, ...]
    made: Path
    after: tuple[str, ...] = ()
    epochs: int | None = None
    config: Config

    @property
    def done(self) -> bool:
        """Whether its file exists and is complete."""
        if not self.made.is_file():
            return False
        return self.epochs is None or _trained(self.made.parent, self.epochs)


def _trained(folder: Path, epochs: int) -> bool:
    """Whether a run is finished. A line of the log is written before the checkpoints of its epoch, so a run that was
    killed may have all lines and lack these.
    """
    if len(read_metrics(folder)) < epochs:
        return False
    last = folder / "last.safetensors"
    if not last.is_file():  # it may have been deleted, to save space
        return (folder / "best.safetensors").is_file() and not half_written(folder)
    with suppress(SafetensorError, OSError, LookupError, ValueError), safe_open(last, framework="pt") as file:
        return bool(json.loads(file.metadata()["meta"])["cursor"][0] >= epochs)
    return False


def validated(job: Job) -> float | None:
    """The held-out accuracy that chose the best checkpoint of a training, in [0, 1]; None before it is done."""
    by = job.config.objective.chosen_by
    return max(float(epoch[by]) for epoch in read_metrics(job.made.parent) if by in epoch) if job.done else None


def run_name(config: Config) -> str:
    """The name of a run's folder, unique for each config: the recipe and the differences from it."""
    changes = differences(recipe(config.recipe), config)
    return "_".join([config.recipe, *(f"{c.path.removeprefix('training.')}={c.new}" for c in changes)])


def training(config: Config, runs: Path, *, data_root: Path | None = None) -> Job:
    """Train a config into its own folder in `runs`. Raises UserError for changes that flags can't express."""
    folder = runs / run_name(config)
    typed = flags(recipe(config.recipe), config)
    if typed is None:
        raise UserError(f"flags can't turn the recipe into {folder.name}; add a recipe for it")
    where = [] if data_root is None else ["--data.root", str(data_root)]
    return Job(
        name=f"train {folder.name}",
        command=("train", config.recipe, *typed, *where, "--resume", "--out", str(folder)),
        made=folder / "metrics.jsonl",
        epochs=config.training.epochs,
        config=config,
    )


def evaluation(trained: Job, suite: str, size: SuiteSize, *, data_root: Path | None = None) -> Job:
    """Attack a run's best checkpoint."""
    asked = _first(size)
    asked += ["--guides", str(size.guides)] if size.guides != 100 else []
    asked += ["--steps", str(size.steps)] if size.steps else []
    command = ["evaluate", str(trained.made.parent), "--suite", suite, *asked]
    return _measurement("attack", trained, command, "evaluations", [suite, *asked], "evaluation.json", data_root)


def corruption(trained: Job, size: SuiteSize, *, data_root: Path | None = None) -> Job:
    """Measure a run's best checkpoint under the generated corruptions."""
    asked = _first(size)
    command = ["corruptions", str(trained.made.parent), *asked]
    made = "corruptions.png"  # drawn when the record is complete
    return _measurement("corrupt", trained, command, "corruptions", ["generated", *asked], made, data_root)


def diagnosis(trained: Job, baseline: Job | None, size: SuiteSize, *, data_root: Path | None = None) -> Job:
    """Diagnose a run's best checkpoint, beside its baseline if there is one."""
    asked = _first(size)
    beside = [] if baseline is None else ["--baseline", str(baseline.made.parent)]
    command = ["diagnose", str(trained.made.parent), *beside, *asked]
    words = ["pair" if baseline else "alone", *asked]
    job = _measurement("diagnose", trained, command, "diagnosis", words, "diagnosis.json", data_root)
    return job if baseline is None else replace(job, after=(*job.after, baseline.name))


def _first(size: SuiteSize) -> list[str]:
    return ["--n", str(size.n)] if size.n else []


def _measurement(
    verb: str, trained: Job, command: Sequence[str], kind: str, words: Sequence[str], made: str, data_root: Path | None
) -> Job:
    """A job that measures a trained run, in a folder inside the run's folder that is named after the options."""
    folder = trained.made.parent
    name = "-".join(word.strip("-").replace(":", ".") for word in words)
    out = folder / kind / name
    where = [] if data_root is None else ["--data", str(data_root)]
    return Job(
        name=f"{verb} {folder.name}: {name}",
        command=(*command, *where, "--out", str(out)),
        after=(trained.name,),
        made=out / made,
        config=trained.config,
    )
