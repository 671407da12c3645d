"""The settings of the training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from advsphere.classifier import low_precision
from advsphere.data import Augment
from advsphere.errors import UserError
from advsphere.schedule import Constant, Schedule


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How the weights are fitted, whatever the objective: SGD with momentum, as in all of the paper's recipes."""

    epochs: int = 10
    """Passes over the data. FreeAT repeats every batch of each."""
    batch_size: int = 128
    """The global batch, over all processes and parts; the learning rate belongs to it."""
    accumulate: int = 1
    """Take a process's share of each batch in so many parts, one after the other: less memory, the same gradient; but
    batch norm normalises each part by itself.
    """
    lr: float = 0.1
    """The learning rate where its schedule is 1, whatever the number of processes."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    lr_schedule: Schedule = Constant()
    augment: Augment = Augment()
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is validated and kept; 0 for none."""
    seed: int = 0
    """Decides the initial weights, the order of the data, and every draw."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto is bfloat16 autocast where the device has it natively."""
    fold: bool = True
    """Fold batch norm into the convolutions while crafting in eval mode; equal up to rounding."""
    sync_bn: bool = False
    """Normalise by the statistics of the whole batch, over all processes, not each process's own share; GPUs only."""
    checkpoint_activations: bool = False
    """Keep only what enters each residual block and compute the rest again in the backward: less memory, a third more
    time, the same gradient.
    """
    checkpoint_minutes: float = 5.0
    """Time between checkpoints within an epoch, also a fraction; each epoch ends with one anyway."""
    workers: int | None = None
    """Processes that decode image files ahead, one for each core by default; what they decode does not depend on it."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise UserError(f"{self.epochs} epochs with batches of {self.batch_size}: both must be at least 1")
        if not self.checkpoint_minutes >= 0:
            raise UserError(
                f"{self.checkpoint_minutes} minutes between checkpoints: give 0 or more, 0.5 for half a one"
            )
        if not 1 <= self.accumulate <= self.batch_size:
            raise UserError(f"a batch of {self.batch_size} can't be taken in {self.accumulate} parts: use 1 or more")
        if not (0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf):
            raise UserError(f"lr is {self.lr} and weight_decay {self.weight_decay}; neither may be negative, nor lr 0")
        if not (0 <= self.momentum < 1 and 0 <= self.ema < 1):
            raise UserError(f"momentum is {self.momentum} and ema {self.ema}; both must be in [0, 1)")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"{self.workers} workers can't decode images; 0 decodes them in between")

    def dtype(self, device: torch.device) -> torch.dtype | None:
        """What to autocast to on a device; None for plain float32."""
        if self.precision == "auto":
            return low_precision(device)
        return torch.bfloat16 if self.precision == "bfloat16" else None
