"""Records of everything that decides a result, as JSON-able data: attacks, losses, models and images.

Parts of advsphere are recorded by name and arguments. For user-defined functions and classes the module and a hash of
its source file are recorded too, so that two with the same name can't be confused. A record that can't be complete has
the key "unknown"; results of an earlier evaluation are then not reused.
"""

from __future__ import annotations

import enum
import hashlib
import inspect
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advsphere.calling import NetworkError
from advsphere.classifier import Classifier, input_gradient
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.files import canonical, differences, tensor_checksum
from advsphere.losses import log_odds
from advsphere.memory import with_frozen
from advsphere.named import source_checksum
from advsphere.rng import Rng

_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "numpy")
"""Objects of these libraries and of Python itself are recorded by name."""

_ENTRIES = ("name", "defined_in", "source", "kind", "self", "unknown")
"""The entries of a record of `describe` that are not arguments."""

_DEEPEST = 20
"""The largest depth of nested arguments in a record."""

PROBE_IMAGES = 4
"""A model's answers are recorded on this many images of random pixels, and as many of random quarters."""

TOLERANCE = 1e-3
"""The allowed difference of two answers, relative to the range of all logits; machines differ by about 1e-5."""


def describe(value: object, *, deepest: int = _DEEPEST) -> Any:
    """Record an attack, a loss or any argument of one as JSON-able data. Different objects have different records.

    A partial is recorded by its function's name and every parameter, defaults included. A function returned by another
    function is recorded by the outer function's name and the captured values: `at_scale(margin, 0.1)` is {"name":
    "at_scale", "factor": 0.1, "loss": "margin"}. A tensor is recorded by its shape and checksum, a module by its type
    and the checksum of its state. User-defined objects also have "defined_in" (their module) and "source" (the SHA-256
    of its file, or its package's version). "unknown" marks an object that can't be recorded, such as a lambda.
    """
    again = partial(describe, deepest=deepest - 1)
    if deepest < 0:
        return {"name": type(value).__name__, "unknown": "it is nested too deep, or holds itself"}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [again(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): again(v) for k, v in value.items()}
    if isinstance(value, torch.dtype | torch.device | Path | enum.Enum):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        return again(torch.as_tensor(value))
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "checksum": tensor_checksum({"": value})}
    if isinstance(value, nn.Module):
        record = model_record(value)
        return {"module": record.pop("type"), **record}
    if isinstance(value, partial):
        return _of_partial(value, again)
    if isinstance(value, type):
        return {"name": value.__qualname__} | _origin(value)
    if inspect.isroutine(value):
        return _of_function(value, again)
    origin = _origin(type(value))
    if is_dataclass(value):
        given = {f.name: again(getattr(value, f.name)) for f in fields(value)}
        return given | ({"name": type(value).__qualname__} | origin if origin else {})
    if isinstance(value, ModuleType) or not hasattr(value, "__dict__"):
        return {"name": type(value).__qualname__, "unknown": "it is neither data nor a named function"}
    return _with(vars(value), {"name": type(value).__qualname__} | origin, again)


def unknowns(record: Any) -> Iterator[str]:
    """The unknown entries of a record, each with the reason."""
    if isinstance(record, Mapping):
        if isinstance(record.get("unknown"), str):
            yield f"{record.get('name')}: {record['unknown']}"
        for value in record.values():
            yield from unknowns(value)
    elif isinstance(record, list):
        for value in record:
            yield from unknowns(value)


def model_checksum(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of a model's state, on any device: parameters, saved buffers, packed
    weights of quantised layers, and extra state.
    """
    tensors: dict[str, Tensor] = {}
    words: list[str] = []
    for name, value in model.state_dict().items():
        _flatten(name, value, tensors, words)
    return tensor_checksum(tensors, "\n".join(words))


def model_record(model: nn.Module) -> dict[str, Any]:
    """A model's type, the checksum of its state, and the source of every user-defined class in it."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    sources = {
        f"{found['defined_in']}.{cls.__qualname__}": found for cls in classes if "source" in (found := _origin(cls))
    }
    record: dict[str, Any] = {"type": type(model).__name__, "checksum": model_checksum(model)}
    if sources:
        record["classes"] = {name: sources[name]["source"] for name in sorted(sources)}
    missing = sorted(cls.__qualname__ for cls in classes if "unknown" in _origin(cls))
    return record | ({"name": ", ".join(missing), "unknown": "no source file of it is found"} if missing else {})


def model_answers(model: nn.Module, shape: Sequence[int]) -> dict[str, Any]:
    """A model's logits on a few fixed images of shape (C, H, W), and the norms of its gradients there (None without
    gradients). They distinguish models with equal weights but different code or plain attributes. They vary slightly
    between processors, so `answer_alike` compares them with a tolerance and no checksum includes them.
    """
    device = next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    rng = Rng(0, torch.arange(PROBE_IMAGES))
    smooth = nn.functional.interpolate(rng.uniform((shape[0], 2, 2), "quarters"), size=tuple(shape[1:]))
    x = torch.cat([rng.uniform(shape, "pixels"), smooth]).to(device)

    def answers(classify: Classifier) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            logits = classify(x)
        try:
            return logits, input_gradient(classify, x, logits.argmax(1), log_odds)[2].flatten(1).norm(dim=1)
        except NetworkError:
            return logits, None

    logits, slopes = with_frozen(model, answers)
    rounded = [[_rounded(v) for v in row] for row in logits.tolist()]
    return {"logits": rounded, "slopes": None if slopes is None else [_rounded(v) for v in slopes.tolist()]}


def answer_alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two results of `model_answers` agree, up to differences between processors."""
    a, b = (np.nan_to_num(np.array(one["logits"], dtype=float)) for one in (first, second))
    if a.shape != b.shape or (first["slopes"] is None) != (second["slopes"] is None):
        return False
    if not (np.abs(a - b) <= TOLERANCE * np.ptp(a)).all():
        return False
    if first["slopes"] is None:
        return True
    # Gradients jump where a ReLU switches, so a few may differ by more than rounding.
    u, v = (np.nan_to_num(np.array(one["slopes"], dtype=float)) for one in (first, second))
    return bool((np.abs(u - v) <= 0.05 * np.maximum(u, v)).mean() > 0.5)


class AnotherModelError(UserError):
    """Raised if a ledger holds the same evaluation of another model, or parts that can't be recorded."""


def refuse_another(
    place: Path | None,
    held: Mapping[str, Any],
    given: Mapping[str, Any],
    held_answers: Mapping[str, Any] | None,
    answers: Mapping[str, Any] | None,
) -> None:
    """Raise UserError with the differences if a ledger holds another evaluation than the requested one, and
    AnotherModelError if only the model differs.
    """
    changed = [str(change) for change in differences(held, json.loads(canonical(given))) if change.path != "anew"]
    if held.get("anew") != given.get("anew"):
        changed.append("the model or its attacks have parts that can't be recorded")
    if held_answers is not None and answers is not None and not answer_alike(held_answers, answers):
        changed.append("the model gives other outputs on the same images")
    if list(held["attacks"]) != list(given["attacks"]):
        changed = changed or ["the attacks are in another order"]
    if not changed:
        return
    # The attacks' settings follow from a named suite and the model. Their lines are long, so they come last.
    named = given.get("suite", {}).get("name", "own") != "own"
    own = [line for line in changed if not (named and line.startswith("attacks"))]
    only_model = bool(own) and all(line.startswith(("model.", "the model")) for line in own)
    changed.sort(key=lambda line: line.startswith("attacks"))
    raise (AnotherModelError if only_model else UserError)(
        f"{place} holds another evaluation: {'; '.join(changed[:4])}. "
        "Give another file, or delete this one to start again"
    )


def data_checksum(images: Images, batch_size: int) -> str:
    """SHA-256 over the shape, the float32 pixels and the labels of all images, in order, `batch_size` at a time."""
    digest = hashlib.sha256(f"{len(images)} {images.shape}".encode())
    for index in torch.arange(len(images)).split(batch_size):
        digest.update(images.batch(index)[0].cpu().contiguous().numpy().tobytes())
    digest.update(images.labels.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def home(thing: Any) -> str:
    """The module that defines a function or class; for a script, its file's name even while it runs as `__main__`."""
    name = str(getattr(thing, "__globals__", {}).get("__name__") or getattr(thing, "__module__", None) or "builtins")
    if name != "__main__":
        return name
    main = sys.modules["__main__"]
    if main.__spec__ is not None:
        return main.__spec__.name
    return Path(getattr(main, "__file__", None) or "__main__").stem


def _origin(thing: Any) -> dict[str, str]:
    """The module of a function or class and, if user-defined, the hash of its source file; empty for advsphere."""
    module = home(thing)
    package = module.partition(".")[0]
    if package == "advsphere":
        return {}
    if package in _LIBRARIES or package in sys.stdlib_module_names:
        return {"defined_in": module}
    if (source := source_checksum(thing)) is not None:
        return {"defined_in": module, "source": source}
    try:
        return {"defined_in": module, "source": f"version {version(package)}"}
    except PackageNotFoundError:
        return {"defined_in": module, "unknown": "no source file of it is found"}


def _of_partial(value: partial[Any], again: partial[Any]) -> dict[str, Any]:
    bound = inspect.signature(value.func).bind_partial(*value.args, **value.keywords)
    bound.apply_defaults()
    made = again(value.func)
    return _with(bound.arguments, made if isinstance(made, dict) and "defined_in" in made else {"name": made}, again)


def _of_function(value: Any, again: partial[Any]) -> Any:
    origin = _origin(value)
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None and set(origin) == {"defined_in"}:  # a library's decorator, such as torch.no_grad()
        return again(wrapped)
    maker, _, made = getattr(value, "__qualname__", "").partition(".<locals>")
    record: dict[str, Any] = {"name": maker} | origin
    if "<lambda>" in maker + made:
        record |= {"name": value.__qualname__, "unknown": "a lambda has no name; write a function"}
    if origin and (kind := getattr(value, "kind", None)) is not None:
        record["kind"] = kind
    if inspect.ismethod(value):
        record["self"] = again(value.__self__)
        value = value.__func__
    given = dict(sorted(inspect.getclosurevars(value).nonlocals.items())) if inspect.isfunction(value) else {}
    if origin and inspect.isfunction(value):
        given |= {k: p.default for k, p in inspect.signature(value).parameters.items() if p.default is not p.empty}
    return _with(given, record, again) if origin or made or len(record) > 1 else maker


def _with(given: Mapping[str, Any], record: Mapping[str, Any], again: partial[Any]) -> dict[str, Any]:
    """A record with its arguments. An argument whose name is that of another entry gets a "=" after it."""
    arguments = {f"{k}=" if k in _ENTRIES else k: again(v) for k, v in given.items() if k != "rng"}
    return {**record, **arguments}  # without rng, which the evaluation passes


def _flatten(name: str, value: Any, tensors: dict[str, Tensor], words: list[str]) -> None:
    if isinstance(value, Tensor) and value.is_quantized:
        tensors |= {name: value.int_repr(), f"{name}.values": value.dequantize()}
    elif isinstance(value, Tensor):
        tensors[name] = value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _flatten(f"{name}.{key}", part, tensors, words)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for i, part in enumerate(value):
            _flatten(f"{name}.{i}", part, tensors, words)
    elif " object at 0x" in repr(value):  # an address changes with every run
        words.append(f"{name}: {type(value).__qualname__}")
    else:
        words.append(f"{name}: {value!r}")


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
