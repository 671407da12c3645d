"""Train a run: connect data, network, sphere, objective and loop, and store the run in a folder."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn, optim

from advsphere import named
from advsphere.data import Dataset, Images, ImageSet
from advsphere.distributed import World
from advsphere.errors import UserError
from advsphere.files import folder_lock, tensor_checksum
from advsphere.hypersphere import HypersphereConfig
from advsphere.machine import advice, measured_speeds
from advsphere.models.by_name import synchronised
from advsphere.objectives import Criterion, Objective
from advsphere.provenance import environment
from advsphere.runs.build import as_dataset, assemble, chosen_device, from_scratch, load_data
from advsphere.runs.config import GIVEN, Config, nearest, objective_like, recorded, to_dict, user_names
from advsphere.runs.folder import check_classes, claim, extend, half_written, record_collapses, require_record
from advsphere.runs.folder import record as write_record
from advsphere.runs.validation import Validation
from advsphere.runs.watching import TrainingProgress, stopping
from advsphere.threat import ThreatModel, radius
from advsphere.training import Collapse, Hooks, Metrics, Tick, Trainer, TrainSettings
from advsphere.training.log import MetricsLog
from advsphere.training.trackers import Tracker, check_tracker
from advsphere.typed import typed


@typed
def train(
    config: Config | None = None,
    folder: Path | str | None = None,
    *,
    data: Any = None,
    model: nn.Module | Callable[..., nn.Module] | str | None = None,
    objective: Objective | str | None = None,
    optimizer: Callable[..., optim.Optimizer] | str | None = None,
    sphere: HypersphereConfig | None = None,
    threat: ThreatModel | None = None,
    resume: bool = False,
    on_start: Callable[[Trainer, list[str]], None] | None = None,
    on_tick: Callable[[Tick], None] | None = None,
    on_epoch: Callable[[Metrics], None] | None = None,
    on_collapse: Callable[[Collapse], None] | None = None,
    stop: Callable[[], bool] | None = None,
    record: Callable[[nn.Module, Images, Criterion], Metrics] | None = None,
    world: World = World(),
    device: str | torch.device | None = None,
    log_to: Tracker = "tensorboard",
    **settings: Any,
) -> nn.Module:
    """Train a network and store the run in a folder, which every command of `advsphere` reads.

    A part that is passed replaces the config's. It is recorded by its name, `package.module:object`, if it has one; the
    run can then be resumed and evaluated from the command line. For a part without a name (a tensor, a lambda, a local
    class) a description is recorded; pass it again to resume or to evaluate (`advsphere.load_run`).

    Args:
        config: The settings, such as `advsphere.recipe("digits-pgd-at")`; by default small-cnn on the digits without an
            adversary.
        folder: The run's folder; by default `runs/` and the recipe's name.
        data: The images: a name (`cifar10`, or package.module:function); a pair of tensors or arrays, a map-style data
            set or a `DataLoader`, see `advsphere.data.from_dataset`; a pair (train, test) or mapping of these; or an
            `advsphere.data.Dataset`.
        model: The network: a name, a function that builds it, or the network itself, which is trained in place. The
            function is called with num_classes, in_channels and image_size, as far as it has such parameters. The
            network maps pixels in [0, 1] to logits.
        objective: How examples are crafted and which loss is minimised: an object, or the name of your own class.
        optimizer: A name such as `torch.optim:AdamW`, a class, or a function of the network's parameters. It is called
            with lr, momentum and weight_decay, as far as it has such parameters; the rate then follows the schedule.
        sphere: Hypersphere embedding.
        threat: The threat model for validation and evaluation, and for the config's objective. An objective that is
            passed keeps its own for training; it is also used for validation if `threat` is omitted.
        resume: Continue from the folder's last checkpoint, or start if there is none. Another number of epochs than
            before extends or shortens the run, and is recorded. Schedules are functions of the fraction of the run, so
            the result equals that of one run of this length only if they are all constant.
        on_start: Called with the trainer and with lines that the user should read. If none of the four is given, a
            terminal or a notebook shows a bar and a line for each epoch.
        on_tick: Called a few times a second with the progress, on the first process.
        on_epoch: Called after each epoch with its metrics, on the first process.
        on_collapse: Called after each collapse that the guard undid, on the first process.
        stop: Called after every step; if it returns True, training writes a checkpoint and stops. By default training
            stops so on an interrupt, where its progress is shown, and at once on a second one.
        record: Called after each validated epoch for further metrics: (model, held-out images, criterion) -> metrics.
        world: The processes that train together. All of them must see the folder; the first one writes it.
        device: Where to train, such as "cuda:1" or "cpu"; by default the GPU if there is one.
        log_to: Where the metrics of each epoch are shown: TensorBoard, Weights & Biases or MLflow. They are also in
            metrics.jsonl.
        **settings: Settings of the loop, such as epochs=5 or lr=0.1 (`advsphere.training.TrainSettings`), and
            validation, the number of training images that are held out.

    Returns:
        The network after the last epoch, or after the last good one if the guard stopped a collapse, in eval mode.

    Raises:
        UserError: If a part does not exist or does not fit, the folder holds another run, another process trains into
            it, it is removed or replaced meanwhile, training diverges or the disk is full.
        Stopped: If `stop` returned True or training was interrupted; the folder holds a checkpoint to resume from.
    """
    run, given = _described(config, data, model, objective, optimizer, sphere, threat, settings)
    world.require_same(to_dict(run) | {"folder": str(folder), "resume": resume}, "settings")
    check_tracker(log_to)
    named.trust([*user_names(run), run.model.name, str(run.data.root)])
    folder = Path(folder) if folder is not None else Path("runs") / run.recipe
    where = chosen_device(device)
    if run.training.sync_bn and where.type == "cpu":
        raise UserError("--sync-bn needs GPUs: torch has no synchronised batch norm on a CPU; leave it out")
    around = environment(where) | {"ranks": world.size}
    with ExitStack() as held:
        if world.first:
            held.enter_context(folder_lock(folder))
        begun = world.from_first(world.first and claim(folder, run, resume))
        images = load_data(run) if given.data is None else given.data
        notes = [images.note] if images.note else []
        count, total = run.data.validation, len(images.train)
        if 2 * count > total > 1:
            count = max(1, total // 10)
            notes.append(
                f"{count} of the {total} training images are held out to choose the checkpoint; --data.validation "
                f"{run.data.validation} would be more than half of them"
            )
        training_images, held_out = images.train.split(count, seed=run.training.seed)
        notes += threats_differ(run)
        parts = assemble(from_scratch(run) if begun else run, images.train, notes.append, network=given.network)
        model = parts.model.to(where)
        trainer = Trainer(
            synchronised(model) if run.training.sync_bn and world.size > 1 else model,
            given.objective,
            parts.criterion,
            training_images.to(where),
            settings=run.training,
            optimizer=given.optimizer,
            folder=folder,
            environment=around,
            world=world,
        )
        if begun:
            check_classes(folder, images.train.classes)
            notes += trainer.resume()
            notes += extend(folder, run, trainer.cursor.epoch) if world.first and not trainer.over else []
        elif world.first:
            # A measurement differs each time, so it is not part of the environment that a resume compares.
            speeds = {"gflops": measured_speeds()} if where.type == "cpu" else {}
            about = {"held_out": len(held_out), "shape": images.train.shape}
            write_record(folder, run, around | speeds | about, images.train.classes)
        if world.first:
            for left in half_written(folder):
                left.unlink()
        log = (
            held.enter_context(closing(MetricsLog(folder, trainer.cursor.epoch, log_to, to_dict(run))))
            if world.first
            else None
        )

        shown = TrainingProgress(run)
        if world.first and shown.bar.seen and not (on_start or on_tick or on_epoch or on_collapse):
            held.enter_context(shown)
            on_start, on_tick, on_epoch, on_collapse = shown.start, shown.tick, shown.epoch, shown.collapse
            if stop is None and threading.current_thread() is threading.main_thread():  # others get no signals
                stop = held.enter_context(stopping())

        def finished_epoch(metrics: Metrics) -> None:
            if log is not None:
                log(metrics)
            if on_epoch is not None:
                on_epoch(metrics)

        def collapsed(collapses: Sequence[Collapse]) -> None:
            record_collapses(folder, collapses)
            if log is not None:
                log.go_back(collapses[-1].back_to)
            if on_collapse is not None:
                on_collapse(collapses[-1])

        if world.first and (slow := advice(trainer.dtype, where)):
            notes.append(slow)
        validation = Validation(
            held_out.hard().to(where),
            run.threat,
            trainer.dtype,
            # Large images need smaller batches.
            batch_size=max(1, min(500, 500 * 64**2 // math.prod(held_out.shape[1:]))),
            record=lambda model, images: {} if record is None else record(model, images, parts.criterion),
            world=world,
        )
        if world.first and trainer.collapses:  # it may have been killed before they were recorded
            record_collapses(folder, trainer.collapses)
        trainer.hooks = Hooks(
            before_step=parts.before_step,
            shift=parts.shift,
            validate=validation,
            canary=validation.canary,
            on_tick=on_tick or (lambda tick: None),
            on_epoch=finished_epoch,
            on_collapse=collapsed,
            stop=stop or (lambda: False),
        )
        if on_start is not None:
            on_start(trainer, notes)
        trainer.fit()
        if world.first:
            require_record(folder)
            if on_start == shown.start:
                shown.end(folder)
        return trainer.result.eval()


def threats_differ(config: Config) -> list[str]:
    """A line if the threat model for training differs from that for validation and evaluation."""
    own = getattr(config.objective, "threat", None)
    if own is None or own == config.threat:
        return []
    trained, judged = (f"{threat.norm}, eps = {radius(threat.eps)}" for threat in (own, config.threat))
    return [f"trained against {trained}; validated, and by default evaluated, against {judged}"]


class _Given(NamedTuple):
    """The parts that were passed as objects and have no name, and the objective."""

    data: Dataset | None
    network: Any
    objective: Objective
    optimizer: Callable[..., optim.Optimizer] | None


def _described(
    config: Config | None,
    data: Any,
    model: Any,
    objective: Objective | str | None,
    optimizer: Any,
    sphere: HypersphereConfig | None,
    threat: ThreatModel | None,
    settings: dict[str, Any],
) -> tuple[Config, _Given]:
    """The config, in which names or descriptions of the passed parts replace its own, and the parts without a name."""
    run = config or Config(recipe="custom")
    validation = settings.pop("validation", None)
    known = [field.name for field in fields(TrainSettings)]
    if unknown := [setting for setting in settings if setting not in known]:
        raise UserError(f"there is no setting {unknown[0]}{nearest(unknown[0], known)}")
    run = replace(run, training=replace(run.training, **settings), sphere=sphere or run.sphere)
    images = None
    if data is not None:
        name = _name(data)
        if name is None:
            images = as_dataset(data)
            name = f"{GIVEN}{_description(images.train)}"
            if config is None and validation is None:
                validation = min(run.data.validation, max(1, len(images.train) // 10))
        run = replace(run, data=replace(run.data, name=name))
    if validation is not None:
        run = replace(run, data=replace(run.data, validation=validation))
    if model is not None:
        described = f"{GIVEN}{type(model).__name__ if isinstance(model, nn.Module) else 'a function'}"
        run = replace(run, model=replace(run.model, name=_name(model) or described))
    if optimizer is not None:
        run = replace(run, training=replace(run.training, optimizer=_name(optimizer) or f"{GIVEN}a function"))
    if isinstance(objective, str):
        objective = objective_like(objective, run)
    own = objective
    if own is None:
        own = run.objective
        if threat is not None and hasattr(own, "threat"):
            own = replace(own, threat=threat)  # type: ignore[call-arg]
    elif threat is None:
        threat = getattr(own, "threat", None)
    run = replace(run, objective=recorded(own), threat=threat or run.threat)
    network = model if run.model.name.startswith(GIVEN) else None
    return run, _Given(images, network, own, optimizer if run.training.optimizer.startswith(GIVEN) else None)


def _name(part: Any) -> str | None:
    """A part's name: the text itself, or `package.module:object` for a function or class; None if it has none."""
    return part if isinstance(part, str) else named.name_of(part)


def _description(images: Images) -> str:
    size = "x".join(map(str, images.shape))
    if not isinstance(images, ImageSet):
        return f"{images.name}, {len(images)} images of {size}"
    checksum = tensor_checksum({"pixels": images.pixels, "labels": images.labels})
    return f"{images.name}, {len(images)} images of {size}, SHA-256 {checksum[:16]}"
