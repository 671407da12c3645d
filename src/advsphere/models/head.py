"""The plain head of the networks that are built by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearHead(nn.Linear):
    """A linear layer that computes in float32 or wider also under autocast, as the hyperspherical head does.

    With bfloat16 logits a plain network would be attacked and trained on coarser numbers than one with a sphere.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> LinearHead:
        """The same layer, with the same parameters."""
        head = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        return head

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            dtype = torch.promote_types(z.dtype, torch.float32)
            bias = None if self.bias is None else self.bias.to(dtype)
            return F.linear(z.to(dtype), self.weight.to(dtype), bias)
