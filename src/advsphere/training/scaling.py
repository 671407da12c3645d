"""The scale of the loss in float16, whose small gradients would otherwise be rounded to zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import optim
from torch.amp.grad_scaler import GradScaler

from advsphere.errors import UserError


class LossScale(GradScaler):
    """PyTorch's scaler, on only in float16, which counts the steps that it skips because a gradient overflows.

    Args:
        device: The device of the network.
        dtype: The precision of training, None for float32.

    Raises:
        UserError: In float16 on a CPU.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None) -> None:
        on = dtype is torch.float16
        if on and device.type == "cpu":
            raise UserError("training in float16 is for GPUs: use --precision bfloat16 or float32")
        super().__init__(device.type, enabled=on)
        self.skipped = torch.zeros((), device=device)

    def advance(self, optimizer: optim.Optimizer) -> None:
        """Take a step with the gradients of a scaled loss, or skip it, and adapt the scale."""
        self.step(optimizer)
        if self.is_enabled():
            for found in self._found_inf_per_device(optimizer).values():
                self.skipped.add_(found)
        self.update()

    def state_dict(self) -> dict[str, Any]:
        """The state, with the number of steps that this epoch has skipped; empty if the scaler is off."""
        return super().state_dict() | ({"skipped": float(self.skipped)} if self.is_enabled() else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        if self.is_enabled():
            super().load_state_dict(state_dict)
            self.skipped.fill_(state_dict["skipped"])
