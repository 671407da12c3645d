"""The state of a network: as tensors for a file, copied, and restored after forwards that must leave no trace."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from advsphere.errors import UserError


def network_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network, all in tensors: the extra state of a layer is packed into bytes.

    Args:
        model: The network.

    Returns:
        The tensors by name.
    """
    state = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            torch.save(value, buffer := io.BytesIO())
            value = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        state[name] = value
    return state


def unpacked(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `network_state`, for `load_state_dict`. Reading the bytes runs no code.

    Args:
        model: The network that the state is for.
        state: The tensors by name.

    Returns:
        The state dict.
    """
    own = model.state_dict()
    packed = {name for name, value in own.items() if not isinstance(value, Tensor)}
    found = OrderedDict[str, Any]()
    for name, value in state.items():
        as_bytes = name in packed and isinstance(value, Tensor)
        found[name] = torch.load(io.BytesIO(bytes(value.tolist())), weights_only=True) if as_bytes else value
    found._metadata = own._metadata  # type: ignore[attr-defined]  # without versions, some layers refuse a state
    return found


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Restore the attributes, buffers and random numbers of a network after forwards that must leave no trace.

    Args:
        model: The network. Lists, dictionaries and sets in its attributes are restored too, with the entries they had.

    Yields:
        Nothing.

    Raises:
        UserError: As `require_shapes`.
    """
    require_shapes(model)
    modules = [*model.modules()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    inside = [value for module in modules for value in vars(module).values() if isinstance(value, list | dict | set)]
    before = [(holder, copy.copy(holder)) for holder in (*map(vars, modules), *inside)]
    device = next((p.device for p in model.parameters() if p.device.type == "cuda"), None)
    try:
        with torch.random.fork_rng(devices=[] if device is None else [device]):
            yield
    finally:
        for holder, entries in before:
            holder.clear()
            (holder.extend if isinstance(holder, list) else holder.update)(entries)
        for buffer, value in buffers:
            buffer.data.copy_(value)


def duplicate(model: nn.Module) -> nn.Module:
    """Copy a network with its weights.

    `copy.deepcopy` refuses one with weights that a hook computes before each forward, as pruning does.

    Args:
        model: The network.

    Returns:
        The copy.
    """
    computed = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    memo = {id(t): t.detach().clone() for t in computed}
    return copy.deepcopy(model, memo)


def require_shapes(model: nn.Module) -> None:
    """Refuse what is no network, and a network with lazy layers that have no shape yet.

    Args:
        model: The network.

    Raises:
        UserError: If it is no module, or has such a layer.
    """
    given: object = model
    if not isinstance(given, nn.Module):
        raise UserError(f"the model is a {type(given).__name__}; wrap it in a torch.nn.Module")
    for name, p in model.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise UserError(
                f"the lazy layer {name.rpartition('.')[0] or name!r} of this {type(model).__name__} has no shape yet; "
                "run the network once, on a batch of your images"
            )
