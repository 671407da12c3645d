"""Hypersphere embedding (Pang et al., NeurIPS 2020, arXiv 2002.08619): the paper's idea, all of it and only it.

FN and WN live in the head, with the scale s, so that everything else sees ordinary logits s * cos. AM lives in the
criterion. Training sets s and m from `HypersphereConfig`, a frozen config; nothing else asks whether a network has
a sphere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.classifier import find_head
from advsphere.errors import UserError
from advsphere.losses import cross_entropy
from advsphere.schedule import Constant, Linear, Schedule


class HypersphereHead(nn.Module):
    """The last layer, s * <W_k / ||W_k||, z / ||z||>: (B, D) features -> (B, K) logits in [-s, s].

    scale: s > 0, a saved buffer. normalize_features, normalize_weights: FN and WN, each to be switched off. There is no
    bias, as in the paper. Computes in float32 (or wider) also under autocast: bfloat16 has 3 digits, too few for an
    angle. Raises UserError for a scale that is not positive and finite. Differs from the official code, which
    overwrites W by its normalised rows in every forward: here the gradient passes through the normalisation.
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
            if self.normalize_features:
                z = F.normalize(z, dim=-1)
            if self.normalize_weights:
                weight = F.normalize(weight, dim=-1)
            return F.linear(z, weight) * self.scale

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, num_classes={self.out_features}, scale={float(self.scale):g}, "
            f"normalize_features={self.normalize_features}, normalize_weights={self.normalize_weights}"
        )


def attach_head(
    model: nn.Module,
    *,
    scale: float,
    head: str | None = None,
    normalize_features: bool = True,
    normalize_weights: bool = True,
) -> nn.Module:
    """Put a `HypersphereHead` in the place of a network's last linear layer; returns the same model.

    Works for torchvision, timm, Hugging Face and own networks. The new head begins with the old layer's weights (its
    bias is dropped), so attaching draws no random numbers and keeps what a pretrained head knows. head: the layer's
    dotted name where `find_head` can't tell; its UserError says so.
    """
    name = find_head(model, head)
    if not name:
        raise UserError(f"this {type(model).__name__} is nothing but its head; put it into an nn.Sequential first")
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
        new.weight.copy_(weight)
    new.train(old.training)
    model.set_submodule(name, new)
    return model


class AngularMargin:
    """AM: the criterion -log softmax(s (cos - m 1_y))_y for each example, (B, K) logits s * cos and (B,) labels -> (B,)
    (the paper's L_CE^m).

    head: whose current scale turns m, in units of cosine, into logits. margin: m, may be changed between steps.
    """

    def __init__(self, head: HypersphereHead, margin: float) -> None:
        self.head, self.margin = head, margin

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.shift(logits, y), y)

    def shift(self, logits: Tensor, y: Tensor) -> Tensor:
        """Logits with s * m taken off the true class."""
        return logits - self.head.scale * self.margin * F.one_hot(y, logits.shape[1])


@dataclass(frozen=True, kw_only=True)
class HypersphereConfig:
    """Hypersphere embedding as a config."""

    scale: float = 15.0
    """s, where its schedule is 1."""
    margin: float = 0.2
    """m, in units of cosine, where its schedule is 1."""
    normalize_features: bool = True
    """FN."""
    normalize_weights: bool = True
    """WN."""
    scale_schedule: Schedule = Constant()
    margin_schedule: Schedule = Constant()
    margin_in_attack: bool = False
    """Craft training examples on the margin-shifted logits as well. For cross-entropy under a sign or normalised step
    that changes nothing, by arithmetic: the shift adds the constant s * m to `log_odds`. It changes TRADES, whose KL is
    no function of `log_odds` alone.
    """

    def __post_init__(self) -> None:
        if not all(0 < self.scale * self.scale_schedule(i / 100) < float("inf") for i in range(101)):
            raise UserError(
                f"s = {self.scale} times its schedule must stay positive and finite; at 0 nothing is learnt"
            )

    def attach(self, model: nn.Module, head: str | None = None) -> HypersphereHead:
        """Give the model its head (`attach_head`) and return it."""
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

    def move(self, criterion: AngularMargin, progress: float) -> None:
        """Set the head's s and the criterion's m to what the schedules say at `progress` in [0, 1]: a function of it,
        so a resume is exact.
        """
        criterion.head.scale.fill_(self.scale * self.scale_schedule(progress))
        criterion.margin = self.margin * self.margin_schedule(progress)


def m_he(sphere: HypersphereConfig) -> HypersphereConfig:
    """m-HE (our reading). The paper's Table 3 has rows named m-HE; neither it nor the released code says what is meant.

    We read it as HE whose margin is ramped up linearly over the first half of training, and applied while crafting as
    well.
    """
    return replace(sphere, margin_schedule=Linear(((0.0, 0.0), (0.5, 1.0))), margin_in_attack=True)
