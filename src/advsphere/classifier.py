"""Wrap, freeze, differentiate and split classifiers, which map pixels in [0, 1] to logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from advsphere import folding
from advsphere.calling import NetworkError, agree, answer, eagerly, in_mode, logits_of
from advsphere.casting import CastWeights
from advsphere.errors import UserError, first_line, out_of_memory
from advsphere.folding import replace_modules
from advsphere.state import kept, require_shapes

Classifier = Callable[[Tensor], Tensor]
"""(B, C, H, W) pixels -> (B, K) logits."""

Mode = Literal["eval", "train"]


fx.wrap("logits_of")  # tracing must not look into what a network returns


class PixelClassifier(nn.Module):
    """A network with its input normalisation inside, so that attacks work on pixels in [0, 1].

    It returns logits (B, K) also for networks that return a tuple, a mapping or a Hugging Face output.

    Args:
        network: Takes standardised images (B, C, H, W).
        mean: Mean of each channel, in pixel units of [0, 1].
        std: Standard deviation of each channel, in pixel units of [0, 1].
    """

    copies_images = True
    if TYPE_CHECKING:  # torch.jit.script can't read these annotations
        mean: Tensor
        std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self.network(x)
        return logits_of(self.network(x))


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
    model: Classifier, x: Tensor, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor], *, needed: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate a loss with respect to the images: one forward, and one backward to the input only.

    Args:
        model: Maps images to logits (B, K).
        x: Images (B, ...).
        target: Second argument of the loss.
        loss: (logits, target) -> losses (B,).
        needed: Whether there is a backward. Without it the gradients are 0, for the last point of an attack.

    Returns:
        Logits (B, K), losses (B,) and gradients (B, ...), all detached.

    Raises:
        UserError: If the loss is no function.
    """
    if not callable(loss):
        raise UserError(f"loss is {loss!r}; give a function (logits, target) -> (B,), such as advsphere.losses.margin")
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = model(x)
        values = loss(logits, target)
        grad = gradient(values, x) if needed else torch.zeros_like(x)
    return logits.detach(), values.detach(), grad


def gradient(values: Tensor, x: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Differentiate a sum with respect to the images.

    Args:
        values: What is summed, of any shape.
        x: The images.
        retain_graph: Keep the graph for another call.

    Returns:
        The gradient, same shape as `x`.

    Raises:
        NetworkError: If the network can't be differentiated.
    """
    try:
        return torch.autograd.grad(values, x, torch.ones_like(values), retain_graph=retain_graph)[0]
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise NetworkError(
            f"no gradient reaches the images ({first_line(error)}): use an attack that needs none, such as "
            "attacks.square (--suite black-box), or make the model differentiable (no argmax, rounding, detach or "
            "no_grad, no quantised layer inside)"
        ) from error


@contextmanager
def frozen(
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    fold: bool = False,
    mode: Mode = "eval",
    check: bool = True,
) -> Iterator[Classifier]:
    """Prepare a model for attacks, and restore it afterwards.

    Inside the block weights take no gradient. The network gets a copy of the images, channels last if it accepts that
    layout, and logits have the type of the images, at least float32. No other place sets low precision, memory layout
    and folding. Every module's own mode is restored. Running statistics that a forward pass updates in train mode stay
    updated.

    Args:
        model: The model.
        dtype: Autocast to this type, such as bfloat16.
        fold: In eval mode, fold each batch norm into the convolution before it, where tracing finds such pairs. The
            logits are equal up to rounding, and computed faster. The first batch verifies this, and a network whose
            logits change is not folded.
        mode: The mode of all modules.
        check: Without it, folding is not verified, for callers that ask `folds` first.

    Yields:
        The classifier.
    """
    require_shapes(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    folded: dict[nn.Module, nn.Module] = {}
    device_type = next((p.device.type for p in model.parameters()), "cpu")

    def classify(x: Tensor) -> Tensor:
        nonlocal check
        if folded and check:
            check = False
            _keep_if_exact(model, folded, x[:2].detach(), dtype)
        with torch.autocast(device_type, dtype=dtype, enabled=dtype is not None), cast:
            logits = answer(model, x, torch.channels_last)
        return logits.to(torch.promote_types(x.dtype, torch.float32))

    try:
        for p in trainable:
            p.requires_grad_(False)
        with in_mode(model, train=mode == "train"):
            if fold and mode == "eval":
                folding.fold(model, folded)
            cast = CastWeights(model, dtype)
            yield classify
    finally:
        replace_modules(model, {new: old for old, new in folded.items()})
        for p in trainable:
            p.requires_grad_(True)


def folds(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether batch norms can be folded into convolutions without changing the logits, see `frozen`.

    Args:
        model: The model.
        x: Images (B, C, H, W), of which the first two are tried.
        dtype: The precision to compute in.

    Returns:
        True if there is something to fold, and the logits stay the same up to rounding.
    """
    before = {*model.modules()}
    with torch.no_grad(), frozen(model, dtype=dtype, fold=True) as classify:
        if not before.issuperset(model.modules()):
            classify(x[:2])
        return not before.issuperset(model.modules())


@torch.no_grad()
def _keep_if_exact(model: nn.Module, folded: dict[nn.Module, nn.Module], x: Tensor, dtype: torch.dtype | None) -> None:
    """Undo the folding, and empty `folded`, if it changes the logits by more than rounding."""

    def logits() -> Tensor:
        # `forward` skips hooks of the model itself, which may count the forwards of a search.
        with kept(model), eagerly(), torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
            try:
                return logits_of(model.forward(x.clone(memory_format=torch.contiguous_format)))
            except Exception:  # the user's code may access the layers that were replaced; `answer` says what fails
                return torch.full((), torch.nan, device=x.device)

    after = logits()
    replace_modules(model, {new: old for old, new in folded.items()})
    before = logits()
    if agree(after, before, exact=dtype is None):
        replace_modules(model, folded)
    else:
        folded.clear()


@contextmanager
def head_inputs(head: nn.Module) -> Iterator[Callable[[], Tensor]]:
    """Record the input of a layer while the network runs.

    Args:
        head: A layer of the network.

    Yields:
        A function that returns the input of the layer in the last forward. It raises UserError if there was none.
    """
    seen: list[Tensor] = []

    def note(_: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen[:] = [*given, *named.values()][:1]

    def latest() -> Tensor:
        if not seen:
            raise UserError(
                f"the model never runs the {type(head).__name__} that was given as its head; "
                "take split(network).head of the same network, or name another layer: split(network, head='fc')"
            )
        return seen[0]

    if isinstance(head, torch.jit.ScriptModule):
        raise UserError(
            "a scripted network does not show the inputs of its layers; use the network from before torch.jit.script, "
            "or attacks that need no features"
        )
    handle = head.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with eagerly():
            yield latest
    finally:
        handle.remove()


class Split(NamedTuple):
    """A classifier split into features and head.

    Attributes:
        features: Maps images (B, C, H, W) to features (B, D).
        head: Maps features (B, D) to logits (B, K).
        scale: The scale s of the head, 1.0 for a plain one and one with a scale for each class.
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
    module = dict(model.named_modules())[find_head(model, head)]  # scripted modules have no get_submodule

    def features(x: Tensor) -> Tensor:
        with head_inputs(module) as latest:
            answer(model, x)
            return latest()

    scale = getattr(module, "scale", 1.0)
    one = isinstance(scale, int | float) or (isinstance(scale, Tensor) and scale.numel() == 1)
    return Split(features, module, float(scale) if one else 1.0)


def find_head(model: nn.Module, name: str | None = None) -> str:
    """Find the last linear layer of a network: a module with in_features, out_features and a weight.

    timm's `get_classifier` decides if the network has it. Otherwise it is the last linear layer in order of definition,
    unless another one has as many outputs (two heads, or no head at all).

    Args:
        model: The network.
        name: The layer's dotted name, if known. It is only checked, and may have weights of another name.

    Returns:
        The dotted name.

    Raises:
        UserError: If the head is ambiguous or missing, or `name` is no linear layer. The message lists the linear
            layers.
    """
    shaped = {n: m for n, m in model.named_modules() if hasattr(m, "in_features") and hasattr(m, "out_features")}
    linear = {n: m for n, m in shaped.items() if hasattr(m, "weight")}
    cure = "name it, e.g. head='fc' (--model.head fc); its linear layers are: " + (", ".join(linear) or "none")
    if name is not None:
        if name not in shaped:
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
            f"this {type(model).__name__} has no linear layer to take as its head; end it with an nn.Linear, and give "
            "the network from before it was traced, frozen or exported"
        )
    last = next(reversed(linear))
    rivals = [n for n, m in linear.items() if m.out_features == linear[last].out_features]
    if len(rivals) > 1:
        raise UserError(
            f"can't tell which of {', '.join(rivals[-3:])} is the head of this {type(model).__name__}; {cure}"
        )
    return last
