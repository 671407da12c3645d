"""Load weights from a file into an existing network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from advsphere.classifier import PixelClassifier
from advsphere.errors import UserError
from advsphere.files import some

_WRAPPED = ("state_dict", "model", "model_state_dict", "net")
"""Keys of the state dict in the files of training scripts."""


def load_weights(model: nn.Module, path: Path | str, *, head: str | None = None) -> str:
    """Load weights from a file into a model.

    Name prefixes added by data parallelism, compilation, wrappers and this project's checkpoints are removed. A file
    without normalisation is loaded into the network inside a `PixelClassifier`.

    Args:
        model: The model, changed in place.
        path: A state dict, as safetensors or from torch.save. Pickles are read with weights_only, so they run no code.
        head: The name of the last linear layer, if the file's may be for other classes. It then keeps its weights.

    Returns:
        A line that says that the head is new, or an empty string.

    Raises:
        UserError: If the file can't be read, does not match its own checksum, or does not fit the model. The message
            lists the first names that differ.
    """
    state, own = _read(Path(path)), model.state_dict()
    theirs = _aligned(state, own)
    if not theirs.keys() & own.keys() and isinstance(model, PixelClassifier):
        inside = None if head is None else head.removeprefix("network.")
        return load_weights(model.network, path, head=inside)
    said = ""
    if head is not None:
        of_head = {name for name in own.keys() | theirs.keys() if name.startswith(f"{head}.")}
        given, wanted = theirs.get(f"{head}.weight"), own[f"{head}.weight"]
        if given is None or given.shape != wanted.shape:
            classes = "no head" if given is None else f"a head for {len(given)} classes"
            said = f"{path} has {classes}: training begins with a new one, for {len(wanted)}"
            theirs = {name: value for name, value in theirs.items() if name not in of_head}
        # The file's head may have a scale and no bias, while the model's head is still a plain one.
        theirs = {name: value for name, value in theirs.items() if name not in of_head or name in own}
        theirs |= {name: own[name] for name in of_head & own.keys() - theirs.keys()}
    if problem := _differences(own, theirs):
        raise UserError(f"{path} does not fit the model: {problem}")
    model.load_state_dict(theirs, strict=False)
    return said


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                own = "sha256" in (file.metadata() or {})
            state: Any = _of_a_run(path) if own else load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there are no weights at {path}") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path} can't be read as weights: {str(error).splitlines()[0]}") from error
    except Exception as error:  # pickle may raise any exception
        raise UserError(
            f"{path} holds more than tensors; save model.state_dict() alone ({type(error).__name__})"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no state dict, but a {type(state).__name__}; save model.state_dict()")
    for wrapped in _WRAPPED:
        if isinstance(state.get(wrapped), dict):
            state = state[wrapped]
    if any(str(name).startswith("optimizer.") for name in state):  # a checkpoint of `advsphere train`
        state = {name: value for name, value in state.items() if name.startswith("model.")}
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _of_a_run(path: Path) -> dict[str, Tensor]:
    from advsphere.training import load_checkpoint  # here and not at the top: training needs more packages

    return load_checkpoint(path)[0]


def _aligned(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the first part of all names, repeatedly, as long as all share it and the model knows none of them."""
    names = state
    while names and not names.keys() & own.keys():
        if len({name.partition(".")[0] for name in names}) > 1 or not all("." in name for name in names):
            return state
        names = {name.partition(".")[2]: value for name, value in names.items()}
    return names


def _differences(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """The tensors that are missing, unknown or of another shape, in words; "" if all fit."""
    # Files of old versions lack num_batches_tracked, and nothing reads it.
    missing = [name for name in own if name not in theirs and not name.endswith("num_batches_tracked")]
    unknown = [name for name in theirs if name not in own]
    reshaped = [
        f"{name} ({tuple(value.shape)} instead of {tuple(own[name].shape)})"
        for name, value in theirs.items()
        if name in own and value.shape != own[name].shape
    ]
    kinds = {"it lacks": missing, "it also has": unknown, "of another shape are": reshaped}
    return "; ".join(f"{kind} {some(names, 3)}" for kind, names in kinds.items() if names)
