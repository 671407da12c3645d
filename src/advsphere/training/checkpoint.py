"""Checkpoints: safetensors files, written atomically and in the background, checked on reading.

Reading one never runs code.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from advsphere.errors import UserError
from advsphere.files import disk_errors, tensor_checksum, write_atomically
from advsphere.state import network_state, unpacked

LAST, BEST = "last.safetensors", "best.safetensors"
PREVIOUS = "previous.safetensors"
"""The name of the checkpoint before the last one, from which a run continues if the last one is damaged."""
GOOD = "good.safetensors"
"""The name of the checkpoint of the last epoch without a collapse, to which the guard goes back."""


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write named tensors and JSON-able `meta`, with a SHA-256 over both. Raises UserError if that fails."""
    whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(meta, sort_keys=True)
    metadata = {"meta": text, "sha256": tensor_checksum(whole, text)}

    def write(to: Path) -> None:
        # Writing to a file releases Python's lock. Making the bytes first would stop training for that time.
        try:
            save_file(whole, to, metadata)
        except SafetensorError as error:
            missing = "(os error 2)" in str(error)
            raise (FileNotFoundError if missing else OSError)(str(error)) from error

    write_atomically(path, write)


def load(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint.

    Args:
        path: The file.

    Returns:
        The tensors by name, and the other values that were saved.

    Raises:
        UserError: If the file is missing, truncated, altered or no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"there is no checkpoint at {path}; `advsphere train` writes last.safetensors and best.safetensors"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is truncated or no safetensors file ({error}); use another checkpoint of the run"
        ) from error
    text = metadata.get("meta", "")
    if metadata.get("sha256") != tensor_checksum(tensors, text):
        raise UserError(
            f"{path} does not match its own checksum: it was altered, or not written by advsphere; use another file"
        )
    return tensors, json.loads(text)


class CheckpointWriter:
    """Writes checkpoints in a thread, in order. After a failure it writes none, because they may refer to that one."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: list[Future[dict[str, Tensor]]] = []
        # The memory of written copies, by the names of their tensors. New memory takes three times as long to fill.
        self.free: dict[frozenset[str], dict[str, Tensor]] = {}

    def save(
        self,
        path: Path,
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        previous: Path | None = None,
        also: Path | None = None,
    ) -> None:
        """As `save`, of a copy, in the background. The file that it replaces is kept as `previous`, and the new one
        gets the second name `also`. Errors of earlier files are raised here, or by `wait`.
        """
        while len(self.pending) > 1:  # a slow disk must not fill the memory with copies
            self._take_back(self.pending.pop(0))
        if self.pending and self.pending[0].done() and not self.pending[0].exception():
            self._take_back(self.pending.pop(0))
        room = self.free.pop(frozenset(tensors), {})
        copied = {name: _copied(t.detach(), room.get(name)) for name, t in tensors.items()}
        gpus = {t.device for t in tensors.values() if t.is_cuda}
        ready = [torch.cuda.current_stream(gpu).record_event() for gpu in gpus]
        before = self.pending[-1] if self.pending else None
        self.pending.append(self.thread.submit(_write, before, ready, path, previous, also, copied, dict(meta)))

    def wait(self) -> None:
        """Wait until all files are written. Raises the first error."""
        pending, self.pending = self.pending, []
        for each in pending:
            self._take_back(each)

    def _take_back(self, written: Future[dict[str, Tensor]]) -> None:
        copied = written.result()
        self.free[frozenset(copied)] = copied


def _copied(t: Tensor, room: Tensor | None) -> Tensor:
    """A copy on the CPU, in `room` if it fits. From a GPU it is complete only after an event recorded now."""
    if room is None or (room.shape, room.dtype, room.stride()) != (t.shape, t.dtype, t.stride()):
        room = torch.empty_like(t, device="cpu", pin_memory=t.is_cuda)
    return room.copy_(t, non_blocking=t.is_cuda)


def _write(
    before: Future[dict[str, Tensor]] | None,
    ready: Sequence[torch.cuda.Event],
    path: Path,
    previous: Path | None,
    also: Path | None,
    tensors: dict[str, Tensor],
    meta: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Write a file after the one before it, and return the copies, whose memory is free then."""
    if before is not None:
        before.result()  # raises its error
    for event in ready:
        event.synchronize()
    if previous is not None:
        with suppress(OSError):  # there is none yet, or the file system has no links
            _name_also(path, previous, os.link)
    save(path, tensors, meta)
    if also is not None:
        with disk_errors(also):
            try:
                _name_also(path, also, os.link)
            except OSError:
                _name_also(path, also, shutil.copyfile)
    return tensors


def _name_also(path: Path, other: Path, link: Callable[[Path, Path], object]) -> None:
    """Give a file a second name, under which it outlives its replacement. Both names always have a whole file."""
    temporary = path.with_name(f".{other.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    link(path, temporary)
    os.replace(temporary, other)
    temporary.unlink(missing_ok=True)  # it stays if both are names of one file


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put a prefix before the names, to hold several state dicts in one file."""
    return {f"{prefix}.{name}": t for name, t in tensors.items()}


def section(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `prefixed` gave this prefix, without it."""
    return {n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(f"{prefix}.")}


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load the state dict of the file at `path` into a model. Raises UserError if it belongs to another network."""
    given, packed = unpacked(model, tensors), network_state(model)
    ours, theirs = (
        {name: tuple(t.shape) for name, t in state.items() if isinstance(given.get(name, t), Tensor)}
        for state in (packed, tensors)
    )
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        name = differing[0]
        raise UserError(
            f"{path} holds another network than the run's config.yaml describes: {len(differing)} tensors differ, e.g. "
            f"{name} is {theirs.get(name, 'missing')} there and {ours.get(name, 'missing')} here; "
            "use the checkpoint of this run"
        )
    model.load_state_dict(given)


def optimizer_state(optimizer: optim.Optimizer, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimizer: its tensors as "parameter/key", and its numbers and strings.

    The numbers and strings are those of each parameter, and those of each parameter group, where some optimizers keep
    counters. Settings of other types, such as betas, are restored from the config. Raises UserError for a state of
    another type.
    """
    state = dict(_items(optimizer, model))
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    numbers = {key: value for key, value in state.items() if key not in tensors}
    if unknown := [key for key, value in numbers.items() if not _is_scalar(value)]:
        raise UserError(
            f"the optimizer {type(optimizer).__name__} keeps {unknown[0]}, which is neither a tensor nor a number, "
            "so no checkpoint can hold it: use another optimizer"
        )
    groups = [{key: value for key, value in group.items() if _is_scalar(value)} for group in optimizer.param_groups]
    return tensors, {"parameters": numbers, "groups": groups}


def restore_optimizer(
    optimizer: optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Undo `optimizer_state`; the tensors take each parameter's device and layout."""
    parameters = dict(model.named_parameters())
    for name, value in {**tensors, **numbers.get("parameters", {})}.items():
        parameter, _, key = name.rpartition("/")
        p = parameters[parameter]
        # As in `Optimizer.load_state_dict`: torch's optimizers keep step counts on the CPU, with two exceptions.
        on_cpu = key == "step" and not (optimizer.defaults.get("capturable") or optimizer.defaults.get("fused"))
        if isinstance(value, Tensor) and not on_cpu:
            value = torch.empty_like(p).copy_(value) if value.shape == p.shape else value.to(p.device)
        optimizer.state[p][key] = value
    for group, kept in zip(optimizer.param_groups, numbers.get("groups", ()), strict=False):
        # How the device of that time computed the step is no state.
        group.update({key: value for key, value in kept.items() if key not in ("foreach", "fused")})


def _items(optimizer: optim.Optimizer, model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            yield f"{name}/{key}", value


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
