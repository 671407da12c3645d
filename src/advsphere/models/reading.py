"""Read the weights in a file, without running code of it."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from advsphere.errors import UserError

_FIRST = ("", "state_dict", "model_state_dict", "model", "net", "rmodel", "network", "params", "last")
"""The usual names of a network's weights in a training script's file, the first before the others."""

_NOT_WEIGHTS = ("optim", "sched", "scaler", "amp")
"""What is called so in a training script's file is not a network."""


class _Inert:
    """Stands for an object of any class in a pickle. The class itself is neither imported nor called."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            vars(self).update(state)


def read_states(path: Path | str) -> dict[str, dict[str, Any]]:
    """The networks' weights in a file, by their name in it ("" for a plain state dict), the most likely first.

    Pickles are read with `weights_only`, where objects of unknown classes are left empty. So no code of a file runs,
    and a network that was pickled whole shows its weights too. `FILE#NAME` reads only what has that name.

    Raises:
        UserError: If the file can't be read, does not match its own checksum, or holds no weights.
    """
    if not isinstance(path, str | Path):
        raise UserError(
            f"the weights are a {type(path).__name__}, not a file: name the file, or use model.load_state_dict(weights)"
        )
    path, wanted = Path(path), None
    if "#" in path.name and not path.exists():
        name, _, wanted = path.name.partition("#")
        path = path.with_name(name)
    content = _content(path)
    order = {name: place for place, name in enumerate(_FIRST)}
    states = dict(sorted(_states(content), key=lambda found: order.get(found[0], len(order))))
    if wanted is not None:
        if wanted not in states:
            raise UserError(f"{path} holds no network {wanted!r}; it holds {', '.join(filter(None, states)) or 'none'}")
        return {wanted: states[wanted]}
    if not states:
        keys = f" with {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else ""
        raise UserError(f"{path} holds no state dict, but a {type(content).__name__}{keys}; save model.state_dict()")
    return states


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                own = "sha256" in (file.metadata() or {})
            return _network_of(_of_a_run(path) if own else load_file(path))
        _require_undamaged(path)
        with safe_globals(_inert(path)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there are no weights at {path}") from error
    except UserError:
        raise
    except Exception as error:  # pickle may raise any exception
        if wrong := _no_weights(path):
            raise UserError(f"{path} {wrong}; download or copy it again") from error
        if isinstance(error, SafetensorError | OSError | RuntimeError | EOFError | ValueError):
            raise UserError(f"{path} can't be read as weights: {' '.join(str(error).split())[:200]}") from error
        raise UserError(
            f"{path} holds more than tensors; save model.state_dict() alone ({type(error).__name__})"
        ) from error


def _no_weights(path: Path) -> str:
    """Why a file that can't be read holds no weights, by its first bytes; empty if they are as `torch.save` or
    safetensors writes them.
    """
    begins = path.open("rb").read(20) if path.is_file() else b"\x80"
    if not begins:
        return "is empty"
    if begins.startswith(b"PK"):
        return "is cut off or damaged"
    if path.suffix == ".safetensors" or begins.startswith(b"\x80"):
        return ""
    return f"is no file of torch.save, as it begins with {begins.decode('ascii', 'replace')!r}"


def _require_undamaged(path: Path) -> None:
    """Refuse an archive whose members do not fit their checksums. `torch.load` does not compare them, and returns
    whatever is in the memory for a member that is marked as a folder.
    """
    if not zipfile.is_zipfile(path):  # a pickle as torch < 1.6 wrote it, without checksums
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            without = not any(member.CRC for member in members)  # torch.serialization.set_crc32_options(False)
            wrong = None if without else archive.testzip()
            folders = [one.filename for one in members if one.external_attr & 0x10 and one.filename[-1] != "/"]
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise UserError(f"{path} is damaged ({error}); use another copy") from error
    if wrong or folders:
        raise UserError(f"{path} is damaged: {wrong or folders[0]} does not fit its checksum; use another copy")


def _inert(path: Path) -> list[Any]:
    """An empty class for each class that a pickle names and `weights_only` does not know."""
    try:
        unknown = get_unsafe_globals_in_checkpoint(str(path))
    except (ValueError, RuntimeError, OSError):  # another format, or damaged: reading it says so
        return []
    return [(type(name.rpartition(".")[2], (_Inert,), {}), name) for name in unknown]


def _of_a_run(path: Path) -> dict[str, Tensor]:
    from advsphere.training import load_checkpoint  # here and not at the top: training needs more packages

    return load_checkpoint(path)[0]


def _network_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network alone, of a checkpoint of `advsphere train`."""
    if not any(name.startswith("optimizer.") for name in tensors):
        return tensors
    return {name: value for name, value in tensors.items() if name.startswith("model.")}


def _states(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(content, _Inert):
        content = dict(_of_a_module(content, ""))
    if not isinstance(content, Mapping) or depth > 3 or any(isinstance(key, int) for key in content):
        return
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor) or str(k).endswith("_extra_state")}
    if any(isinstance(value, Tensor) and value.dim() > 0 for value in state.values()):
        yield name, state
    for key, value in content.items():
        if isinstance(value, Mapping | _Inert) and not any(word in str(key).lower() for word in _NOT_WEIGHTS):
            yield from _states(value, f"{name}.{key}".removeprefix("."), depth + 1)


def _of_a_module(module: _Inert, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a pickled network, from the dictionaries that `torch.nn.Module` keeps."""
    parts = vars(module)
    transient = parts.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in (parts.get(kind) or {}).items():
            if isinstance(value, Tensor) and name not in transient:
                yield f"{prefix}{name}", value
    for name, child in (parts.get("_modules") or {}).items():
        if isinstance(child, _Inert):
            yield from _of_a_module(child, f"{prefix}{name}.")
