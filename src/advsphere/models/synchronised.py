"""Batch norm over all processes."""

from __future__ import annotations

from torch import nn


def synchronised(model: nn.Module) -> nn.Module:
    """The network with every batch norm normalising, in train mode, by the statistics of all processes' images; the
    weights and their names stay. Networks of ours, torchvision and timm (whose batch norms may hold an activation too).
    """
    from timm.layers.norm_act import convert_sync_batchnorm  # here and not at the top: it takes seconds to import

    converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted
