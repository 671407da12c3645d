"""`advsphere train RECIPE`: train a recipe with overrides, and write a run's folder."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from torch import nn

from advsphere.analysis.gradients import record_ratios
from advsphere.cli import taken
from advsphere.cli.arguments import parse
from advsphere.cli.printing import program, terminal
from advsphere.data import Images
from advsphere.distributed import World, joined, leave
from advsphere.errors import UserError
from advsphere.hypersphere import HypersphereConfig
from advsphere.losses import Loss
from advsphere.recipes import recipe
from advsphere.runs.build import head_name
from advsphere.runs.config import Config, objective_like
from advsphere.runs.config_yaml import from_yaml
from advsphere.runs.train import train
from advsphere.runs.watching import TrainingProgress, stopping
from advsphere.threat import ThreatModel
from advsphere.training import Metrics, Stopped
from advsphere.training.trackers import Tracker


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a network. Every setting of the recipe can be overridden."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    out: Path | None = None
    """The run's folder."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue from the folder's last checkpoint, or start if there is none. --epochs may be higher than before."""
    diagnose: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Record the gradient-norm ratio of every layer after each epoch, on held-out images, in metrics.jsonl."""
    log_to: Tracker = "tensorboard"
    """Where the metrics are shown beside metrics.jsonl. Weights & Biases and MLflow need their package."""
    he: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Add hypersphere embedding, with s = 15 and m = 0.2 unless --sphere.* sets other values."""


def main(arguments: list[str]) -> int:
    """Train, and print the command that evaluates the run."""
    with joined() as world:
        status = _train(arguments, world)
    leave(status)
    return status


def _train(arguments: list[str], world: World) -> int:
    if arguments[0].startswith("-"):
        raise UserError("name the recipe first: advsphere train RECIPE [SETTINGS]; `advsphere recipes` lists them")
    name, rest = arguments[0], arguments[1:]
    config, folder, words = _begun(name, rest)
    options = parse(Options, words, prog=f"advsphere train {name}", default=Options(config=config, out=folder))
    config, folder = _one_threat(options.config, words), options.out or folder
    console = terminal()
    with TrainingProgress(config, console) as progress, stopping() as stop:
        try:
            train(
                config,
                folder,
                resume=options.resume,
                on_start=progress.start,
                on_tick=progress.tick,
                on_epoch=progress.epoch,
                on_collapse=progress.collapse,
                stop=stop,
                world=world,
                log_to=options.log_to,
                record=_recorder(config) if options.diagnose else None,
            )
        except Stopped as stopped:
            words = ["train", name, *_resuming(rest, folder)]
            command = program(*words) if world.size == 1 else f"torchrun ... -m advsphere {shlex.join(words)}"
            console.print(f"{stopped}: {command}", soft_wrap=True)
            return 130
    if world.first:
        progress.end(folder)
    console.print(f"trained; next: {program('evaluate', folder)}", soft_wrap=True)
    return 0


def _begun(name: str, rest: list[str]) -> tuple[Config, Path, list[str]]:
    """Read the arguments that decide which flags exist. Returns the config with its objective and sphere, the default
    folder, and the remaining arguments.
    """
    config = _read(Path(name)) if name.endswith((".yaml", ".yml")) else recipe(name)
    folder = config.recipe
    words, objective = taken(rest, "--objective")
    if objective is not None:
        config = replace(config, objective=objective_like(objective, config))
        folder += f"-{objective.rpartition(':')[2].lower()}"
    if "--he" in words and config.sphere is None:
        config = replace(config, sphere=HypersphereConfig(), recipe=f"{config.recipe}-he")
        folder += "-he"
    if config.sphere is None and (flag := next((word for word in words if word.startswith("--sphere.")), None)):
        raise UserError(f"{flag.partition('=')[0]} is about hypersphere embedding: add --he to this recipe")
    return config, Path("runs") / folder, words


def _read(path: Path) -> Config:
    try:
        return from_yaml(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error


def _one_threat(config: Config, words: list[str]) -> Config:
    """Apply --threat.* to training too, except where --objective.threat.* is given."""
    own = getattr(config.objective, "threat", None)
    given = {word.partition("=")[0] for word in words}
    names = [field.name for field in fields(ThreatModel)]
    same = [n for n in names if f"--threat.{n}" in given and f"--objective.threat.{n}" not in given]
    if own is None or not same:
        return config
    threat = replace(own, **{name: getattr(config.threat, name) for name in same})
    return replace(config, objective=replace(config.objective, threat=threat))  # type: ignore[call-arg]


def _recorder(config: Config) -> Callable[[nn.Module, Images, Loss], Metrics]:
    return partial(record_ratios, threat=config.threat, head=head_name(config))


def _resuming(rest: list[str], folder: Path) -> list[str]:
    """The arguments that continue a run."""
    out = [] if "--out" in rest else ["--out", str(folder)]
    return [*rest, *out, *([] if "--resume" in rest else ["--resume"])]
