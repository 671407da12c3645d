"""Load weights from a file into an existing network, whatever prefixes and wrappers its names have."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from advsphere.classifier import PixelClassifier
from advsphere.errors import UserError
from advsphere.files import some
from advsphere.hypersphere import HypersphereHead, attach_head
from advsphere.models.published import NORMALISATION, candidates, kind_of, renamed
from advsphere.models.reading import read_states
from advsphere.state import unpacked

_COUNTERS = ("num_batches_tracked", "total_ops", "total_params")
"""Names that files may lack or have too many of, because no forward reads them."""

_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names that compilation and parallel training put around layers."""


def load_weights(model: nn.Module, path: Path | str, *, head: str | None = None) -> str:
    """Load weights from a file into a model.

    Name prefixes added by data parallelism, compilation, wrappers and this project's checkpoints are removed, on either
    side. Our own networks also take the names of TRADES, AT_HE, fast_adversarial, pytorch-cifar, MAIR and RobustBench.
    An input normalisation in the file (`mean` and `std`, `mu` and `sigma`) replaces the model's, as that of a
    `PixelClassifier`. Tensors that are tied in the model may be stored once. The scale of a `HypersphereHead` may be
    missing, as in AT_HE's files; the head then keeps its own.

    Args:
        model: The model, changed in place.
        path: A state dict, or a training script's file that contains one, as safetensors or from torch.save. No code
            of a file runs: pickles are read with weights_only. If the file holds several networks, FILE#NAME names one.
        head: The name of the last linear layer, if the file's may be for other classes. It then keeps its weights.

    Returns:
        What the user should know, in one line: that the head is new, or that the file holds another network that fits.
        Usually an empty string.

    Raises:
        UserError: If the file can't be read, does not match its own checksum, or does not fit the model. The message
            lists the first names that differ, and the nearest ones of the model.
    """
    states = read_states(path)
    fits = {name: _fit(state, model, head) for name, state in states.items()}
    good = [name for name, fit in fits.items() if not fit.problem]
    if not good:
        best = min(fits.values(), key=lambda fit: fit.differing)
        cure = _cure(next(states[name] for name, fit in fits.items() if fit is best), best)
        raise UserError(f"{path} does not fit the model: {best.problem}; {cure}")
    chosen = fits[good[0]]
    model.load_state_dict(unpacked(model, chosen.theirs), strict=False)
    others = [name for name in good[1:] if not _equal(fits[name].theirs, chosen.theirs)]
    lines = [f"{path} has {chosen.new_head}"] if chosen.new_head else []
    if others:
        named = " or ".join(f"{path}#{name}" for name in others)
        lines.append(f"{path} holds several networks that fit: {good[0] or 'the first'} was loaded, not {named}")
    return "; ".join(lines)


class Recognised(NamedTuple):
    """One of our networks that weights fit.

    Attributes:
        name: Its name, as `advsphere.models.build` takes it.
        hyperspherical: Whether its head has no bias, so that it has to be a `HypersphereHead`.
    """

    name: str
    hyperspherical: bool


def recognised(path: Path | str) -> Recognised:
    """Find which of our networks the weights in a file fit.

    Args:
        path: The file, as in `load_weights`.

    Returns:
        The network.

    Raises:
        UserError: If none fits, or several that differ in what they compute.
    """
    states = read_states(path)
    found = list(dict.fromkeys(one for state in states.values() for one in _fitting(state)))
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{path} fits {' and '.join(one.name for one in found)}, which have the same weights and compute different "
            "logits; name the one that it was trained as: --model"
        )
    keys = list(next(iter(states.values())))
    raise UserError(
        f"{path} fits none of our own networks (its keys: {some(keys, 3)}); name the network that it belongs to: "
        "--model timm:NAME, torchvision:NAME, hf:NAME, robustbench:NAME or package.module:function"
    )


@dataclass
class _Fit:
    """The weights of a file by the model's names, and what does not fit, in words."""

    theirs: dict[str, Any]
    problem: str = ""
    differing: int = 0
    new_head: str = ""
    classes: int = 0
    """The number of classes of the file, if nothing else differs."""


def _fit(state: Mapping[str, Any], model: nn.Module, head: str | None = None) -> _Fit:
    own: dict[str, Any] = model.state_dict()
    theirs, unknown, place = _aligned(state, model, own)
    theirs = unpacked(model, theirs)
    new_head = ""
    if head is not None:
        of_head = {name for name in own.keys() | theirs.keys() if name.startswith(f"{head}.")}
        given, wanted = theirs.get(f"{head}.weight"), own[f"{head}.weight"]
        if given is None or given.shape != wanted.shape:
            classes = "no head" if given is None else f"a head for {len(given)} classes"
            new_head = f"{classes}: training begins with a new one, for {len(wanted)}"
            theirs = {name: value for name, value in theirs.items() if name not in of_head}
        # The file's head may have a scale and no bias, while the model's head is still a plain one.
        local = head.removeprefix(place)
        unknown = {name: value for name, value in unknown.items() if not name.startswith((f"{head}.", f"{local}."))}
        theirs |= {name: own[name] for name in of_head & own.keys() - theirs.keys()}
    missing, torn = _missing(own, theirs, model)
    kept = {name for name, module in model.named_modules() if isinstance(module, HypersphereHead)}
    missing = [name for name in missing if not (name.endswith("scale") and name.rpartition(".")[0] in kept)]
    changed = [
        name
        for name, value in theirs.items()
        if isinstance(value, Tensor) and isinstance(own[name], Tensor) and value.shape != own[name].shape
    ]
    reshaped = [
        f"{name.removeprefix(place)} ({tuple(theirs[name].shape)} instead of {tuple(own[name].shape)})"
        for name in changed
    ]
    missing = [name.removeprefix(place) for name in missing]
    kinds = {
        "it lacks": missing,
        "it also has": _with_nearest(unknown, missing),
        "of another shape are": reshaped,
        "one tensor of the model has two values:": torn,
    }
    problem = "; ".join(f"{kind} {some(names, 3)}" for kind, names in kinds.items() if names)
    if problem and (normalisation := _values(unknown)):
        problem += (
            f"; its input normalisation has no place in the model, put it into a PixelClassifier: {normalisation}"
        )
    differing, rows = sum(map(len, kinds.values())), {theirs[name].shape[:1] for name in changed}
    only_rows = len(rows) == 1 and all(theirs[name].shape[1:] == own[name].shape[1:] for name in changed)
    return _Fit(theirs, problem, differing, new_head, rows.pop()[0] if only_rows and differing == len(changed) else 0)


def _aligned(
    state: Mapping[str, Any], model: nn.Module, own: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The weights under the model's names, the rest under their own, and the model's prefix of all that matched.

    Of all ways to remove a prefix from the file's names and one from the model's, the one that matches most is taken.
    """
    state = _unwrapped(state, own)
    ways = [(_inside(state, theirs), theirs, ours) for theirs in _prefixes(state) for ours in _prefixes(own)]
    best: tuple[int, dict[str, Any], str, str] = (-1, {}, "", "")
    for inner, prefix, place in ways:
        kind = kind_of(model.get_submodule(place.removesuffix(".")))
        named = inner if kind is None else renamed(inner, kind)
        count = sum(f"{place}{name}" in own for name in named if not _role(name))
        # If nothing matches, errors tell the file's names as they are, and the model's without their prefix.
        if count > best[0] or (best[0] == 0 and not prefix):
            best = count, named, prefix, place
    _, named, prefix, place = best
    found = {f"{place}{name}": value for name, value in named.items() if f"{place}{name}" in own}
    rest = {name: value for name, value in named.items() if f"{place}{name}" not in own}
    rest |= {name: value for name, value in state.items() if not name.startswith(prefix)}
    used = {value.data_ptr() for value in found.values() if isinstance(value, Tensor) and value.numel()}
    rest = {  # without second names of tensors that are loaded already
        name: value
        for name, value in rest.items()
        if not (_is_counter(name, value) or (isinstance(value, Tensor) and value.data_ptr() in used))
    }
    return *_normalised(found, rest, own), place


def _unwrapped(state: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights without the names of wrappers around any layer, unless the model has such wrappers too."""
    for wrapper in _WRAPPERS:
        pattern = re.compile(rf"(^|\.){wrapper}\.")
        if not any(map(pattern.search, own)):
            state = {pattern.sub(r"\1", name): value for name, value in state.items()}
    return state


def _normalised(
    found: dict[str, Any], rest: dict[str, Any], own: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give an input normalisation the model's shape, and move it from the rest to the place where the model has one."""
    if "n_classes" in rest:  # MAIR notes the mean and the std there, and its forward does not use them
        rest = {name: value for name, value in rest.items() if name not in ("n_classes", "mean", "std")}
    for name in [name for name in found if _role(name) and found[name].numel() == own[name].numel()]:
        found[name] = found[name].reshape(own[name].shape)
    for role in NORMALISATION:
        places = [name for name in own if _role(name) == role and name not in found]
        for name, value in [(name, value) for name, value in rest.items() if _role(name) == role]:
            neutral = bool((value == (1.0 if role == "std" else 0.0)).all())
            if len(places) == 1 and value.numel() == own[places[0]].numel():
                found[places[0]] = value.reshape(own[places[0]].shape)
            if neutral or (places and places[0] in found):
                del rest[name]
    return found, rest


def _role(name: str) -> str | None:
    """Whether a name is that of the input's mean or standard deviation."""
    last = name.rpartition(".")[2]
    return next((role for role, names in NORMALISATION.items() if last in names), None)


def _prefixes(names: Mapping[str, Any]) -> list[str]:
    """Every dotted prefix that more than half of the names have, the shortest first."""
    found: list[str] = [""]
    while True:
        counts: dict[str, int] = {}
        for name in names:
            if name.startswith(found[-1]) and "." in (left := name[len(found[-1]) :]):
                first = f"{found[-1]}{left.partition('.')[0]}."
                counts[first] = counts.get(first, 0) + 1
        longest = max(counts, key=lambda prefix: counts[prefix], default="")
        if 2 * counts.get(longest, 0) <= len(names):
            return found
        found.append(longest)


def _inside(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def _is_counter(name: str, value: Any) -> bool:
    counts = isinstance(value, Tensor) and value.dim() == 0 and not value.is_floating_point()
    return name.rpartition(".")[2] in _COUNTERS or (counts and name.rpartition(".")[2] == "n_averaged")


def _missing(own: Mapping[str, Any], theirs: Mapping[str, Any], model: nn.Module) -> tuple[list[str], list[str]]:
    """The names of the model that a file lacks, and tied tensors to which it gives two values."""
    together: dict[int | str, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        together.setdefault(id(value) if isinstance(value, Tensor) else name, []).append(name)
    missing, torn = [], []
    for names in together.values():
        given = [name for name in names if name in theirs]
        if not given:
            missing += [name for name in names if not _is_counter(name, own[name])]
        elif any(not _same(theirs[given[0]], theirs[name]) for name in given[1:]):
            torn.append(" = ".join(given))
    # An input normalisation is a buffer of the network, or of a module beside it, and keeps its values.
    kept = {name for name, _ in model.named_buffers() if _role(name) and name.count(".") < 2}
    return [name for name in missing if name not in kept], torn


def _same(first: Any, second: Any) -> bool:
    tensors = isinstance(first, Tensor) and isinstance(second, Tensor)
    return first is second or (tensors and first.shape == second.shape and bool(torch.equal(first, second)))


def _equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)


def _with_nearest(unknown: Mapping[str, Any], missing: list[str]) -> list[str]:
    """The names of a file that the model does not know, the first ones with the nearest name that it wants."""
    found = []
    for i, name in enumerate(unknown):
        near = difflib.get_close_matches(name, missing, n=1) if i < 3 else []
        found.append(f"{name} (is it {near[0]}?)" if near else name)
    return found


def _values(unknown: Mapping[str, Any]) -> str:
    """The input normalisation among the weights of a file, in words."""
    found = {_role(name): value for name, value in unknown.items() if _role(name)}
    return ", ".join(f"{role} {[round(v, 4) for v in value.flatten().tolist()[:3]]}" for role, value in found.items())


def _fitting(state: Mapping[str, Any]) -> Iterator[Recognised]:
    for prefix in _prefixes(state):
        inner = _inside(state, prefix)
        with torch.device("meta"):
            for name, network in candidates(inner):
                channels = network.get_submodule("conv1").weight.shape[1]  # type: ignore[index]
                model = PixelClassifier(network, [0.0] * channels, [1.0] * channels)
                if not _fit(state, model).problem:
                    yield Recognised(name, hyperspherical=False)
                elif not _fit(state, attach_head(model, scale=1.0, head="network.fc")).problem:
                    yield Recognised(name, hyperspherical=True)


def _cure(state: Mapping[str, Any], best: _Fit) -> str:
    if best.classes:
        return f"it is for {best.classes} classes: build the network for as many (--num-classes {best.classes})"
    found = list(dict.fromkeys(_fitting(state)))
    if not found:
        return "build the network that it was saved from"
    he = " with a HypersphereHead (--scale)" if found[0].hyperspherical else ""
    return f"its keys are those of {' or '.join(one.name for one in found)}{he}: build that network"
