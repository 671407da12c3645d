"""Wrap, freeze, differentiate and split classifiers, which map pixels in [0, 1] to logits."""

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
    """Extract the logits from the output of a network.

    Args:
        output: A tensor, a tuple or list (its first entry counts), or a mapping or object with "logits".

    Returns:
        The logits (B, K).

    Raises:
        UserError: If the output has no logits.
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
    """A network with its input normalisation inside, so that attacks work on pixels in [0, 1].

    It returns logits (B, K) also for networks that return a tuple, a mapping or a Hugging Face output.

    Args:
        network: Takes standardised images (B, C, H, W).
        mean: Mean of each channel, in pixel units of [0, 1].
        std: Standard deviation of each channel, in pixel units of [0, 1].
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
    """Which examples are not predicted as their label.

    Args:
        logits: (B, K).
        y: Labels (B,).

    Returns:
        (B,) bool. NaN logits count as fooled.
    """
    return (logits.argmax(1) != y) | logits.isnan().any(1)


def input_gradient(
    model: Classifier, x: Tensor, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate a loss with respect to the images: one forward, and one backward to the input only.

    Args:
        model: Maps images to logits (B, K).
        x: Images (B, ...).
        target: Second argument of the loss.
        loss: (logits, target) -> losses (B,).

    Returns:
        Logits (B, K), losses (B,) and gradients (B, ...), all detached.
    """
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
    """Prepare a model for attacks, and restore it afterwards.

    Inside the block weights take no gradient, images are laid out channels last and logits are float32. No other place
    sets low precision, memory layout and folding. Every module's own mode is restored. Running statistics that a
    forward pass updates in train mode stay updated.

    Args:
        model: The model.
        dtype: Autocast to this type, such as bfloat16.
        fold: In eval mode, fold each batch norm into the convolution before it, where tracing finds such pairs. The
            logits are equal up to rounding, and computed faster.
        mode: The mode of all modules.

    Yields:
        The classifier.
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
    """The low precision in which a device computes natively.

    Args:
        device: The device.

    Returns:
        bfloat16 if the device supports it natively (AVX512-bf16, AMX, recent GPUs), else None.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    cpu = torch.cpu
    native = any(getattr(cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return torch.bfloat16 if native else None


@contextmanager
def head_inputs(head: nn.Module) -> Iterator[Callable[[], Tensor]]:
    """Record the input of a layer while the network runs.

    Args:
        head: A layer of the network.

    Yields:
        A function that returns the input of the layer in the last forward. It raises UserError if there was none.
    """
    seen: list[Tensor] = []

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[:] = [given[0]]

    def latest() -> Tensor:
        if not seen:
            raise UserError(
                f"the model never runs the {type(head).__name__} that was given as its head; "
                "take split(network).head of the same network, or name another layer: split(network, head='fc')"
            )
        return seen[0]

    handle = head.register_forward_pre_hook(note)
    try:
        yield latest
    finally:
        handle.remove()


class Split(NamedTuple):
    """A classifier split into features and head.

    Attributes:
        features: Maps images (B, C, H, W) to features (B, D).
        head: Maps features (B, D) to logits (B, K).
        scale: The scale s of the head, 1.0 for a plain one.
    """

    features: Callable[[Tensor], Tensor]
    head: nn.Module
    scale: float


def split(model: nn.Module, head: str | None = None) -> Split:
    """Split any network whose last layer is linear into features, head and scale.

    Args:
        model: The network, of any architecture: `features` runs all of it and returns the input of the head.
        head: Name of the head, if `find_head` can't find it.

    Returns:
        The parts.

    Raises:
        UserError: As `find_head`.
    """
    module = model.get_submodule(find_head(model, head))

    def features(x: Tensor) -> Tensor:
        with head_inputs(module) as latest:
            model(x)
            return latest()

    return Split(features, module, float(getattr(module, "scale", 1.0)))


def find_head(model: nn.Module, name: str | None = None) -> str:
    """Find the last linear layer of a network. Any module with in_features and out_features counts as linear.

    timm's `get_classifier` decides if the network has it. Otherwise it is the last linear layer in order of definition,
    unless another one has as many outputs (two heads, or no head at all).

    Args:
        model: The network.
        name: The layer's dotted name, if known. It is only checked.

    Returns:
        The dotted name.

    Raises:
        UserError: If the head is ambiguous or missing, or `name` is no linear layer. The message lists the linear
            layers.
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
        raise UserError(
            f"this {type(model).__name__} has no linear layer to take as its head; end it with an nn.Linear"
        )
    last = next(reversed(linear))
    rivals = [n for n, m in linear.items() if m.out_features == linear[last].out_features]
    if len(rivals) > 1:
        raise UserError(
            f"can't tell which of {', '.join(rivals[-3:])} is the head of this {type(model).__name__}; {cure}"
        )
    return last


# For each traced model: the names and types of its modules (one may be replaced later), and the pairs found.
_PAIRS: WeakKeyDictionary[nn.Module, tuple[list[tuple[str, type]], list[tuple[str, str]]]] = WeakKeyDictionary()


def _fold(model: nn.Module, originals: list[tuple[str, nn.Module]]) -> None:
    """Replace each conv -> batch norm pair by one convolution, and note the modules to restore in `originals`."""
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
    """Traces into containers only: a module without children is one node, whatever it does inside."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None


def _conv_bn_pairs(model: nn.Module) -> list[tuple[str, str]]:
    try:
        graph = _LeafTracer().trace(model)
    except Exception:  # tracing runs the user's code on proxies and may fail in any way, and folding only saves time
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
