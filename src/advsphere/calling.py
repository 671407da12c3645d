"""Call networks of any kind: whatever they return, and whichever memory layout, type and mode they take."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from advsphere.errors import UserError, out_of_memory
from advsphere.state import kept, require_shapes


class NetworkError(UserError, RuntimeError):
    """A network can't be called, or differentiated, as it has to be."""


@fx.wrap
def logits_of(output: Any) -> Tensor:
    """Extract the logits from the output of a network.

    Args:
        output: A tensor, a mapping or object with "logits", or a tuple or list, of which the first entry counts that is
            neither None nor a loss.

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
    if isinstance(output, tuple | list):
        for entry in output:
            if entry is not None and not (isinstance(entry, Tensor) and entry.dim() == 0):
                return logits_of(entry)
    held = f" (it has {', '.join(map(str, output))})" if isinstance(output, Mapping) and output else ""
    raise UserError(
        f"the model returned a {type(output).__name__} without logits{held}; wrap it so that it returns a (B, K) tensor"
    )


class _Way(NamedTuple):
    """The type and memory layout in which a network gets its images."""

    dtype: torch.dtype
    layout: torch.memory_format

    def copied(self, x: Tensor, model: nn.Module) -> Tensor:
        """The images for the network, which may write into them."""
        if x.dtype != self.dtype:
            return x.to(self.dtype, memory_format=self.layout)
        owned = getattr(model, "copies_images", False) and x.is_contiguous(memory_format=self.layout)
        return x if owned else x.clone(memory_format=self.layout)


_WAYS: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], _Way]] = WeakKeyDictionary()


def answer(model: nn.Module, x: Tensor, preferred: torch.memory_format = torch.preserve_format) -> Tensor:
    """Compute the logits for a copy of the images, which the network may overwrite.

    A network gets images channels last only if it gives the same logits for them, tried once on two images: many
    flatten by `view`, or read the memory. A network of another type, such as float64, gets the images in its own type
    if it does not take them as they are.

    Args:
        model: The network. If it has an attribute `copies_images` that is true, it makes the copy itself.
        x: Images (B, C, H, W).
        preferred: The memory layout, if the network takes images in it; by default that of the images.

    Returns:
        The logits (B, K).

    Raises:
        UserError: If the network can't take the images, has lazy layers without a shape yet, or returns no logits
            (B, K) with K > 1.
    """
    preferred = _layout(x) if preferred == torch.preserve_format else preferred
    last = x.dim() == 4 and preferred == torch.channels_last
    ways, key = _WAYS.setdefault(model, {}), (x.shape[1:], x.dtype, last, getattr(model, "training", False))
    way = ways.get(key)
    if way is None:
        way = ways[key] = _tried_ways(model, x[:2].detach(), last)
    try:
        logits = logits_of(model(way.copied(x, model)))
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
        if out_of_memory(error):
            raise
        if way.layout == torch.channels_last:  # it may flatten by `view` in larger batches only
            ways[key] = way._replace(layout=torch.contiguous_format)
            return answer(model, x, preferred)
        again = _tried_ways(model, x[:2].detach(), last)
        if again.dtype != way.dtype:  # it was tried under autocast, or without
            ways[key] = again
            return answer(model, x, preferred)
        cure = "give images and batches that it was made for (an exported one takes any batch with dynamic_shapes)"
        if x.dim() == 4 and _tried(model, x[:2].detach().permute(0, 2, 3, 1), _Way(x.dtype, torch.contiguous_format)):
            cure = "it takes them with the channels last: wrap it in a module that calls it with x.permute(0, 2, 3, 1)"
        raise NetworkError(
            f"the model can't take {len(x)} images of shape {tuple(x.shape[1:])}: {_first_line(error)}; {cure}"
        ) from error
    if not logits.is_floating_point():
        raise UserError(f"the model returns {logits.dtype}, perhaps class numbers; return the logits, before argmax")
    if logits.dim() == 1 and len(x) == 1:  # squeezed
        logits = logits[None]
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise UserError(
            f"the model returns {tuple(logits.shape)}, but logits are (B, K) with K >= 2; "
            "give a binary classifier two outputs, such as 0 and its logit"
        )
    return logits


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(": ")


def _layout(x: Tensor) -> torch.memory_format:
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _tried_ways(model: nn.Module, x: Tensor, last: bool) -> _Way:
    """The way in which a network takes two images: contiguous and as they are, unless another one is as good."""
    require_shapes(model)
    plain = _Way(x.dtype, torch.contiguous_format)
    own = next((p.dtype for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()), x.dtype)
    if not len(x) or not (last or own != x.dtype):
        return plain
    reference = _tried(model, x, plain)
    if reference is None and own != x.dtype:
        other = _Way(own, torch.contiguous_format)
        reference = _tried(model, x, other)
        # Autocast may have cast the weights: their type then tells nothing of the images that the network takes.
        plain = plain if reference is None and torch.is_autocast_enabled(x.device.type) else other
    way = plain._replace(layout=torch.channels_last)
    if reference is None or not last or (found := _tried(model, x, way)) is None:
        return plain
    exact = plain.dtype.itemsize > 2 and not torch.is_autocast_enabled(x.device.type)
    alike = agree(found[0], reference[0], exact=exact) and found[1] >= reference[1]
    return way if alike else plain


def _tried(model: nn.Module, x: Tensor, way: _Way) -> tuple[Tensor, bool] | None:
    """The logits, and whether a gradient reaches the images; None if the network does not take them this way."""
    # Also inside a checkpoint. Tensors that an operation saves of its own output would keep its graph alive for ever.
    own_graph = torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda t: t)
    with kept(model), eagerly(), torch.enable_grad(), own_graph:
        try:
            leaf = way.copied(x, model).detach().clone().requires_grad_(True)
            # `forward` skips hooks of the model itself, which may count the forwards of a search.
            logits = logits_of(model.forward(way.copied(leaf, model)))
        except Exception:  # the user's code may fail in any way
            return None
        try:
            return logits.detach(), bool(torch.autograd.grad(logits.sum(), leaf)[0].isfinite().all())
        except Exception:  # likewise in its backward pass
            return logits.detach(), False


def agree(found: Tensor, expected: Tensor, *, exact: bool) -> bool:
    """Whether logits are the same up to rounding.

    Args:
        found: The logits (B, K).
        expected: What they should be, (B, K).
        exact: They were computed in float32 or wider, not in lower precision.

    Returns:
        True if they differ by at most 1 % of the largest one, or 10 % in lower precision.
    """
    if found.shape != expected.shape:
        return False
    return float((found - expected).abs().max()) <= (0.01 if exact else 0.1) * float(expected.abs().max())


class Answering(nn.Module):
    """A module that returns the logits of a network with any type of output, see `answer`.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return answer(self.network, x)


def eagerly() -> AbstractContextManager[Any]:
    """Run compiled networks eagerly, so that hooks are called and a small batch triggers no compilation.

    Returns:
        A context in which they run so.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def in_mode(model: nn.Module, *, train: bool) -> Iterator[None]:
    """Put a network into train or eval mode, and restore the mode of each of its modules.

    Args:
        model: The network. One that was exported or frozen has only the mode that it was exported in, and keeps it.
        train: Train mode instead of eval mode.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    try:
        switch_mode(model, train=train)
        yield
    finally:
        for module, training in modes:
            module.training = training


def switch_mode(model: nn.Module, *, train: bool) -> bool:
    """Put a network into train or eval mode.

    Args:
        model: The network.
        train: Train mode instead of eval mode.

    Returns:
        Whether it has this mode now. Networks that were exported or frozen have only one mode.
    """
    if not hasattr(model, "training"):  # frozen by torch.jit
        return not train
    try:
        model.train(train)
    except NotImplementedError:  # torch.export
        model.training = train
        for child in model.children():
            switch_mode(child, train=train)
        return not train
    return True
