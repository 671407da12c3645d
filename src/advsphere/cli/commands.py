"""The lines to type to get a report's numbers again, to check them, and to go on from them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from advsphere import experiment
from advsphere.cli.evaluations import Finished
from advsphere.config import differences, flags
from advsphere.errors import UserError
from advsphere.evaluation import Effort, radius, usual_batch_size
from advsphere.recipes import recipe
from advsphere.report import Command


def commands(places: Sequence[Sequence[Path]], arms: Sequence[Sequence[Finished]]) -> list[Command]:
    """From training to this page. places: what the report was asked for; each arm is one place, or several seeds."""
    lines = []
    for one in (one for arm in arms for one in arm):
        run = one.subject.run
        if run is not None and (trained := _train(run)) is not None:
            lines.append(Command(f"Train {run.name}", trained))
        lines.append(Command(f"Evaluate {(run or one.folder).name}", _evaluate(one)))
        lines.append(Command("Check its every number from the evidence", _line("verify", one.folder)))
    runs = [[one.subject.run for one in arm if one.subject.run is not None] for arm in arms]
    if len(arms) == 2 and list(map(len, runs)) == list(map(len, arms)):
        compared = _line("compare", *map(_joined, runs))
        lines.append(Command("Compare the two under all attacks of the survival suite", compared))
    lines += [Command(f"Look inside {run.name}", _line("diagnose", run)) for run in runs[-1][:1]]
    suite = arms[0][0].evaluation.identity["suite"]["name"]
    return [*lines, Command("Write this page again", _line("report", *map(_joined, places), "--suite", suite))]


def _joined(seeds: Sequence[Path]) -> str:
    return ",".join(map(str, seeds))


def _train(run: Path) -> str | None:
    """None where a run differs from its recipe in more than a flag can say."""
    config = experiment.read_config(run)
    try:
        changes = [line for line in differences(recipe(config.recipe), config) if not line.startswith("data.root:")]
    except UserError:
        return None
    typed = flags(changes)
    return None if typed is None else _line("train", config.recipe, "--out", run, *typed)


def _evaluate(one: Finished) -> str:
    subject, identity = one.subject, one.evaluation.identity
    shape = identity["data"]["shape"]
    given: dict[str, object] = {
        "--checkpoint": subject.checkpoint if subject.checkpoint != "best" else None,
        "--model": subject.model,
        "--weights": subject.weights,
        "--data": subject.data,
        "--image-size": subject.image_size,
        "--mean": subject.mean,
        "--std": subject.std,
        "--n": subject.n,
        "--suite": identity["suite"]["name"],
    }
    usual = Effort()
    for field in ("restarts", "steps", "guides"):
        value = identity["suite"].get(field)
        given[f"--{field}"] = None if value == getattr(usual, field) else value
    given |= {
        "--norm": identity["threat"]["norm"],
        "--eps": radius(identity["threat"]["eps"]),
        "--seed": identity["seed"] or None,
        "--batch-size": identity["batch_size"] if identity["batch_size"] != usual_batch_size(shape) else None,
        "--precision": identity["search"],
        "--head": identity["suite"].get("head") if subject.run is None else None,
        "--out": one.folder,
    }
    words: list[object] = [] if subject.run is None else [subject.run]
    for flag, value in given.items():
        if value is not None:
            words += [flag, *(value if isinstance(value, tuple) else (value,))]
    words += ["--cascade"] if identity["suite"].get("cascade") else []
    return _line("evaluate", *words)


def _line(command: str, *words: object) -> str:
    return shlex.join(["advsphere", command, *map(str, words)])
