"""From a config to a trained network in a folder, and back: where data, model, sphere, objective and loop are put
together.

A run's folder holds config.yaml, provenance.json, last.safetensors, best.safetensors, metrics.jsonl and TensorBoard's
files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from advsphere.attacks import pgd
from advsphere.classifier import find_head, fooled, frozen
from advsphere.data import Images, load, load_test
from advsphere.distributed import World
from advsphere.errors import UserError
from advsphere.files import folder_lock, write_atomically
from advsphere.hypersphere import AngularMargin, HypersphereHead
from advsphere.losses import cross_entropy
from advsphere.models import STATISTICS, build, load_weights, synchronised
from advsphere.objectives import Criterion
from advsphere.provenance import environment
from advsphere.rng import Rng
from advsphere.runs.config import Config, differences, from_yaml, to_yaml
from advsphere.threat import ThreatModel
from advsphere.training import Hooks, Metrics, MetricsLog, Tick, Trainer, load_checkpoint, restore_model, section


def device() -> torch.device:
    """Where networks run: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_model(config: Config, images: Images, tell: Callable[[str], None] = lambda line: None) -> nn.Module:
    """The network of a config for these images, with its sphere if it has one; initial weights are a function of the
    seed, or those that the config names.

    tell: told what the user should know. Raises UserError for an unknown name, where the last linear layer can't be
    told, and for weights that can't be had or do not fit.
    """
    if config.model.pretrained and config.model.weights is not None:
        raise UserError("start from --model.pretrained or from --model.weights, not from both")
    channels, size, _ = images.shape
    name = config.model.statistics or ("imagenet" if config.data.name == "imagefolder" else config.data.name)
    if name not in STATISTICS:
        raise UserError(f"no pixel statistics are called {name!r}; choose one of {', '.join(STATISTICS)}")
    model = build(
        config.model.name,
        num_classes=len(images.classes),
        in_channels=channels,
        image_size=size,
        mean=STATISTICS[name].mean,
        std=STATISTICS[name].std,
        pretrained=config.model.pretrained,
        init_seed=config.training.seed,
    )
    if config.model.weights is not None:
        said = load_weights(model, config.model.weights, head=find_head(model, head_name(config)))
        if said:
            tell(said)
    if config.sphere is not None:
        config.sphere.attach(model, head_name(config))
    channels_last: nn.Module = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return channels_last


def from_scratch(config: Config) -> Config:
    """The same with initial weights of its own: for a network that is about to be given others."""
    return replace(config, model=replace(config.model, pretrained=False, weights=None))


def head_name(config: Config) -> str | None:
    """The head that the user named, as it is called inside the wrapper that normalises the input."""
    return None if config.model.head is None else f"network.{config.model.head}"


class Parts(NamedTuple):
    """What the loop needs besides images: the model, what is minimised, and how the sphere's schedules and margin reach
    them.
    """

    model: nn.Module
    criterion: Criterion
    before_step: Callable[[float], None]
    shift: Callable[[Tensor, Tensor], Tensor] | None


def assemble(config: Config, images: Images, tell: Callable[[str], None] = lambda line: None) -> Parts:
    """Build the model, as `build_model` does, and bind the sphere to it."""
    model, sphere = build_model(config, images, tell), config.sphere
    if sphere is None:
        return Parts(model, cross_entropy, lambda progress: None, None)
    head = model.get_submodule(find_head(model, head_name(config)))
    assert isinstance(head, HypersphereHead)
    criterion = AngularMargin(head, sphere.margin)
    return Parts(
        model, criterion, partial(sphere.move, criterion), criterion.shift if sphere.margin_in_attack else None
    )


@dataclass(frozen=True)
class Validation:
    """Clean and PGD-10 accuracy on held-out training images, which choose the best checkpoint.

    PGD-10 takes steps of eps / 4 from a uniform start, the same draws in every epoch. record: further metrics of the
    model on these images. world: each of its ranks takes a share of the images, and all get the counts of all; the
    first one alone records.
    """

    images: Images
    threat: ThreatModel
    dtype: torch.dtype | None
    batch_size: int = 500
    record: Callable[[nn.Module, Images], Metrics] = lambda model, images: {}
    world: World = World()

    def __call__(self, model: nn.Module) -> Metrics:
        attack = partial(pgd, threat=self.threat, steps=10, step_size=self.threat.eps / 4, until_fooled=True)
        n, correct, robust = len(self.images), 0, 0
        mine = torch.arange(n)[self.world.share(n)]
        with frozen(model, dtype=self.dtype, fold=True) as classify:
            for index in mine.split(self.batch_size) if len(mine) else ():
                x, y = self.images.batch(index)
                with torch.no_grad():
                    right = ~fooled(classify(x), y)
                correct += int(right.sum())
                index = index.to(right.device)
                x, y, rng = x[right], y[right], Rng(0, index[right])
                if len(x):
                    with torch.no_grad():
                        robust += int((~fooled(classify(attack(classify, x, y, rng=rng)), y)).sum())
        correct, robust = self.world.sum(torch.tensor([correct, robust])).tolist()
        metrics = {"clean": correct / n, "robust": robust / n}
        return metrics | self.record(model, self.images) if self.world.first else metrics


def train(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    on_start: Callable[[Trainer, list[str]], None] = lambda trainer, notes: None,
    on_tick: Callable[[Tick], None] = lambda tick: None,
    on_epoch: Callable[[Metrics], None] = lambda metrics: None,
    stop: Callable[[], bool] = lambda: False,
    record: Callable[[nn.Module, Images, Criterion], Metrics] = lambda model, images, criterion: {},
    world: World = World(),
) -> nn.Module:
    """Train what the config says into the folder; returns the network as it is after the last epoch.

    resume: go on from the folder's last checkpoint, or begin where there is none yet. on_start: told the trainer and
    what the user should know. record: asked after each epoch for metrics to log with the others, on the held-out images
    and by what is minimised. world: the processes that train together; the first alone calls `on_tick` and `on_epoch`,
    and writes the folder, which all of them have to see. Raises UserError where the folder holds another run or
    another process trains into it, and as `Trainer.fit`; `training.Stopped` when `stop` said so.
    """
    where = device()
    if config.training.sync_bn and where.type == "cpu":
        raise UserError("--sync-bn needs GPUs: torch has no synchronised batch norm on a CPU; leave it out")
    around = environment(where) | {"ranks": world.size}
    with ExitStack() as held:
        if world.first:
            held.enter_context(folder_lock(folder))
        begun = world.from_first(world.first and _claim(folder, config, resume, around))
        crops = config.training.augment.min_area is not None
        data = load(
            config.data.name,
            config.data.root,
            image_size=config.data.image_size,
            resize=config.data.resize,
            crops=crops,
        )
        training_images, held_out = data.train.split(config.data.validation, seed=config.training.seed)
        notes = [data.note] if data.note else []
        parts = assemble(from_scratch(config) if begun else config, data.train, notes.append)
        model = parts.model.to(where)
        trainer = Trainer(
            synchronised(model) if config.training.sync_bn and world.size > 1 else model,
            config.objective,
            parts.criterion,
            training_images.to(where),
            settings=config.training,
            folder=folder,
            environment=around,
            world=world,
        )
        if begun:
            notes += [
                f"resumed where this differs, so equal up to rounding only: {change}" for change in trainer.resume()
            ]
        log = held.enter_context(closing(MetricsLog(folder, trainer.cursor.epoch))) if world.first else None

        def finished_epoch(metrics: Metrics) -> None:
            if log is not None:
                log(metrics)
            on_epoch(metrics)

        trainer.hooks = Hooks(
            before_step=parts.before_step,
            shift=parts.shift,
            validate=Validation(
                held_out.to(where),
                config.threat,
                trainer.dtype,
                batch_size=max(
                    1, min(500, 500 * 64**2 // math.prod(held_out.shape[1:]))
                ),  # large images, fewer at once
                record=lambda model, images: record(model, images, parts.criterion),
                world=world,
            ),
            on_tick=on_tick,
            on_epoch=finished_epoch,
            stop=stop,
        )
        on_start(trainer, notes)
        trainer.fit()
        return trainer.result


_WITHOUT_EFFECT = (
    "data.root:",
    "training.checkpoint_activations:",
    "training.checkpoint_minutes:",
    "training.workers:",
)
"""Settings that a resume may change: where the images lie now, who decodes them, what is kept in memory, and how often
it is written.
"""


def _claim(folder: Path, config: Config, resume: bool, around: Mapping[str, Any]) -> bool:
    """Make the folder this run's; True where it already holds a checkpoint to go on from."""
    kept, begun = folder / "config.yaml", (folder / "last.safetensors").exists()
    if begun and not resume:
        raise UserError(f"{folder} already holds a run; go on with it by --resume, or name another folder with --out")
    # Reading it also refuses to write over a config.yaml that is somebody else's.
    changes = differences(read_config(folder), config) if begun or kept.exists() else []
    changes = [change for change in changes if not change.startswith(_WITHOUT_EFFECT)]
    if begun and changes:
        raise UserError(
            f"{folder} holds a run with other settings ({'; '.join(changes)}); resume with those, or use another --out"
        )
    for half_written in folder.glob(".*.safetensors.*"):  # by a process that was killed
        half_written.unlink()
    if not begun:
        write_atomically(kept, to_yaml(config).encode())
        write_atomically(folder / "provenance.json", json.dumps(around, indent=1).encode())
    return begun


def read_config(folder: Path) -> Config:
    """The config of a run. Raises UserError where the folder holds none."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{folder} holds no run: there is no config.yaml in it; `advsphere train RECIPE --out {folder}` makes one"
        )
    return from_yaml(path.read_bytes(), str(path))


def ranks(folder: Path) -> int:
    """How many processes began a run."""
    return int(json.loads((folder / "provenance.json").read_text()).get("ranks", 1))


class Run(NamedTuple):
    """A trained network with its config and the test images it is to be judged on."""

    config: Config
    model: nn.Module
    test: Images


def load_run(folder: Path, which: Literal["best", "last"] = "best", *, data_root: Path | None = None) -> Run:
    """Read a run back, on the device that `device` names. data_root: where the images lie now, if elsewhere.

    Raises UserError where the run, its checkpoint or its images are missing or broken.
    """
    config = read_config(folder)
    path = folder / f"{which}.safetensors"
    tensors, _ = load_checkpoint(path)
    data = config.data
    test = load_test(data.name, data_root or data.root, image_size=data.image_size, resize=data.resize)
    model = build_model(from_scratch(config), test)
    restore_model(model, section("model", tensors), path)
    where = device()
    return Run(config, model.to(where).eval(), test.to(where))
