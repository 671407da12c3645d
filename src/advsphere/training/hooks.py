"""What the training loop calls and passes on, so that training imports neither evaluation nor the hypersphere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from advsphere.errors import own_lines
from advsphere.training.guard import Collapse
from advsphere.typed import require_types

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

    def _render_traceback_(self) -> list[str]:  # IPython calls this
        return [*own_lines(self), f"{self} (in Python resume=True)"]


@dataclass
class Hooks:
    """Functions that the loop calls.

    Attributes:
        before_step: Called with the progress in [0, 1] before each step, for schedules of scale and margin.
        shift: The shift of the logits while crafting, as in `objectives.Crafting`.
        validate: Returns the metrics of a model, after each epoch in which validation is due. The metric that the
            objective names in `chosen_by` selects the best checkpoint. Called on all ranks, which must return the same
            metrics.
        canary: (model, passes, robust) -> metrics for the guard, `guard.FGSM`, `guard.PGD` and `guard.IMAGES`, after
            each epoch. It may take so many forward and backward passes of one image. `robust` is the accuracy under PGD
            if validation has just measured it. It must leave the model, and all random numbers, as they are. Called on
            all ranks, which must return the same metrics. Without metrics there is no guard.
        on_tick: Called a few times a second, on the first rank.
        on_epoch: Called with the metrics of each epoch, on the first rank.
        on_collapse: Called with all collapses so far after each new one, on the first rank.
        stop: Called after every step on all ranks. If it returns True on any rank, all ranks stop.
    """

    before_step: Callable[[float], None] = lambda progress: None
    shift: Callable[[Tensor, Tensor], Tensor] | None = None
    validate: Callable[[nn.Module], Metrics] = lambda model: {}
    canary: Callable[[nn.Module, int, float | None], Metrics] = lambda model, passes, robust: {}
    on_tick: Callable[[Tick], None] = lambda tick: None
    on_epoch: Callable[[Metrics], None] = lambda metrics: None
    on_collapse: Callable[[Sequence[Collapse]], None] = lambda collapses: None
    stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        require_types(self)
