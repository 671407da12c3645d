"""Autocast of the stand-in device: the operators and policies of CUDA's, which PyTorch has in C++ only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map_only

# AT_FORALL_LOWER_PRECISION_FP and AT_FORALL_PROMOTE of ATen/autocast_mode.h. All others of CUDA compute in float32.
_LOWER = {
    "_convolution", "conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "convolution", "prelu", "addmm", "addmv", "addr", "matmul", "einsum", "mm", "mv",
    "linalg_vecdot", "linear", "addbmm", "baddbmm", "bmm", "chain_matmul", "linalg_multi_dot", "_thnn_fused_lstm_cell",
    "_thnn_fused_gru_cell", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
    "_scaled_dot_product_flash_attention", "scaled_dot_product_attention",
}  # fmt: skip
_PROMOTE = {
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "tensordot",
    "scatter_add",
}  # fmt: skip
_KEY = DispatchKeySet(DispatchKey.AutocastPrivateUse1)
_cast_weights: dict[int, tuple[Tensor, Tensor]] = {}


def overload(name: str) -> OpOverload:
    """The operator of a name such as `add.Tensor`."""
    packet, _, which = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), which or "default")


def overloads() -> Iterator[tuple[str, OpOverload]]:
    """All operators of aten that can be called from Python, with their names."""
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, short = name.partition("::")
        try:
            if namespace == "aten":
                yield short, overload(short)
        except AttributeError:  # one of TorchScript's, or of named dimensions
            continue


def register_autocast() -> list[torch.library.Library]:
    """Register the policies for the stand-in device."""
    every, library = (torch.library.Library(namespace, "IMPL") for namespace in ("_", "aten"))
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name, op in overloads():
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCUDA"):
            library.impl(name, partial(_policy(name), op), "AutocastPrivateUse1")
    clear = torch.clear_autocast_cache

    def clear_all() -> None:
        _cast_weights.clear()
        clear()

    torch.clear_autocast_cache = clear_all  # autocast calls it where the outermost block ends
    return [every, library]


def _policy(name: str) -> Callable[..., Any]:
    packet = name.partition(".")[0]
    if packet in _LOWER:
        return _in_low_precision
    return _promoted if packet in _PROMOTE else _in_float32


def _device() -> str:
    return torch._C._get_privateuse1_backend_name()


def _eligible(t: Tensor) -> bool:
    return t.device.type == _device() and t.is_floating_point() and t.dtype != torch.float64


def _call(op: OpOverload, dtype: torch.dtype, args: Any, kwargs: Any) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(_KEY):
        args, kwargs = tree_map_only(Tensor, lambda t: _cast(t, dtype) if _eligible(t) else t, (args, kwargs))
        return op(*args, **kwargs)


def _in_low_precision(op: OpOverload, *args: Any, **kwargs: Any) -> Any:
    return _call(op, torch.get_autocast_dtype(_device()), args, kwargs)


def _in_float32(op: OpOverload, *args: Any, **kwargs: Any) -> Any:
    names = [argument.name for argument in op._schema.arguments]
    if "dtype" in names:  # these read any type and sum in float32
        place = names.index("dtype")
        given = kwargs.get("dtype", args[place] if place < len(args) else None)
        if given is None and _eligible(args[0]):
            args, kwargs = args[:place], {**kwargs, "dtype": torch.float32}
        with torch._C._ExcludeDispatchKeyGuard(_KEY):
            return op(*args, **kwargs)
    return _call(op, torch.float32, args, kwargs)


def _promoted(op: OpOverload, *args: Any, **kwargs: Any) -> Any:
    given = [t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and _eligible(t)]
    return _call(op, torch.float32 if torch.float32 in given else torch.get_autocast_dtype(_device()), args, kwargs)


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    if t.dtype == dtype:
        return t
    weight = t.dtype == torch.float32 and dtype != torch.float32 and t.requires_grad and t.is_leaf and not t._is_view()
    if not (weight and torch.is_autocast_cache_enabled()):
        return t.to(dtype)
    if id(t) not in _cast_weights:
        _cast_weights[id(t)] = t, t.to(dtype)
    return _cast_weights[id(t)][1]
