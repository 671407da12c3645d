"""What a model is to us: pixels in [0, 1] -> logits. How to wrap, freeze, differentiate and take apart one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from advsphere.errors import UserError

Classifier = Callable[[Tensor], Tensor]
"""(B, C, H, W) pixels -> (B, K) logits."""

Mode = Literal["eval", "train"]


@fx.wrap
def logits_of(output: Any) -> Tensor:
    """The logits in whatever a network returned: a tensor, a tuple or list (its first entry), a mapping or object with
    "logits".

    Raises UserError where there are none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return logits_of(output["logits"])
    if hasattr(output, "logits"):
        return logits_of(output.logits)
    if isinstance(output, tuple | list) and output:
        return logits_of(output[0])
    raise UserError(
        f"the model returned a {type(output).__name__} without logits; wrap it so that it returns a (B, K) tensor"
    )


class PixelClassifier(nn.Module):
    """A network with its input normalisation inside, so that every attack works on pixels in [0, 1].

    network: takes (B, C, H, W) standardised images. mean, std: one number a channel, in pixel units of [0, 1].
    Returns (B, K) logits, also for networks that return a tuple, a mapping or a Hugging Face output.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.network((x - self.mean) / self.std))


def fooled(logits: Tensor, y: Tensor) -> Tensor:
    """Which examples are not predicted as their label: (B, K), (B,) -> (B,) bool. NaN logits count as fooled."""
    return (logits.argmax(1) != y) | logits.isnan().any(1)


def input_gradient(
    model: Classifier, x: Tensor, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """One forward and one backward to the input only: (logits (B, K), losses (B,), gradient (B, ...)), all detached."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = model(x)
        values = loss(logits, target)
        (grad,) = torch.autograd.grad(values.sum(), x)
    return logits.detach(), values.detach(), grad


@contextmanager
def frozen(
    model: nn.Module, *, dtype: torch.dtype | None = None, fold: bool = False, mode: Mode = "eval"
) -> Iterator[Classifier]:
    """The model as an attack should see it; everything is put back as it was on leaving.

    Weights take no gradient, the modules are all in `mode` (a module's own mode is restored one by one), images are
    laid out channels last, logits are float32. Only what a forward in train mode moves, the running statistics of batch
    norm above all, stays moved. dtype: autocast to it, e.g. bfloat16. fold: in eval mode, fold each batch norm into the
    convolution in front of it, where tracing finds such pairs; equal up to rounding and faster. This is the one place
    for low precision, layout and folding.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [p for p in model.parameters() if p.requires_grad]
    folded: list[tuple[str, nn.Module]] = []
    device_type = next((p.device.type for p in model.parameters()), "cpu")

    def classify(x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device_type, dtype=dtype, enabled=dtype is not None):
            logits = logits_of(model(x))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    try:
        for p in trainable:
            p.requires_grad_(False)
        model.train(mode == "train")
        if fold and mode == "eval":
            _fold(model, folded)
        yield classify
    finally:
        for name, module in folded:
            model.set_submodule(name, module)
        for p in trainable:
            p.requires_grad_(True)
        for module, training in modes:
            module.training = training


def low_precision(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device computes in it natively (AVX512-bf16, AMX, recent GPUs), else None."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    cpu = torch.cpu
    native = any(getattr(cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return torch.bfloat16 if native else None


class Split(NamedTuple):
    """A classifier taken apart. features: (B, C, H, W) -> (B, D). head: (B, D) -> (B, K). scale: the head's s, 1.0 for
    a plain one.
    """

    features: Callable[[Tensor], Tensor]
    head: nn.Module
    scale: float


def split(model: nn.Module, head: str | None = None) -> Split:
    """Features, head and scale of any network whose last layer is linear; `head` names it where that can't be told.

    `features` runs the whole model and catches what enters the head, so it is right for any architecture. Raises
    UserError as `find_head`.
    """
    name = find_head(model, head)
    module = model.get_submodule(name)

    def features(x: Tensor) -> Tensor:
        caught: list[Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            model(x)
        finally:
            handle.remove()
        if not caught:
            raise UserError(f"this {type(model).__name__} never calls {name!r}, so that is not its head; name another")
        return caught[-1]

    return Split(features, module, float(getattr(module, "scale", 1.0)))


def find_head(model: nn.Module, name: str | None = None) -> str:
    """The dotted name of the last linear layer (anything with in_features and out_features).

    name: taken as it is, once checked. Without it, timm's `get_classifier` is believed, else the last linear layer in
    order of definition is it, unless another one has as many outputs (two heads, or no head at all). Raises UserError
    that lists the candidates.
    """
    linear = {n: m for n, m in model.named_modules() if hasattr(m, "in_features") and hasattr(m, "out_features")}
    cure = "name it, e.g. head='fc' (--model.head fc); its linear layers are: " + (", ".join(linear) or "none")
    if name is not None:
        if name not in linear:
            raise UserError(f"{name!r} is no linear layer of this {type(model).__name__}; {cure}")
        return name
    for module in model.modules():
        if callable(getattr(module, "get_classifier", None)):
            named = [n for n, m in linear.items() if m is module.get_classifier()]  # type: ignore[operator]
            if named:
                return named[0]
            raise UserError(f"the classifier of this {type(module).__name__} is not a linear layer; {cure}")
    if not linear:
        raise UserError(f"this {type(model).__name__} has no linear layer to take as its head; end it in one")
    last = next(reversed(linear))
    rivals = [n for n, m in linear.items() if m.out_features == linear[last].out_features]
    if len(rivals) > 1:
        raise UserError(
            f"can't tell which of {', '.join(rivals[-3:])} is the head of this {type(model).__name__}; {cure}"
        )
    return last


# What was traced, by the names and types of its modules (a head or a norm may be replaced later), and what was found.
_PAIRS: WeakKeyDictionary[nn.Module, tuple[list[tuple[str, type]], list[tuple[str, str]]]] = WeakKeyDictionary()


def _fold(model: nn.Module, originals: list[tuple[str, nn.Module]]) -> None:
    """Swap each conv -> batch norm pair for one convolution; notes the (name, module) pairs to put back as it goes."""
    structure = [(name, type(module)) for name, module in model.named_modules()]
    if model not in _PAIRS or _PAIRS[model][0] != structure:
        _PAIRS[model] = structure, _conv_bn_pairs(model)
    for conv_name, bn_name in _PAIRS[model][1]:
        conv, bn = model.get_submodule(conv_name), model.get_submodule(bn_name)
        fused = fuse_conv_bn_eval(conv, bn)  # type: ignore[type-var,arg-type]
        originals += [(conv_name, conv), (bn_name, bn)]
        model.set_submodule(conv_name, fused)
        model.set_submodule(bn_name, nn.Identity())


class _LeafTracer(fx.Tracer):
    """Steps into containers only: a module without children is one node, whatever it does inside."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None


def _conv_bn_pairs(model: nn.Module) -> list[tuple[str, str]]:
    try:
        graph = _LeafTracer().trace(model)
    except Exception:  # tracing runs the user's code on proxies and may fail in any way; folding is only about speed
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
