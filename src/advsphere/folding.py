"""Folding of batch norms into convolutions, and the replacement of modules in a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from advsphere.state import kept


def replace_modules(model: nn.Module, new_of: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules under all of their names.

    Args:
        model: The network, changed in place.
        new_of: The replacement of each module.
    """
    for parent in [*model.modules()] if new_of else ():
        for name, child in parent._modules.items():
            if child is not None and child in new_of:
                parent._modules[name] = new_of[child]


# For each traced model: the names and types of its modules (one may be replaced later), and the pairs found.
_PAIRS: WeakKeyDictionary[nn.Module, tuple[list[tuple[str, type]], list[tuple[str, str]]]] = WeakKeyDictionary()


def fold(model: nn.Module, folded: dict[nn.Module, nn.Module]) -> None:
    """Replace each conv -> batch norm pair by one convolution.

    Args:
        model: The network in eval mode, changed in place.
        folded: Receives the replacement of each module, so that the caller can undo it.
    """
    structure = [(name, type(module)) for name, module in model.named_modules()]
    if model not in _PAIRS or _PAIRS[model][0] != structure:
        _PAIRS[model] = structure, _conv_bn_pairs(model)
    pairs = [(model.get_submodule(conv), model.get_submodule(bn)) for conv, bn in _PAIRS[model][1]]
    pairs = [pair for pair in pairs if not any(map(_hooked, pair))]
    for (conv, bn), weight, bias in zip(pairs, *_folded(pairs), strict=True):
        folded[conv], folded[bn] = copy(conv), nn.Identity()
        parameters = {"weight": weight, "bias": bias}
        folded[conv]._parameters = {name: nn.Parameter(t, requires_grad=False) for name, t in parameters.items()}
    replace_modules(model, folded)


def _hooked(module: nn.Module) -> bool:
    """Whether somebody looks at what goes into or out of a module, which folding changes."""
    return any(hooks for name, hooks in vars(module).items() if name.startswith(("_forward_", "_backward_")))


@torch.no_grad()
def _folded(pairs: Sequence[tuple[Any, Any]]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The weights and biases of `torch.nn.utils.fusion.fuse_conv_bn_weights`, for all pairs at once."""
    if not pairs:
        return [], []
    means = [bn.running_mean for _, bn in pairs]
    factors = [torch.ones_like(bn.running_mean) if bn.weight is None else bn.weight for _, bn in pairs]
    shifts = [torch.zeros_like(bn.running_mean) if bn.bias is None else bn.bias for _, bn in pairs]
    inverse = torch._foreach_rsqrt(torch._foreach_add([bn.running_var for _, bn in pairs], [bn.eps for _, bn in pairs]))
    scales = [scale.view(-1, 1, 1, 1) for scale in torch._foreach_mul(factors, inverse)]
    moved = [-mean if conv.bias is None else conv.bias - mean for (conv, _), mean in zip(pairs, means, strict=True)]
    biases = torch._foreach_mul(torch._foreach_mul(moved, inverse), factors)
    return torch._foreach_mul([conv.weight for conv, _ in pairs], scales), torch._foreach_add(biases, shifts)


class _LeafTracer(fx.Tracer):
    """Traces only into containers: any module without children is one node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return super().call_module(m, m.forward, args, kwargs)  # hooks of containers must not see proxies


def _conv_bn_pairs(model: nn.Module) -> list[tuple[str, str]]:
    try:
        with kept(model):
            graph = _LeafTracer().trace(model)
    except Exception:  # tracing runs the user's code on proxies and may fail in any way; folding only saves time
        return []
    called = [n.target for n in graph.nodes if n.op == "call_module"]
    pairs = []
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not (isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1):
            continue
        conv, bn = model.get_submodule(str(source.target)), model.get_submodule(str(node.target))
        once = called.count(source.target) == 1 and called.count(node.target) == 1
        if once and type(conv) is nn.Conv2d and type(bn) is nn.BatchNorm2d and bn.track_running_stats:
            pairs.append((str(source.target), str(node.target)))
    return pairs
