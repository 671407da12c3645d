"""The training loop of all objectives, which can resume at every optimizer step.

All randomness is addressed by (seed, epoch, example), and the state is in the checkpoint. So a run that was killed and
resumed on the same machine ends with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from advsphere.attacks.combine import prepared
from advsphere.calling import switch_mode
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
from advsphere.state import network_state, require_shapes
from advsphere.threat import ThreatModel
from advsphere.training.averaging import MovingAverage
from advsphere.training.checkpoint import (
    BEST,
    GOOD,
    LAST,
    PREVIOUS,
    CheckpointWriter,
    load,
    optimizer_state,
    prefixed,
    restore_model,
    restore_optimizer,
    save,
    section,
)
from advsphere.training.guard import FGSM, PGD, Collapse, Suspicion, affordable, remedied, watched
from advsphere.training.hooks import Cursor, Hooks, Metrics, Stopped, Tick
from advsphere.training.recomputation import recompute_blocks
from advsphere.training.scaling import LossScale
from advsphere.training.settings import TrainSettings, make_optimizer
from advsphere.training.step import BatchGradient, Division
from advsphere.typed import typed


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
        UserError: If a part is of another kind or does not fit the others, or the bounds of the threat are not [0, 1].
    """

    @typed
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
        require_shapes(model)
        self.model, self.objective, self.images = model, objective, from_dataset(images)
        if self.images is not images:
            self.images = self.images.to(next((p.device for p in model.parameters()), "cpu"))
        self.settings, self.folder, self.world = settings, Path(folder), world
        self.environment, self.hooks = dict(environment or {}), hooks or Hooks()
        if isinstance(threat := getattr(objective, "threat", None), ThreatModel):
            threat.require_unit_pixels()
        if not switch_mode(model, train=True) or not any(p.requires_grad for p in model.parameters()):
            raise UserError(
                f"this {type(model).__name__} has no train mode or no weights to train; give the network as it was "
                "before it was exported, frozen or quantised"
            )
        if settings.checkpoint_activations:
            recompute_blocks(model)
        self.division = Division(settings.batch_size, settings.accumulate, world, even=settings.sync_bn)
        if settings.label_smoothing:
            criterion = smoothed(criterion, settings.label_smoothing)
        self.writer = CheckpointWriter()
        self.device = self.images.labels.device
        automatic = low_precision(self.device, model) if settings.precision == "auto" else None
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
        self.guarded = settings.guard != "off" and watched(objective)
        self.chosen_objective, self.collapses, self.over = objective, list[Collapse](), False
        self.suspicion = Suspicion()

    @property
    def result(self) -> nn.Module:
        """The network that is validated and saved: with averaged weights if `ema` is set."""
        return self.model if self.ema is None else self.ema.module

    def fit(self) -> None:
        """Train to the end of the last epoch, or to the last good one if the guard stops a collapse.

        Raises:
            Stopped: If a hook asked to stop.
            UserError: If training diverges, collapses before the end of the first epoch and has no remedy left, or the
                disk is full. In all cases the folder holds the last good checkpoint.
        """
        with repeatable_kernels(self.settings.deterministic):
            try:
                if self._is_good():
                    state = self._state(self.world.sum(self.sums))
                    if self.world.first:
                        save(self.folder / GOOD, *state)
                while self.cursor.epoch < self.settings.epochs and not self.over:
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
            UserError: If no file is left, it is of another run, or more epochs are done than the settings have.
        """
        path, notes = self.folder / LAST, list[str]()
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
        self._restore(tensors, meta, path)
        if self.cursor > (self.settings.epochs, 0, 0):
            begun = self.cursor.epoch + (self.cursor[1:] > (0, 0))
            raise UserError(
                f"{self.folder} has trained into epoch {begun} already, so it can't end after {self.settings.epochs}: "
                f"resume with --epochs {begun} or more"
            )
        self.collapses = [Collapse(**one) for one in meta.get("collapses", ())]
        self.over = meta.get("over", False)
        self._apply_remedies()
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
        self._write(LAST, *self._state(sums), also=GOOD if self._is_good() else None)

    def _state(self, sums: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `_restore` needs. All ranks must call it."""
        state, numbers = optimizer_state(self.optimizer, self.model)
        tensors = prefixed("model", network_state(self.result)) | prefixed("optimizer", state) | {"sums": sums}
        if self.ema is not None:
            tensors |= prefixed("raw", network_state(self.model)) | {"ema.n_averaged": torch.tensor(self.ema.updates)}
        carry = self.gradient.carried()
        if carry is not None:
            tensors["carry"] = carry
        return tensors, {
            "cursor": list(self.cursor),
            "lr": self._lr(),
            "optimizer": numbers,
            "seconds": self.seconds,
            "best": self.best,
            "scale": self.scale.state_dict(),
            "environment": self.environment,
            "collapses": [one._asdict() for one in self.collapses],
            "over": self.over,
            "suspicion": list(self.suspicion),
        }

    def _restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path) -> None:
        """Undo `_state`, from the file at `path`."""
        restore_model(self.result, section("model", tensors), path)
        if self.ema is not None:
            restore_model(self.model, section("raw", tensors), path)
            self.ema.updates = int(tensors["ema.n_averaged"])
        self.optimizer.state.clear()
        numbers = meta.get("optimizer", {"groups": [{"lr": meta["lr"]}]})  # absent in version 0.1
        restore_optimizer(self.optimizer, self.model, section("optimizer", tensors), numbers)
        self.sums.zero_()
        if self.world.first:
            self.sums.copy_(tensors["sums"])
        self.gradient.carry(tensors["carry"].to(self.device) if "carry" in tensors else None)
        self.cursor, self.seconds, self.best = Cursor(*meta["cursor"]), meta["seconds"], meta["best"]
        self.suspicion = Suspicion(*meta.get("suspicion", ()))  # absent in version 0.2
        if scale := meta.get("scale"):  # absent in version 0.2, and empty but in float16
            self.scale.load_state_dict(scale)

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
            prepared(self.model, x, threat)
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
        last = self.folder / LAST
        kept = f"; {last} is from before" if last.exists() else ""
        raise UserError(
            f"training diverged in epoch {self.cursor.epoch + 1}, by batch {self.cursor.batch}: its loss or weights "
            f"are no longer finite{kept}. Train with a lower --lr, a warm-up, or --precision float32"
        )

    def _close_epoch(self) -> None:
        """Validate if due, save the best, advance the epoch, write the checkpoint. A killed run repeats all of it."""
        epochs = self.cursor.epoch + 1
        due = epochs % self.settings.validate_every == 0 or epochs == self.settings.epochs
        loss = self._mean_loss(self.world.sum(self.sums))
        validated = self.hooks.validate(self.result) if due else {}
        looked = self._look(None if self.ema else validated.get("robust"))
        suspicion = self.suspicion.after(looked)
        if suspicion.collapsed(len(self.images.classes)):
            self._go_back(epochs, looked)
            return
        self.suspicion = suspicion
        metrics = {"epoch": epochs, "loss": loss, "lr": self._lr()}
        metrics |= {"skipped_steps": float(self.scale.skipped)} if self.scale.is_enabled() else {}
        metrics |= validated | looked
        if self.collapses:
            last = self.collapses[-1]
            metrics |= {"collapses": float(len(self.collapses))}
            metrics |= {"collapse_fgsm": last.fgsm, "collapse_pgd": last.pgd} if last.epoch == epochs else {}
        metrics |= {"seconds": self.seconds, "images_per_second": epochs * len(self.images) / (self.seconds or 1e-9)}
        chosen_by = metrics.get(self.objective.chosen_by, 0.0)
        if due and chosen_by >= self.best:  # ties go to the later epoch, so without validation to the last
            self.best = chosen_by
            self._write(BEST, prefixed("model", network_state(self.result)), {"metrics": metrics})
        self.cursor = Cursor(epochs)
        self.sums.zero_()
        self.scale.skipped.zero_()
        if self.world.first:
            self.hooks.on_epoch(metrics | ({"best": self.best} if validated else {}))
        self.save()

    def _is_good(self) -> bool:
        """Whether this is the end of an epoch after which the network looked sound, or the start."""
        return self.guarded and self.cursor == Cursor(self.cursor.epoch) and self.suspicion == Suspicion()

    def _look(self, robust: float | None) -> Metrics:
        """What the guard's canary measures. `robust` is the accuracy of the network under PGD, if it is known."""
        if not self.guarded:
            return {}
        return self.hooks.canary(self.model, affordable(self.objective, len(self.images)), robust)

    def _go_back(self, epoch: int, looked: Metrics) -> None:
        """After a collapse: restore the last good checkpoint, and apply the next remedy or stop there."""
        self.writer.wait()
        self.world.barrier()  # the other ranks read what the first one wrote
        path, kept = self.folder / GOOD, (self.seconds, self.best)
        self._restore(*load(path), path)
        self.seconds, self.best = kept
        found = remedied(self.chosen_objective, len(self.collapses) + 1) if self.settings.guard == "remedy" else None
        self.over = found is None
        words = found.words if found else ""
        self.collapses.append(Collapse(epoch, self.cursor.epoch, looked[FGSM], looked[PGD], words))
        if self.over and self.cursor.epoch == 0:
            raise UserError(f"{self.collapses[-1]}, so there is no good network; train with --objective NFGSM or PGDAT")
        self._apply_remedies()
        if self.world.first:
            self.hooks.on_collapse(self.collapses)
        self.save()

    def _apply_remedies(self) -> None:
        if not self.over and (found := remedied(self.chosen_objective, len(self.collapses))):
            self.objective = found.objective
            self.gradient.use(found.objective)

    def _lr(self) -> float:
        """The learning rate of the last step, or that of the settings if the optimizer has none."""
        return float(self.optimizer.param_groups[0].get("lr", self.settings.lr))

    def _write(
        self, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], also: str | None = None
    ) -> None:
        if self.world.first:
            previous = self.folder / PREVIOUS if name == LAST else None
            self.writer.save(self.folder / name, tensors, meta, previous, self.folder / also if also else None)
