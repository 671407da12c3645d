"""`advsphere train RECIPE`: train a recipe, with typed overrides, into a run's folder."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from torch import nn

from advsphere.analysis import gradient_record
from advsphere.cli.arguments import parse
from advsphere.cli.progress import TrainingProgress
from advsphere.data import Images
from advsphere.distributed import World, joined, leave
from advsphere.hypersphere import HypersphereConfig
from advsphere.losses import Loss
from advsphere.recipes import recipe
from advsphere.runs.build import head_name
from advsphere.runs.config import Config
from advsphere.runs.train import train
from advsphere.training import Metrics, Stopped

HELP = """usage: advsphere train RECIPE [--out DIR] [--resume] [--he] [--diagnose] [OVERRIDES]

Trains a recipe and writes a run's folder: config.yaml, last.safetensors, best.safetensors (chosen on held-out
training images), metrics.jsonl, TensorBoard's files. Interrupt it at any time; --resume goes on exactly there.

  advsphere train digits-pgd-at-he
  advsphere train cifar10-fastat --data.root ~/data --epochs 15 --he
  advsphere train folder-pgd-at --data.root photos --data.image-size 64 --model.name timm:resnet18 --he

On several GPUs or machines the command is the same, and so are its settings: --batch-size is the global batch,
--lr belongs to it. A process that dies is started again, and all go on from the last checkpoint:

  torchrun --nproc-per-node 8 --max-restarts 3 -m advsphere train imagenet-freeat-he-resnet50 --resume

--diagnose also records, after each epoch, how much louder adversarial images speak than clean ones in the gradients of
each layer; `advsphere diagnose` draws it.

`advsphere recipes` lists the recipes; `advsphere train RECIPE --help` lists all settings of one, with its values."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a network. Every setting of the recipe can be overridden."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    out: Path | None = None
    """The run's folder; runs/RECIPE by default."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on from the folder's last checkpoint; begin if there is none yet."""
    diagnose: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Record the gradient-norm ratio of every layer after each epoch, on held-out images, in metrics.jsonl."""
    he: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Hypersphere embedding: put the network on the sphere, with s = 15 and m = 0.2 unless --sphere.* says otherwise.
    """


def main(arguments: list[str]) -> int:
    """Parse, train, and say where the result is."""
    with joined() as world:
        status = _train(arguments, world)
    leave(status)
    return status


def _train(arguments: list[str], world: World) -> int:
    if not arguments or arguments[0].startswith("-"):
        print(HELP)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    name, rest = arguments[0], arguments[1:]
    config = recipe(name)
    if "--he" in rest and config.sphere is None:
        # Before parsing, so that --sphere.scale and the like are known.
        config = replace(config, sphere=HypersphereConfig(), recipe=f"{name}-he")
    options = parse(Options, rest, prog=f"advsphere train {name}", default=Options(config=config))
    folder = options.out or Path("runs") / options.config.recipe
    console = Console(highlight=False)
    with TrainingProgress(options.config, console) as progress, stopping() as asked:
        try:
            train(
                options.config,
                folder,
                resume=options.resume,
                on_start=progress.start,
                on_tick=progress.tick,
                on_epoch=progress.epoch,
                stop=lambda: bool(asked),
                world=world,
                **({"record": _recorder(options.config)} if options.diagnose else {}),
            )
        except Stopped as stopped:
            command = f"advsphere train {name} {' '.join(_resuming(rest, folder))}"
            together = "" if world.size == 1 else "torchrun ... -m "
            console.print(f"{stopped}: {together}{command}", soft_wrap=True)
            return 130
    console.print(f"trained; next: advsphere evaluate {folder}")
    return 0


def _recorder(config: Config) -> Callable[[nn.Module, Images, Loss], Metrics]:
    return partial(gradient_record, threat=config.threat, head=head_name(config))


def _resuming(rest: list[str], folder: Path) -> list[str]:
    """The arguments that go on with a run."""
    out = [] if "--out" in rest else ["--out", str(folder)]
    return [*rest, *out, *([] if "--resume" in rest else ["--resume"])]


@contextmanager
def stopping() -> Iterator[list[int]]:
    """A list that holds a signal once SIGINT or SIGTERM came; a second one interrupts at once."""
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("stopping after this step; the checkpoint is being written ...", file=sys.stderr)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
