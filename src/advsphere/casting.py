"""Weights of convolutions in low precision, cast once for many forward passes.

Autocast casts a weight that takes no gradient in each forward, and one that does in each step: one launch for each
weight, and one for its gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Autocast casts their weights, and they alone use them. A subclass or a linear head may compute with them first."""


class CastWeights:
    """A context in which the convolutions of a network hold their weights in the type to which autocast casts them.

    The numbers are those of autocast alone. The weights are cast when this is made. Only the forward pass should be
    inside the context, so that other code finds the network with its own weights.

    Args:
        model: The network.
        dtype: The type of autocast, None for none.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        self.places = [
            (module._parameters, name, p)
            for module in (model.modules() if dtype is not None else ())
            if type(module) in _LAYERS
            for name, p in module._parameters.items()
            if name in ("weight", "bias")  # other names, as those of pruning, are computed with before
            # A hook on a weight must see its gradient.
            if p is not None and p.dtype == torch.float32 and not (p._backward_hooks or p._post_accumulate_grad_hooks)
        ]
        own = dict.fromkeys(p for _, _, p in self.places)
        self.cast = {p: nn.Parameter(torch.empty_like(p, dtype=dtype), requires_grad=p.requires_grad) for p in own}
        if own:
            with torch.no_grad():
                torch._foreach_copy_([*self.cast.values()], [*own])

    def __enter__(self) -> None:
        for parameters, name, p in self.places:
            parameters[name] = self.cast[p]

    def __exit__(self, *_: Any) -> None:
        for parameters, name, p in self.places:
            parameters[name] = p

    @torch.no_grad()
    def hand_over(self) -> None:
        """Move the gradients of the cast weights to the network's own weights, added to those that are there."""
        given = [(p, cast.grad) for p, cast in self.cast.items() if cast.grad is not None]
        if not given:
            return
        wide = [torch.empty_like(p) for p, _ in given]
        torch._foreach_copy_(wide, [grad for _, grad in given])
        for (p, _), grad in zip(given, wide, strict=True):
            p.grad = grad if p.grad is None else p.grad.add_(grad)
            self.cast[p].grad = None
