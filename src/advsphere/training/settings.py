"""The settings of the training loop."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import yaml
from torch import nn, optim
from tyro.constructors import PrimitiveConstructorSpec

from advsphere.data.augmentation import Augment
from advsphere.errors import UserError
from advsphere.named import call
from advsphere.schedule import Constant, Schedule
from advsphere.training.guard import Guarding
from advsphere.typed import require_types


def _arguments(words: list[str]) -> dict[str, Any]:
    """Keyword arguments from the command line. Raises ValueError, which tyro prints, for anything else."""
    try:
        value = yaml.safe_load(words[0])
        json.dumps(value)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"{words[0][:60]!r} holds no arguments; write '{{betas: [0.9, 0.95]}}'") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{words[0][:60]!r} holds no arguments; write '{{betas: [0.9, 0.95]}}'")
    return value


Arguments = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="YAML",
        instance_from_str=_arguments,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]
"""Keyword arguments, on the command line as one argument: '{betas: [0.9, 0.95]}'."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Hyperparameters of training, for every objective. The default is SGD with momentum, as in the paper's recipes.

    Attributes:
        epochs: Passes over the data. FreeAT repeats each of their batches.
        batch_size: The size of the global batch, over all processes and parts.
        accumulate: Process each rank's share of a batch in this many parts. This takes less memory and gives the same
            gradient, but batch norm normalises each part separately.
        lr: The learning rate at a schedule factor of 1, for any number of processes.
        momentum: The momentum of SGD, in [0, 1).
        weight_decay: The weight decay.
        lr_schedule: The factor of the learning rate over the run.
        optimizer: sgd, or package.module:Class, such as torch.optim:AdamW. It is called with lr, and with momentum and
            weight_decay if it has such parameters.
        optimizer_arguments: Further keyword arguments of an optimizer other than sgd, such as '{betas: [0.9, 0.95]}'.
        augment: The augmentation of the training images.
        label_smoothing: The share of each label's probability that is spread over all classes, in [0, 1); 0 for none.
            Adversarial examples are crafted for the label itself.
        ema: Decay of an exponential moving average of the weights, which is then validated and saved; 0 for none.
        seed: Determines the initial weights, the order of the data, and all other randomness.
        precision: auto is bfloat16 autocast on devices that support it natively, otherwise float32. float16 is for GPUs
            without bfloat16: a factor of the loss adapts, and a step whose gradients overflow is skipped.
        deterministic: On GPUs, use only kernels of cuDNN that give the same bits each time. Without it, cuDNN chooses
            the fastest ones, and a resumed run equals an uninterrupted one up to rounding.
        fold: Fold batch norm into the convolutions while crafting in eval mode. The result is equal up to rounding.
        sync_bn: Normalise by the statistics of the whole batch over all processes; GPUs only.
        checkpoint_activations: Keep only the input of each residual block, and recompute the rest in the backward pass.
            This takes less memory and a third more time, and gives the same gradient.
        validate_every: Validate after every this many epochs, and after the last one. The best checkpoint is chosen
            among the validated epochs. `data.validation` sets the number of held-out images.
        guard: After a collapse (catastrophic overfitting: the network resists FGSM and falls to PGD), go back to the
            last good epoch and go on with a remedy (N-FGSM's noise, then several steps), or stop there, or do not look.
        checkpoint_minutes: Minutes between checkpoints within an epoch; may be a fraction. Every epoch also ends with a
            checkpoint.
        workers: Processes that decode image files in advance; one for each core by default. The result does not depend
            on it.

    Raises:
        UserError: If a value is out of range or of another type.
    """

    epochs: int = 10
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    lr_schedule: Schedule = Constant()
    optimizer: str = "sgd"
    optimizer_arguments: Arguments = field(default_factory=dict, hash=False)
    augment: Augment = Augment()
    label_smoothing: float = 0.0
    ema: float = 0.0
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    deterministic: bool = True
    fold: bool = True
    sync_bn: bool = False
    validate_every: int = 1
    guard: Guarding = "remedy"
    checkpoint_activations: bool = field(default=False, metadata={"affects_result": False})
    checkpoint_minutes: float = field(default=5.0, metadata={"affects_result": False})
    workers: int | None = field(default=None, metadata={"affects_result": False})

    def __post_init__(self) -> None:
        require_types(self)
        if self.epochs < 1 or self.batch_size < 1:
            raise UserError(f"{self.epochs} epochs with batches of {self.batch_size}: both must be at least 1")
        if self.validate_every < 1:
            raise UserError(f"validation after every {self.validate_every} epochs: give 1 or more")
        if not self.checkpoint_minutes >= 0:
            raise UserError(f"{self.checkpoint_minutes} minutes between checkpoints: give 0 or more, 0.5 for 30 s")
        if not 1 <= self.accumulate <= self.batch_size:
            raise UserError(f"a batch of {self.batch_size} can't be taken in {self.accumulate} parts: use 1 or more")
        if not (0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf):
            raise UserError(f"lr is {self.lr} and weight_decay {self.weight_decay}; neither may be negative, nor lr 0")
        if not (0 <= self.momentum < 1 and 0 <= self.ema < 1):
            raise UserError(f"momentum is {self.momentum} and ema {self.ema}; both must be in [0, 1)")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}; give a share in [0, 1), 0.1 is usual")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"there can't be {self.workers} workers; with 0 the trainer decodes images itself")
        if "lr" in self.optimizer_arguments:
            raise UserError("the learning rate of the optimizer is set by lr: leave it out of optimizer_arguments")
        if self.optimizer == "sgd" and self.optimizer_arguments:
            raise UserError(
                "sgd takes no optimizer_arguments beside lr, momentum and weight_decay: use torch.optim:SGD for others"
            )
        # Convert them to the types that config.yaml is read back with, so that a resume finds no difference.
        object.__setattr__(self, "optimizer_arguments", _plain(self.optimizer_arguments))


def make_optimizer(settings: TrainSettings, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    """The optimizer that the settings name. Raises UserError if it can't be imported or refuses its arguments."""
    known: dict[str, Any] = {"lr": settings.lr, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        parameters = list(parameters)
        # One launch on a GPU. A CPU would round in another way, and a first step in float16 that is skipped would leave
        # the momentum as it found the memory.
        fused = (settings.precision != "float16" and all(p.device.type != "cpu" for p in parameters)) or None
        return optim.SGD(parameters, **known, fused=fused)
    made = call(settings.optimizer, settings.optimizer_arguments, known, parameters)
    if not isinstance(made, optim.Optimizer):
        raise UserError(f"{settings.optimizer} returned a {type(made).__name__}, not a torch.optim.Optimizer")
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        with suppress(ValueError):  # YAML reads 1e-3 as a string
            return float(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"{value!r} can't be written into a config: give numbers, strings, lists and dictionaries")
