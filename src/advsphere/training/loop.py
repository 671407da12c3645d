"""The training loop of all objectives, which can resume at every optimizer step.

All randomness is addressed by (seed, epoch, example), and the state is in the checkpoint. So a run that was killed and
resumed on the same machine ends with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim

from advsphere.attacks.combine import prepared
from advsphere.classifier import folds
from advsphere.data.batching import batches as load_batches
from advsphere.data.batching import epoch_batches
from advsphere.data.torch_datasets import Source, from_dataset
from advsphere.distributed import World
from advsphere.errors import UserError
from advsphere.losses import smoothed
from advsphere.machine import low_precision, repeatable_kernels
from advsphere.objectives import Crafting, Criterion, Objective
from advsphere.rng import Rng, derived_seed
from advsphere.threat import ThreatModel
from advsphere.training.averaging import MovingAverage
from advsphere.training.checkpoint import (
    PREVIOUS,
    CheckpointWriter,
    load,
    network_state,
    optimizer_state,
    prefixed,
    restore_model,
    restore_optimizer,
    section,
)
from advsphere.training.recomputation import recompute_blocks
from advsphere.training.scaling import LossScale
from advsphere.training.settings import TrainSettings, make_optimizer
from advsphere.training.step import BatchGradient, Division

Metrics = dict[str, float]
"""Named numbers of an epoch, such as clean and robust accuracy."""


class Cursor(NamedTuple):
    """The next optimizer step to take."""

    epoch: int = 0
    batch: int = 0
    replay: int = 0


class Tick(NamedTuple):
    """Progress within an epoch, for a progress bar.

    Attributes:
        epoch: The epoch, from 0.
        images: Number of images trained on in this epoch so far.
        of: Number of images in an epoch.
        loss: The mean loss of this epoch so far.
    """

    epoch: int
    images: int
    of: int
    loss: float


class Stopped(Exception):
    """Training was asked to stop. The checkpoint is written, and `--resume` continues from it."""


@dataclass
class Hooks:
    """Functions that the loop calls, so that training imports neither evaluation nor the hypersphere.

    Attributes:
        before_step: Called with the progress in [0, 1] before each step, for schedules of scale and margin.
        shift: The shift of the logits while crafting, as in `objectives.Crafting`.
        validate: Returns the metrics of a model, after each epoch in which validation is due. The metric that the
            objective names in `chosen_by` selects the best checkpoint. Called on all ranks, which must return the same
            metrics.
        on_tick: Called a few times a second, on the first rank.
        on_epoch: Called with the metrics of each epoch, on the first rank.
        stop: Called after every step on all ranks. If it returns True on any rank, all ranks stop.
    """

    before_step: Callable[[float], None] = lambda progress: None
    shift: Callable[[Tensor, Tensor], Tensor] | None = None
    validate: Callable[[nn.Module], Metrics] = lambda model: {}
    on_tick: Callable[[Tick], None] = lambda tick: None
    on_epoch: Callable[[Metrics], None] = lambda metrics: None
    stop: Callable[[], bool] = lambda: False


class Trainer:
    """One run in one folder: `fit` trains to the end, `resume` first restores the folder's last.safetensors.

    Several processes train together if each makes a trainer of the same model and images and calls the same methods.
    Only the first one writes, into a folder that all of them can read.

    Args:
        model: The network to train, on the device of the images if they are an `advsphere.data` set.
        objective: The loss that is minimised, and how adversarial examples are crafted for it.
        criterion: The loss of logits (B, K) and labels (B,) for each example, (B,).
        images: The training images: an `advsphere.data` set, or anything that `advsphere.data.from_dataset` takes.
        settings: Length, batch size, optimizer, precision and so on.
        folder: Where checkpoints are written.
        environment: Versions and hardware, on which equality of bits depends besides the settings. The checkpoint keeps
            it, so that a resume can name differences.
        hooks: Functions that the loop calls.
        optimizer: Makes the optimizer from the parameters; by default the one in the settings. The schedule multiplies
            the initial learning rate of each parameter group.
        world: The processes that train together.

    Raises:
        UserError: If the settings do not fit the model or the number of processes, or the bounds of the objective's
            threat do not fit images in [0, 1].
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        criterion: Criterion,
        images: Source,
        *,
        settings: TrainSettings,
        folder: Path | str,
        environment: Mapping[str, Any] | None = None,
        hooks: Hooks | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], optim.Optimizer] | None = None,
        world: World = World(),
    ) -> None:
        self.model, self.objective, self.images = model, objective, from_dataset(images)
        if self.images is not images:
            self.images = self.images.to(next(model.parameters()).device)
        self.settings, self.folder, self.world = settings, Path(folder), world
        self.environment, self.hooks = dict(environment or {}), hooks or Hooks()
        if isinstance(threat := getattr(objective, "threat", None), ThreatModel):
            threat.require_unit_pixels()
        if settings.checkpoint_activations:
            recompute_blocks(model)
        self.division = Division(settings.batch_size, settings.accumulate, world, even=settings.sync_bn)
        if settings.label_smoothing:
            criterion = smoothed(criterion, settings.label_smoothing)
        self.writer = CheckpointWriter()
        self.device = self.images.labels.device
        automatic = low_precision(self.device) if settings.precision == "auto" else None
        self.dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(settings.precision, automatic)
        self.scale = LossScale(self.device, self.dtype)
        self.gradient = BatchGradient(model, objective, criterion, self.division, self.scale)
        make = optimizer or partial(make_optimizer, settings)
        self.optimizer = make(model.parameters())
        self.rates = [group.get("lr") for group in self.optimizer.param_groups]
        self.ema = MovingAverage(model, settings.ema) if settings.ema else None
        self.fold = settings.fold
        self.cursor = Cursor()
        # Sums of the loss and of the images in this epoch, over this rank's shares; after a resume, the first rank's
        # sums include all earlier shares. They stay on the device because reading them every step would stall it.
        self.sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.seconds = 0.0
        self.best = -1.0

    @property
    def result(self) -> nn.Module:
        """The network that is validated and saved: with averaged weights if `ema` is set."""
        return self.model if self.ema is None else self.ema.module

    def fit(self) -> None:
        """Train to the end of the last epoch.

        Raises:
            Stopped: If a hook asked to stop.
            UserError: If training diverges or the disk is full. In all cases the folder holds the last good checkpoint.
        """
        with repeatable_kernels(self.settings.deterministic):
            try:
                while self.cursor.epoch < self.settings.epochs:
                    self._train_epoch()
                    self._close_epoch()
            finally:
                self.writer.wait()

    def resume(self) -> list[str]:
        """Continue from last.safetensors or, if it is damaged, from the checkpoint before it.

        Returns:
            Lines for the user: that the last checkpoint was damaged, and each difference from the environment that
            wrote it. If there is a difference, results are equal only up to rounding.

        Raises:
            UserError: If no file is left, or it is of another run.
        """
        path, notes = self.folder / "last.safetensors", list[str]()
        try:
            tensors, meta = load(path)
        except UserError as error:
            path = self.folder / PREVIOUS
            if not path.is_file():
                raise
            tensors, meta = load(path)
            notes.append(f"{error}; continued from the checkpoint before it, {path.name}")
        if "cursor" not in meta:
            raise UserError(f"{path} can't be resumed from: it holds only a network, as best.safetensors does")
        restore_model(self.result, section("model", tensors), path)
        if self.ema is not None:
            restore_model(self.model, section("raw", tensors), path)
            self.ema.updates = int(tensors["ema.n_averaged"])
        numbers = meta.get("optimizer", {"groups": [{"lr": meta["lr"]}]})  # absent in version 0.1
        restore_optimizer(self.optimizer, self.model, section("optimizer", tensors), numbers)
        if self.world.first:
            self.sums.copy_(tensors["sums"])
        self.gradient.carry(tensors["carry"].to(self.device) if "carry" in tensors else None)
        self.cursor, self.seconds, self.best = Cursor(*meta["cursor"]), meta["seconds"], meta["best"]
        if scale := meta.get("scale"):  # absent in version 0.2, and empty but in float16
            self.scale.load_state_dict(scale)
        then, now = meta["environment"], self.environment
        changed = [f"{key}: {value} then, {now.get(key)} now" for key, value in then.items() if value != now.get(key)]
        return notes + [f"resumed in another environment, so equal up to rounding only: {one}" for one in changed]

    def save(self) -> None:
        """Start writing last.safetensors: the network `result` and everything that a resume needs.

        Raises:
            UserError: If the loss or a weight is not finite. Such a state is never stored.
        """
        sums = self.world.sum(self.sums)
        self._mean_loss(sums)
        state, numbers = optimizer_state(self.optimizer, self.model)
        tensors = prefixed("model", network_state(self.result)) | prefixed("optimizer", state) | {"sums": sums}
        if self.ema is not None:
            tensors |= prefixed("raw", network_state(self.model)) | {"ema.n_averaged": torch.tensor(self.ema.updates)}
        carry = self.gradient.carried()
        if carry is not None:
            tensors["carry"] = carry
        meta = {
            "cursor": list(self.cursor),
            "lr": self._lr(),
            "optimizer": numbers,
            "seconds": self.seconds,
            "best": self.best,
            "scale": self.scale.state_dict(),
            "environment": self.environment,
        }
        self._write("last", tensors, meta)

    def _train_epoch(self) -> None:
        settings, epoch, replays = self.settings, self.cursor.epoch, self.objective.replays
        batches = epoch_batches(len(self.images), settings.batch_size, seed=settings.seed, epoch=epoch)
        shares = [self.division.share(batch) for batch in batches[self.cursor.batch :]]
        # The replays of a batch share one augmentation: an example is augmented once in each epoch.
        left = load_batches(
            self.images, shares, settings.augment, seed=settings.seed, epoch=epoch, workers=settings.workers
        )
        began = saved = ticked = time.monotonic()
        first = self.cursor.batch
        for b, (x, y, rng) in enumerate(left, start=first):
            if b == first:
                self._check_images(x)
            for replay in range(self.cursor.replay, replays):
                progress = (epoch + (b + replay / replays) / len(batches)) / settings.epochs
                self._take_step(x, y, rng, len(batches[b]), progress)
                self.cursor = Cursor(epoch, b, replay + 1) if replay + 1 < replays else Cursor(epoch, b + 1)
                now = time.monotonic()
                self.seconds, began = self.seconds + now - began, now
                stopping, saving = self._agreed(self.hooks.stop(), now - saved > 60 * settings.checkpoint_minutes)
                if stopping:
                    self.save()
                    raise Stopped(
                        f"stopped in epoch {epoch + 1} after batch {b + 1} of {len(batches)}; continue with --resume"
                    )
            if self.world.first and now - ticked > 0.5:
                images = sum(len(batch) for batch in batches[: b + 1])
                self.hooks.on_tick(Tick(epoch, images, len(self.images), self._mean_loss(self.sums)))
                ticked = now
            if saving:
                self.save()
                saved = began = time.monotonic()
        self.sums.tolist()  # waits for the device, whose last steps belong to the time of this epoch
        self.seconds += time.monotonic() - began

    def _check_images(self, x: Tensor) -> None:
        """What would make a GPU wait in every step is found out with the first batch of an epoch: whether the images
        are within the bounds, and whether batch norms can be folded.
        """
        if isinstance(threat := getattr(self.objective, "threat", None), ThreatModel):
            prepared(self.model, x, threat.bounds)
        self.fold = self.settings.fold and folds(self.model, x, self.dtype)

    def _agreed(self, stopping: bool, saving: bool) -> tuple[bool, bool]:
        """Agree on (stopping, saving): stop if any rank was asked to, save if the clock of the first rank says so.

        Ranks that disagreed would wait for each other forever.
        """
        if self.world.size == 1:
            return stopping, saving
        asked = self.world.sum(torch.tensor([stopping, saving and self.world.first], dtype=torch.int64))
        return bool(asked[0]), bool(asked[1])

    def _take_step(self, x: Tensor, y: Tensor, rng: Rng, n: int, progress: float) -> None:
        settings = self.settings
        self.hooks.before_step(progress)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            if rate is not None:
                group["lr"] = rate * settings.lr_schedule(progress)
        # Networks with dropout use the global generator. It is seeded only here, differently on each rank.
        torch.manual_seed(derived_seed(settings.seed, "step", *self.cursor) + self.world.rank)
        self.optimizer.zero_grad()
        context = Crafting(rng, None, self.dtype, self.fold, self.hooks.shift, check=False)
        self.sums[0].add_(self.gradient.backward(x, y, n, context))
        self.sums[1].add_(sum(part.images for part in self.division.parts(n)))
        self.scale.advance(self.optimizer)
        if self.ema is not None:
            self.ema.update(self.model)

    def _mean_loss(self, sums: Tensor) -> float:
        """The mean loss of this epoch so far. Raises UserError if it or a weight is no longer finite."""
        total, count = sums.tolist()
        if math.isfinite(total) and bool(torch.stack([p.isfinite().all() for p in self.model.parameters()]).all()):
            return float(total / max(count, 1))
        self.writer.wait()
        last = self.folder / "last.safetensors"
        kept = f"; {last} is from before" if last.exists() else ""
        raise UserError(
            f"training diverged in epoch {self.cursor.epoch + 1}, by batch {self.cursor.batch}: its loss or weights "
            f"are no longer finite{kept}. Train with a lower --lr, a warm-up, or --precision float32"
        )

    def _close_epoch(self) -> None:
        """Validate if due, save the best, advance the epoch, write the checkpoint. A killed run repeats all of it."""
        epochs = self.cursor.epoch + 1
        due = epochs % self.settings.validate_every == 0 or epochs == self.settings.epochs
        metrics = {
            "epoch": epochs,
            "loss": self._mean_loss(self.world.sum(self.sums)),
            "lr": self._lr(),
        }
        metrics |= {"skipped_steps": float(self.scale.skipped)} if self.scale.is_enabled() else {}
        metrics |= self.hooks.validate(self.result) if due else {}
        metrics |= {"seconds": self.seconds, "images_per_second": epochs * len(self.images) / self.seconds}
        chosen_by = metrics.get(self.objective.chosen_by, 0.0)
        if due and chosen_by >= self.best:  # ties go to the later epoch, so without validation to the last
            self.best = chosen_by
            self._write("best", prefixed("model", network_state(self.result)), {"metrics": metrics})
        self.cursor = Cursor(epochs)
        self.sums.zero_()
        self.scale.skipped.zero_()
        if self.world.first:
            self.hooks.on_epoch(metrics)
        self.save()

    def _lr(self) -> float:
        """The learning rate of the last step, or that of the settings if the optimizer has none."""
        return float(self.optimizer.param_groups[0].get("lr", self.settings.lr))

    def _write(self, which: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        if self.world.first:
            previous = self.folder / PREVIOUS if which == "last" else None
            self.writer.save(self.folder / f"{which}.safetensors", tensors, meta, previous)
