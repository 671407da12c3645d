"""Hypersphere embedding (Pang et al., NeurIPS 2020, arXiv 2002.08619).

The head normalises features and weights (FN, WN) and applies the scale s, so that everything else sees ordinary logits
s * cos. The criterion applies the angular margin (AM). Training sets s and m from a `HypersphereConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.classifier import answer, eagerly, find_head
from advsphere.errors import UserError
from advsphere.folding import replace_modules
from advsphere.losses import cross_entropy, is_soft, widen
from advsphere.schedule import Constant, Linear, Schedule


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

    scale: Tensor

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

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            dtype = torch.promote_types(z.dtype, torch.float32)
            z, weight = z.to(dtype), self.weight.to(dtype)
            length = 1.0
            if self.normalize_features:
                z, length = _aligned(z)
            if self.normalize_weights:
                weight, rows = _aligned(weight)
                length *= rows
            return F.linear(z, weight) * (self.scale if length == 1 else self.scale / length)

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
    return F.rms_norm(rows, (d,), eps=1e-24 / d), d**0.5


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
    drawn at random and rows shorter than 0.01 get length 1, because the gradient of a row grows as it gets shorter.

    Args:
        model: The network, changed in place.
        scale: s, positive and finite.
        head: Dotted name of the layer, if `find_head` can't find it.
        normalize_features: Divide the features by their norm (FN).
        normalize_weights: Divide the rows of W by their norms (WN).

    Returns:
        The same model.

    Raises:
        UserError: If the head can't be found, the scale is invalid, or the network does not compute its logits with
            this layer (tested on an image, if its shape can be guessed).
    """
    name = find_head(model, head)
    if not name:
        raise UserError(f"this {type(model).__name__} is itself its head; put it into an nn.Sequential first")
    old = model.get_submodule(name)
    weight = old.weight
    assert isinstance(weight, Tensor)
    with torch.random.fork_rng(devices=[]):
        new = HypersphereHead(
            weight.shape[1],
            weight.shape[0],
            scale=scale,
            normalize_features=normalize_features,
            normalize_weights=normalize_weights,
        ).to(weight)
    with torch.no_grad():
        length = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
        if normalize_weights:
            weight = weight.where(length >= 0.01, weight / length).where(length > 0, new.weight)
        new.weight.copy_(weight)
    new.train(old.training)
    probed = None if weight.is_meta else _probe(model, _images_for(model))
    replace_modules(model, {old: new})
    if probed is not None and ((after := _probe(model, [probed[0]])) is None or torch.equal(probed[1], after[1])):
        replace_modules(model, {new: old})
        raise UserError(
            f"this {type(model).__name__} computes its logits without calling its layer {name!r}, so no head can take "
            "its place; name the layer that its forward calls, e.g. head='fc' (--model.head fc)"
        )
    return model


def _images_for(model: nn.Module) -> Iterator[Tensor]:
    """One image of each shape that the network may take."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)), None)
    channels = [first.in_channels] if isinstance(first, nn.Conv2d) else [3, 1]
    shapes = [(c, side, side) for side in (32, 224, 28, 64, 96, 299, 384) for c in channels]
    if isinstance(first, nn.Linear):
        shapes.insert(0, (first.in_features, 1, 1))
    like = next(model.parameters())
    for shape in shapes:
        yield torch.linspace(0, 1, math.prod(shape)).view(1, *shape).to(like)


@torch.no_grad()
def _probe(model: nn.Module, images: Iterable[Tensor]) -> tuple[Tensor, Tensor] | None:
    """The first image that the network takes, and its logits; None if it takes none."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]), eagerly():
            for x in images:
                try:
                    return x, answer(model, x)
                except Exception:  # the user's code refuses a shape in any way
                    continue
    finally:
        for module, training in modes:
            module.training = training
    return None


class AngularMargin:
    """The criterion with angular margin (AM): -log softmax(s (cos - m 1_y))_y, the paper's L_CE^m.

    Called with logits s * cos, (B, K), and labels (B,) or soft labels (B, K), it returns losses (B,).

    Args:
        head: Its current scale converts m into logits.
        margin: m, in units of cosine. It may be changed between steps.
    """

    def __init__(self, head: HypersphereHead, margin: float) -> None:
        self.head, self.margin = head, margin

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
        UserError: If the scheduled scale is not positive and finite throughout.
    """

    scale: float = 15.0
    margin: float = 0.2
    normalize_features: bool = True
    normalize_weights: bool = True
    scale_schedule: Schedule = Constant()
    margin_schedule: Schedule = Constant()
    margin_in_attack: bool = False

    def __post_init__(self) -> None:
        if not all(0 < self.scale * self.scale_schedule(i / 100) < float("inf") for i in range(101)):
            raise UserError(
                f"s = {self.scale} times its schedule must stay positive and finite; at 0 nothing is learnt"
            )

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
