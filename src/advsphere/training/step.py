"""One optimiser step's gradient: crafted and differentiated in parts, over the ranks of a world."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from advsphere.objectives import Crafting, Criterion, Losses, Objective
from advsphere.training.parts import Division, Part


class TrainStep(nn.Module):
    """Model and objective as one module, (x, x_adv, y) -> Losses: what data parallelism wraps, while crafting uses the
    bare model.
    """

    def __init__(self, model: nn.Module, objective: Objective, criterion: Criterion) -> None:
        super().__init__()
        self.model, self.objective, self.criterion = model, objective, criterion

    def forward(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Losses:
        return self.objective.loss(self.model, x, x_adv, y, criterion=self.criterion)


class BatchGradient:
    """The gradient of a global batch's mean loss, left in the parameters of every rank's model; and what the objective
    carries to the next batch, each part its own positions.

    Each rank normalises by the statistics of its own parts, unless its batch norm is synchronised; the running ones are
    averaged by the sizes of the shares, so that all ranks craft and validate with one network.
    """

    def __init__(self, model: nn.Module, objective: Objective, criterion: Criterion, division: Division) -> None:
        self.model, self.objective, self.division = model, objective, division
        self.step: nn.Module = TrainStep(model, objective, criterion)
        if division.world.size > 1:
            self.step = DistributedDataParallel(self.step, broadcast_buffers=False)
        self.carries: list[Tensor | None] = [None] * division.accumulate

    def backward(self, x: Tensor, y: Tensor, n: int, how: Crafting) -> Tensor:
        """Craft this rank's share, (b, C, H, W) and (b,), of a batch of n, and add to the gradients what it
        contributes. Returns the sum of its losses, () float64.
        """
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        parts = self.division.parts(n)
        for i, part in enumerate(parts):
            with self._unsynchronised() if i + 1 < len(parts) else nullcontext():
                loss = self._backward(part, x[part.places], y[part.places], n, how)
            total += loss.double() * part.images
        if self.division.world.size > 1:
            self._average_statistics(sum(part.images for part in parts) / n)
        return total

    def carried(self) -> Tensor | None:
        """What is carried, by position in the global batch: whole on the first rank, on the CPU. All ranks ask."""
        mine = [carry.cpu() for carry in self.carries if carry is not None]
        parts = [carry for rank in self.division.world.gather(mine) for carry in rank]
        return torch.cat(parts) if parts else None

    def carry(self, whole: Tensor | None) -> None:
        """Go on with what `carried` gave, perhaps in another world."""
        if whole is not None:
            positions = self.division.positions(self.division.world.rank)
            self.carries = [whole[at] if at.start < len(whole) else None for at in positions]

    def _backward(self, part: Part, x: Tensor, y: Tensor, n: int, how: Crafting) -> Tensor:
        carry = None if part.number is None else self.carries[part.number]
        x_adv = self.objective.craft(self.model, x, y, replace(how, draws=how.draws.take(part.places), carry=carry))
        self.model.train()
        with torch.autocast(x.device.type, dtype=how.dtype, enabled=how.dtype is not None):
            losses: Losses = self.step(x, x_adv, y)
        # Data parallelism averages the gradients of equals; these are parts of the sizes that they have.
        (losses.total * (self.division.world.size * part.images / n)).backward()
        if part.number is not None:
            self.carries[part.number] = self.objective.after_backward(x, x_adv, carry)
        return losses.total.detach()

    def _unsynchronised(self) -> AbstractContextManager[None]:
        """Gradients of all parts but the last stay on their rank."""
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
