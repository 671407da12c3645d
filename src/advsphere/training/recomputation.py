"""Activation checkpointing: residual blocks keep only their inputs and are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from advsphere.errors import UserError


def recompute_blocks(model: nn.Module) -> None:
    """Make the blocks of a network discard their activations, also under attack.

    Logits, gradients and running statistics stay the same. A block is a module with layers inside that follows others
    in an `nn.Sequential` or `nn.ModuleList`, as in the ResNets of torchvision and timm, in transformers and in our own
    networks. Raises UserError if there is no block.
    Source: Chen et al. 2016, arXiv:1604.06174.
    """
    blocks = list(_blocks(model))
    if not blocks:
        raise UserError(
            f"this {type(model).__name__} has no blocks of layers whose activations could be recomputed; "
            "leave out --checkpoint-activations"
        )
    for block in blocks:
        block.forward = partial(_recomputed, block, block.forward)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    for child in model.children():
        row = isinstance(model, nn.Sequential | nn.ModuleList)
        if row and next(child.children(), None) is not None:
            yield child
        else:
            yield from _blocks(child)


def _recomputed(block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    # Tracing, which looks for batch norms to fold, passes proxies.
    if not (torch.is_grad_enabled() and all(isinstance(value, Tensor) for value in inputs)):
        return forward(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _untracked(block)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _untracked(block: nn.Module) -> Iterator[None]:
    """Do not update the running statistics of batch norm, because they already include these images.

    A momentum of 0 leaves them unchanged but saves as many tensors for the backward pass as the first forward.
    """
    found = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    before = [(m.momentum, m.num_batches_tracked) for m in found]
    counts = [None if count is None else count.clone() for _, count in before]
    try:
        for module in found:
            module.momentum = 0.0
        yield
    finally:
        for module, (momentum, tracked), count in zip(found, before, counts, strict=True):
            module.momentum = momentum
            if tracked is not None and count is not None:
                tracked.copy_(count)
