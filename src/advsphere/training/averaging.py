"""The exponential moving average of a network's weights over training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advsphere.state import duplicate


class MovingAverage:
    """A copy of a network whose parameters and buffers follow those of the network.

    As `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn`, to the bit. That one counts its updates on the
    device and reads the count in each of them, for which a GPU has to stop.

    Args:
        model: The network.
        decay: The share of the average that each update keeps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = duplicate(model), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the network; the first update copies it."""
        kept = [*self.module.parameters(), *self.module.buffers()]
        new: list[Tensor] = [*model.parameters(), *model.buffers()]
        floats = [i for i, t in enumerate(kept) if t.is_floating_point()]
        if self.updates == 0:
            for mine, its in zip(kept, new, strict=True):
                mine.copy_(its)
        else:
            torch._foreach_lerp_([kept[i] for i in floats], [new[i] for i in floats], 1 - self.decay)
            for i in {*range(len(kept))} - {*floats}:
                kept[i].copy_(kept[i] * self.decay + new[i] * (1 - self.decay))
        self.updates += 1
