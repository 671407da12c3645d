"""Activation checkpointing: residual blocks keep what enters them and are computed again in the backward."""

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
    """Make a network's blocks forget their activations, also while it is attacked (Chen et al. 2016, arXiv 1604.06174);
    logits, gradients and running statistics stay as they are.

    A block is what has layers inside and follows others in a row (`nn.Sequential`, `nn.ModuleList`), as in the ResNets
    of torchvision and timm, in transformers and in our own networks. Raises UserError where there is none.
    """
    blocks = list(_blocks(model))
    if not blocks:
        raise UserError(
            f"this {type(model).__name__} has no blocks of layers whose activations could be computed again; "
            "leave --checkpoint-activations out"
        )
    for block in blocks:
        block.forward = partial(_recomputed, block, block.forward)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost ones."""
    for child in model.children():
        row = isinstance(model, nn.Sequential | nn.ModuleList)
        if row and next(child.children(), None) is not None:
            yield child
        else:
            yield from _blocks(child)


def _recomputed(block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    # Tracing, which looks for batch norms to fold, passes something else than tensors.
    if not (torch.is_grad_enabled() and all(isinstance(value, Tensor) for value in inputs)):
        return forward(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _untracked(block)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _untracked(block: nn.Module) -> Iterator[None]:
    """Batch norm has counted these images before: in train mode it must not move its running statistics again."""
    tracking = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
