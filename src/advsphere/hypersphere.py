"""Hypersphere embedding (Pang et al., NeurIPS 2020, arXiv 2002.08619).

The head normalises features and weights (FN, WN) and applies the scale s, so that everything else sees ordinary logits
s * cos. The criterion applies the angular margin (AM). Training sets s and m from a `HypersphereConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from advsphere.calling import answer, eagerly, in_mode
from advsphere.classifier import find_head
from advsphere.errors import UserError
from advsphere.folding import replace_modules
from advsphere.losses import cross_entropy, is_soft, widen
from advsphere.schedule import Constant, Linear, Schedule
from advsphere.state import kept, require_shapes
from advsphere.typed import require_types, typed


class HypersphereHead(nn.Module):
    """The last layer of a network: features (B, D) -> logits s * <W_k / ||W_k||, z / ||z||>, (B, K) in [-s, s].

    It has no bias, as in the paper. It computes in at least float32, also under autocast, because bfloat16 has too few
    digits for an angle. Differs from the official code, which overwrites W by its normalised rows in every forward:
    here the gradient passes through the normalisation.

    Args:
        in_features: D.
        num_classes: K.
        scale: s, positive and finite. It is saved with the weights, as a buffer.
        normalize_features: Divide the features by their norm (FN).
        normalize_weights: Divide the rows of W by their norms (WN).

    Raises:
        UserError: If the scale is not positive and finite.
    """

    if TYPE_CHECKING:  # torch.jit.script can't read this annotation
        scale: Tensor

    @typed
    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        scale: float,
        normalize_features: bool = True,
        normalize_weights: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise UserError(f"the scale s is {scale}; it must be positive and finite (the paper's code uses 10 to 20)")
        self.in_features, self.out_features = in_features, num_classes
        self.normalize_features, self.normalize_weights = normalize_features, normalize_weights
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(num_classes, in_features), a=5**0.5))
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, input: Tensor) -> Tensor:  # as nn.Linear names it
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._logits(input)
        with torch.autocast(input.device.type, enabled=False):
            return self._logits(input)

    def _logits(self, z: Tensor) -> Tensor:
        dtype = torch.promote_types(z.dtype, torch.float32)
        z, weight = z.to(dtype), self.weight.to(dtype)
        length = 1.0
        if self.normalize_features:
            z, length = _aligned(z)
        if self.normalize_weights:
            weight, rows = _aligned(weight)
            length *= rows
        return F.linear(z, weight) * (self.scale if length == 1.0 else self.scale / length)

    def extra_repr(self) -> str:
        """The settings, as `repr` shows them."""
        return (
            f"in_features={self.in_features}, num_classes={self.out_features}, scale={float(self.scale):g}, "
            f"normalize_features={self.normalize_features}, normalize_weights={self.normalize_weights}"
        )


def _aligned(rows: Tensor) -> tuple[Tensor, float]:
    """Rows with the directions of the given ones and one length, and this length."""
    if rows.device.type == "cpu":
        return F.normalize(rows, dim=-1), 1.0
    # A GPU has a kernel for this and one for its gradient. For `F.normalize` it launches three and ten.
    d = rows.shape[-1]
    return F.rms_norm(rows, [d], eps=1e-24 / d), math.sqrt(d)


@typed
def attach_head(
    model: nn.Module,
    *,
    scale: float,
    head: str | None = None,
    normalize_features: bool = True,
    normalize_weights: bool = True,
) -> nn.Module:
    """Replace the last linear layer of a network by a `HypersphereHead`.

    Works for torchvision, timm, Hugging Face and your own networks. The new head starts with the old layer's weights,
    without its bias, so it keeps what a pretrained head has learnt. Where weights are normalised, rows of zeros are
    drawn at random and rows shorter than 0.01 get length 1, because the gradient of a row grows as it gets shorter. The
    layer's hooks move to the new head, except those that compute its weight (pruning, weight and spectral norm).

    Args:
        model: The network, changed in place.
        scale: s, positive and finite.
        head: Dotted name of the layer, if `find_head` can't find it.
        normalize_features: Divide the features by their norm (FN).
        normalize_weights: Divide the rows of W by their norms (WN).

    Returns:
        The same model.

    Raises:
        UserError: If the head can't be found or has no weights to start from, the scale is invalid, or the network does
            not compute its logits with this layer (tested on an image, if its shape can be guessed).
    """
    require_shapes(model)
    name = find_head(model, head)
    if not name:
        raise UserError(f"this {type(model).__name__} is itself its head; put it into an nn.Sequential first")
    old = dict(model.named_modules())[name]
    if isinstance(model, torch.jit.ScriptModule) or not isinstance(getattr(old, "weight", None), Tensor):
        raise UserError(
            f"the layer {name!r} of this {type(model).__name__} has no plain `weight` that a head can start from, "
            "as where it is scripted or quantised; attach the head first, then script or quantise the network"
        )
    hooks = {**old._forward_pre_hooks}
    computing = {k: hook for k, hook in hooks.items() if isinstance(hook, _COMPUTE_WEIGHT)}
    with in_mode(old, train=False), torch.no_grad():
        for hook in computing.values():
            hook(old, ())
        weight = old.weight
        with torch.random.fork_rng(devices=[]):
            new = HypersphereHead(
                weight.shape[1],
                weight.shape[0],
                scale=scale,
                normalize_features=normalize_features,
                normalize_weights=normalize_weights,
            ).to(weight)
        length = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
        if normalize_weights:
            weight = weight.where(length >= 0.01, weight / length).where(length > 0, new.weight)
        new.weight.copy_(weight)
    new.train(old.training)
    vars(new).update({k: v for k, v in vars(old).items() if k.startswith(_HOOKS)})
    before = None if weight.is_meta else _probe(model, _images_for(model), new)
    for k in computing:
        del new._forward_pre_hooks[k]
    replace_modules(model, {old: new})
    if before is not None and (wrong := _misplaced(before, _probe(model, [before.x], new))):
        replace_modules(model, {new: old})
        old._forward_pre_hooks.clear()
        old._forward_pre_hooks.update(hooks)
        raise UserError(
            f"this {type(model).__name__} {wrong} its layer {name!r}, so no head can take its place; name the layer "
            "that computes the logits, e.g. head='fc' (--model.head fc)"
        )
    return model


_COMPUTE_WEIGHT = (BasePruningMethod, WeightNorm, SpectralNorm)
"""Hooks that compute the weight of a layer before each forward."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook")
"""The beginnings of the attributes that hold the hooks of a module on what goes into and out of it."""


class _Probe(NamedTuple):
    """An image, the network's logits for it, and the outputs of its head, if it called that."""

    x: Tensor
    logits: Tensor
    outputs: list[Tensor]


def _misplaced(before: _Probe, after: _Probe | None) -> str:
    """What is wrong with a new head, in words; "" if the network computes its logits with it."""
    if after is None or not after.outputs:
        return "computes its logits without calling"
    if any(bool(torch.isin(after.logits, output).all()) for output in after.outputs):
        return ""
    # The network may use what its head returns: divide it, or average it over places.
    of_head = after.outputs[0].shape[-1] == after.logits.shape[1] and not torch.equal(before.logits, after.logits)
    return "" if of_head else f"has {after.logits.shape[1]} logits, which are not those of"


def _images_for(model: nn.Module) -> Iterator[Tensor]:
    """One image of each shape that the network may take."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)), None)
    channels = dict.fromkeys([*([first.in_channels] if isinstance(first, nn.Conv2d) else []), 3, 1])
    sides = dict.fromkeys([32, 224, 28, 64, 96, 299, 384, *range(1, 64)])
    shapes: list[tuple[int, ...]] = [(c, side, side) for side in sides for c in channels]
    if isinstance(first, nn.Linear):
        shapes = [(first.in_features, 1, 1), (first.in_features,), *shapes]
    device = next((t.device for t in [*model.parameters(), *model.buffers()]), None)
    for shape in shapes:
        yield torch.linspace(0, 1, math.prod(shape), device=device).view(1, *shape)


@torch.no_grad()
def _probe(model: nn.Module, images: Iterable[Tensor], head: nn.Module) -> _Probe | None:
    """The first image that the network takes; None if it takes none."""
    outputs, forward = list[Tensor](), head.forward

    def noted(*given: Any, **named: Any) -> Tensor:
        outputs.append(forward(*given, **named))
        return outputs[-1]

    head.forward = noted  # not by a hook, which `head.forward(...)` would not call
    try:
        with kept(model), in_mode(model, train=False), eagerly():
            for x in images:
                with suppress(Exception):  # the user's code refuses a shape in any way
                    return _Probe(x, answer(model, x), outputs)
    finally:
        del head.forward
    return None


class AngularMargin:
    """The criterion with angular margin (AM): -log softmax(s (cos - m 1_y))_y, the paper's L_CE^m.

    Called with logits s * cos, (B, K), and labels (B,) or soft labels (B, K), it returns losses (B,).

    Args:
        head: The head, or the network that has it. Its current scale converts m into logits.
        margin: m, in units of cosine. It may be changed between steps.

    Raises:
        UserError: If the network has no hypersphere head.
    """

    def __init__(self, head: nn.Module, margin: float) -> None:
        self.head: HypersphereHead = _head_of(head)
        self.margin = margin

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.shift(logits, y), y)

    def shift(self, logits: Tensor, y: Tensor) -> Tensor:
        """Subtract s * m from the logit of the true class, and s * m * p_k from that of each class for soft labels p.

        Args:
            logits: (B, K).
            y: Labels (B,), or soft labels (B, K).

        Returns:
            The shifted logits (B, K).
        """
        z = widen(logits)
        if is_soft(y):
            return z - (self.head.scale * self.margin).to(z.dtype) * y.to(z.dtype)
        return z.scatter_add(1, y[:, None], (self.head.scale * -self.margin).to(z.dtype).expand(len(y), 1))


def _head_of(network: nn.Module) -> Any:
    """The hypersphere head of a network; a scripted head counts, too."""
    require_shapes(network)
    for module in network.modules():
        if isinstance(module, HypersphereHead):
            return module
    if isinstance(getattr(network, "scale", None), Tensor):
        return network
    raise UserError(f"this {type(network).__name__} has no hypersphere head; call attach_head(network, scale=15) first")


@dataclass(frozen=True, kw_only=True)
class HypersphereConfig:
    """Hypersphere embedding as a config.

    Attributes:
        scale: s, where its schedule is 1.
        margin: m in units of cosine, where its schedule is 1.
        normalize_features: FN.
        normalize_weights: WN.
        scale_schedule: Factor of the scale over training.
        margin_schedule: Factor of the margin over training.
        margin_in_attack: Craft training examples on the margin-shifted logits too. This changes nothing for
            cross-entropy under a sign or normalised step, because the shift adds the constant s * m to `log_odds`. It
            changes TRADES, whose KL is not a function of `log_odds` alone.

    Raises:
        UserError: If the scheduled scale is not positive and finite throughout, or the margin is negative.
    """

    scale: float = 15.0
    margin: float = 0.2
    normalize_features: bool = True
    normalize_weights: bool = True
    scale_schedule: Schedule = Constant()
    margin_schedule: Schedule = Constant()
    margin_in_attack: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        if not all(0 < self.scale * self.scale_schedule(i / 100) < float("inf") for i in range(101)):
            raise UserError(
                f"s = {self.scale} times its schedule must stay positive and finite; at 0 nothing is learnt"
            )
        if not 0 <= self.margin < math.inf:
            raise UserError(f"the margin m is {self.margin}; give 0 or more, in units of cosine (the paper uses 0.2)")

    def attach(self, model: nn.Module, head: str | None = None) -> HypersphereHead:
        """Attach a head with these settings, see `attach_head`.

        Args:
            model: The network, changed in place.
            head: Dotted name of the layer to replace, if `find_head` can't find it.

        Returns:
            The new head.
        """
        name = find_head(model, head)
        attach_head(
            model,
            scale=self.scale,
            head=name,
            normalize_features=self.normalize_features,
            normalize_weights=self.normalize_weights,
        )
        new = model.get_submodule(name)
        assert isinstance(new, HypersphereHead)
        return new

    def set_progress(self, criterion: AngularMargin, progress: float) -> None:
        """Set the scale of the head and the margin of the criterion to their scheduled values.

        They depend on the progress alone, so a resumed run has the same values.

        Args:
            criterion: The criterion with its head.
            progress: Fraction of training, in [0, 1].
        """
        criterion.head.scale.fill_(self.scale * self.scale_schedule(progress))
        criterion.margin = self.margin * self.margin_schedule(progress)


def m_he(sphere: HypersphereConfig) -> HypersphereConfig:
    """m-HE, in our reading: the margin rises linearly over the first half of training and also applies while crafting.

    The paper's Table 3 has rows named m-HE, but neither the paper nor the released code defines it.

    Args:
        sphere: The settings of HE.

    Returns:
        The settings of m-HE.
    """
    return replace(sphere, margin_schedule=Linear(((0.0, 0.0), (0.5, 1.0))), margin_in_attack=True)
