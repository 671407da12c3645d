"""The gradient of one optimizer step, computed in parts over several processes.

Every rank and part has fixed positions in the global batch, for any size of the batch. So the state that an objective
carries from batch to batch by position (the perturbation of free training) stays in place. If the last batch of an
epoch is short, the last ranks get fewer images or none.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from advsphere.calling import Answering
from advsphere.casting import CastWeights
from advsphere.distributed import World, cut
from advsphere.errors import UserError
from advsphere.objectives import Crafting, Criterion, Losses, Objective
from advsphere.training.scaling import LossScale


class Part(NamedTuple):
    """One forward and backward pass: its number in a full batch, its positions in this rank's share, its image count.

    A rank without images of a batch runs a placeholder part with no number and 0 images.
    """

    number: int | None
    places: slice
    images: int


@dataclass(frozen=True)
class Division:
    """Divides batches of up to `batch_size` images, or one more, over the ranks, and a rank's share into parts.

    With `even` all ranks have the same number of parts, as synchronised batch norm requires. Raises UserError if a full
    batch has too few images.
    """

    batch_size: int
    accumulate: int = 1
    world: World = World()
    even: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < self.world.size * self.accumulate:
            raise UserError(
                f"a batch of {self.batch_size} images can't be divided over {self.world.size} processes in "
                f"{self.accumulate} parts each: use fewer of them or a larger --batch-size"
            )

    def share(self, batch: Tensor) -> Tensor:
        """This rank's entries of a global batch. A rank without any gets the first entry with weight 0, because all
        ranks have to take part in every step.
        """
        positions = self.positions(self.world.rank)
        mine = batch[positions[0].start : positions[-1].stop]
        return mine if len(mine) else batch[:1]

    def positions(self, rank: int) -> list[slice]:
        """The positions of a rank's parts in a full batch. The last part has room for the extra image that
        `epoch_batches` may add.
        """
        share = cut(self.batch_size, self.world.size)[rank]
        pieces = cut(share.stop - share.start, self.accumulate)
        stops = [share.start + piece.stop for piece in pieces]
        stops[-1] += rank == self.world.size - 1
        return [slice(share.start + piece.start, stop) for piece, stop in zip(pieces, stops, strict=True)]

    def parts(self, n: int) -> list[Part]:
        """This rank's parts of a batch of n images; at least one."""
        positions = self.positions(self.world.rank)
        start = positions[0].start
        parts = [
            Part(number, slice(at.start - start, min(at.stop, n) - start), min(at.stop, n) - at.start)
            for number, at in enumerate(positions)
            if at.start < n
        ]
        # The positions of the first rank are filled first, so no rank has more parts.
        wanted = sum(at.start < n for at in self.positions(0)) if self.even else 1
        return parts + [Part(None, slice(0, 1), 0)] * (wanted - len(parts))


class TrainStep(nn.Module):
    """Model and objective as one module for data parallelism, while crafting uses the bare model."""

    def __init__(self, model: nn.Module, objective: Objective, criterion: Criterion) -> None:
        super().__init__()
        self.model, self.objective, self.criterion = Answering(model), objective, criterion

    def forward(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Losses:
        losses: object = self.objective.loss(self.model, x, x_adv, y, criterion=self.criterion)
        if not isinstance(losses, Losses) or losses.total.dim():
            raise UserError(
                f"{type(self.objective).__name__}.loss has to return objectives.Losses(total), where total is the mean "
                "over the batch, a tensor of shape (); a criterion returns a loss for each image"
            )
        return losses


class BatchGradient:
    """Computes the gradient of a global batch's mean loss on every rank, and keeps the state that the objective carries
    to the next batch.

    Each rank normalises by the statistics of its own parts, unless batch norm is synchronised. Running statistics are
    averaged with the sizes of the shares as weights, so that all ranks craft and validate with the same network.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, criterion: Criterion, division: Division, scale: LossScale
    ) -> None:
        self.model, self.objective, self.division, self.scale = model, objective, division, scale
        self.step: nn.Module = TrainStep(model, objective, criterion)
        if division.world.size > 1:
            # Some parameters may take no part in the loss, and others from step to step.
            self.step = DistributedDataParallel(self.step, broadcast_buffers=False, find_unused_parameters=True)
        else:
            _count_on_the_host(model)
        self.carries: list[Tensor | None] = [None] * division.accumulate

    def backward(self, x: Tensor, y: Tensor, n: int, context: Crafting) -> Tensor:
        """Craft on this rank's share, (b, C, H, W) and (b,), of a batch of n, and add to the gradient.

        Returns the sum of the share's losses, () float64.
        """
        losses, parts = list[Tensor](), self.division.parts(n)
        for i, part in enumerate(parts):
            with self._unsynchronised() if i + 1 < len(parts) else nullcontext():
                loss = self._backward(part, x[part.places], y[part.places], n, context)
            losses.append(loss.double() * part.images)
        if self.division.world.size > 1:
            self._average_statistics(sum(part.images for part in parts) / n)
        return reduce(torch.add, losses)

    def carried(self) -> Tensor | None:
        """The carried state by position in the global batch, complete on the first rank, on the CPU. All ranks must
        call it.
        """
        mine = [carry.cpu() for carry in self.carries if carry is not None]
        parts = [carry for rank in self.division.world.gather(mine) for carry in rank]
        return torch.cat(parts) if parts else None

    def carry(self, whole: Tensor | None) -> None:
        """Continue with the result of `carried`, perhaps with another number of ranks."""
        positions = self.division.positions(self.division.world.rank)
        self.carries = [None if whole is None or at.start >= len(whole) else whole[at] for at in positions]

    def use(self, objective: Objective) -> None:
        """Continue with another objective."""
        step: Any = self.step.module if isinstance(self.step, DistributedDataParallel) else self.step
        self.objective = step.objective = objective

    def _backward(self, part: Part, x: Tensor, y: Tensor, n: int, context: Crafting) -> Tensor:
        carry = None if part.number is None else self.carries[part.number]
        here = replace(context, rng=context.rng.take(part.places), carry=carry)
        x_adv = _in_twos(self.model, lambda x, y: self.objective.craft(self.model, x, y, here), x, y)
        if len(x_adv) > len(x):
            x_adv = x_adv[: len(x)]
        self.model.train()
        # Data parallelism waits for the gradients of the network's own weights.
        cast = CastWeights(self.model, context.dtype if self.division.world.size == 1 else None)
        with torch.autocast(x.device.type, dtype=context.dtype, enabled=context.dtype is not None), cast:
            losses: Losses = _in_twos(self.model, self.step, x, x_adv, y)
        if not losses.total.requires_grad:
            raise UserError(
                "the loss does not depend on any weight that is trained: the network computes under no_grad or "
                "inference_mode, or all its weights are frozen or quantised"
            )
        # Data parallelism averages over ranks with equal weights. This factor weights the parts by their sizes.
        weight = self.division.world.size * part.images / n
        self.scale.scale(losses.total).backward(torch.full_like(losses.total, weight))
        cast.hand_over()
        if self.scale.is_enabled() and x_adv.grad is not None:
            x_adv.grad.nan_to_num_()  # the step that an overflow skips must not spoil what is carried to the next one
        if part.number is not None:
            self.carries[part.number] = self.objective.after_backward(x, x_adv, carry)
        return losses.total.detach()

    def _unsynchronised(self) -> AbstractContextManager[None]:
        """Do not exchange gradients between ranks before the last part."""
        return self.step.no_sync() if isinstance(self.step, DistributedDataParallel) else nullcontext()

    def _average_statistics(self, share: float) -> None:
        normalising = [
            m for m in self.model.modules() if isinstance(m, _BatchNorm) and not isinstance(m, SyncBatchNorm)
        ]
        running = [t for m in normalising for t in (m.running_mean, m.running_var) if t is not None]
        if running:
            mean = self.division.world.sum(torch.cat(running) * share)
            for t, averaged in zip(running, mean.split([len(t) for t in running]), strict=True):
                t.copy_(averaged)


def _count_on_the_host(model: nn.Module) -> None:
    """Keep the counts of batches in host memory: a batch norm adds 1 in each forward, which would be a launch."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.num_batches_tracked is not None:
            module.num_batches_tracked = module.num_batches_tracked.cpu()


def _in_twos(model: nn.Module, compute: Callable[..., Any], *batch: Tensor) -> Any:
    """Compute with a batch; with its image twice if it is a single one and a batch norm over 1 x 1 maps refuses it."""
    if len(batch[0]) > 1:
        return compute(*batch)
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        return compute(*batch)
    except ValueError:
        for buffer, value in before:  # other batch norms have counted the image already
            buffer.data.copy_(value)
        return compute(*(t.repeat_interleave(2, dim=0) for t in batch))
