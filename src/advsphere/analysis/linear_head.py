"""A network split into features and linear head, which gives class directions, and logits with and without FN.

FN, feature normalisation, replaces the features z by z / ||z|| in front of the last layer. Switching it on or off
between the features and the loss shows its effect on an attack or a training step, in any network and without training
another one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.classifier import Classifier, frozen, split
from advsphere.data import Images
from advsphere.errors import UserError


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadParts:
    """A network whose logits are W u + b.

    `features` maps images (B, C, H, W) to z (B, D). u is z / ||z|| for a network with FN (`normalized`), else z.
    `weight` is W (K, D), `bias` is b (K,), and `mean_norm` is the mean ||z|| over clean images.
    """

    model: nn.Module
    features: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor
    normalized: bool
    mean_norm: float

    def logits(self, z: Tensor, *, fn: bool, factor: float = 1.0) -> Tensor:
        """(B, D) features -> (B, K) logits with or without FN, independent of the network's own head.

        With FN: factor * s * W'z/||z|| + b. Here s is 1 for a network with FN, because its W contains the scale, and
        `mean_norm` for other networks. Without FN: factor * W'z + b, with z / mean_norm instead of z in a network with
        FN. So both have logits of the same size on average and agree if ||z|| is constant. At factor 1, one of them is
        the network itself.
        """
        z = z.to(self.weight.dtype)
        unit = F.normalize(z, dim=1) if fn else z / self.mean_norm
        return F.linear(unit * (factor if self.normalized else factor * self.mean_norm), self.weight, self.bias)

    def path(self, *, fn: bool, factor: float = 1.0) -> Classifier:
        """The network with or without FN, as a classifier to attack inside `frozen`."""

        def classify(x: Tensor) -> Tensor:
            return self.logits(self.features(x.contiguous(memory_format=torch.channels_last)), fn=fn, factor=factor)

        return classify

    def cosines(self, z: Tensor) -> Tensor:
        """(B, D) features -> (B, K) cosines of their angles to the directions of the classes."""
        return F.normalize(z.to(self.weight.dtype), dim=1) @ F.normalize(self.weight, dim=1).T

    def class_angles(self) -> Tensor:
        """(K, K), in degrees: the angles between the directions of the classes."""
        unit = F.normalize(self.weight.double(), dim=1)
        return (unit @ unit.T).clamp(-1, 1).acos().rad2deg().fill_diagonal_(0).cpu()


def split_head(model: nn.Module, images: Images, *, head: str | None = None, batch_size: int = 250) -> HeadParts:
    """Split a network, and measure the mean norm of its features on these clean images.

    `head` names the last linear layer if `classifier.find_head` can't find it. W and b are computed from the head's
    outputs for unit vectors, and a head has FN if doubled features give the same logits, so heads of other projects
    work too. Raises UserError for a head that is not linear (with or without FN), and for features other than (B, D).
    """
    parts = split(model, head)
    with frozen(model), torch.no_grad():
        z = [parts.features(images.batch(index)[0]) for index in torch.arange(len(images)).split(batch_size)]
        if any(part.dim() != 2 for part in z):
            raise UserError(
                f"the head of this {type(model).__name__} takes features of shape {tuple(z[0].shape[1:])}, but angles "
                "need one vector for each image; pool the features first"
            )
        features = torch.cat(z).float()
        weight, bias, normalized = _probe(parts.head, features[:batch_size])
        mean_norm = float(features.norm(dim=1).mean())
        if not mean_norm > 0:
            raise UserError("the features in front of the head are all 0, so they have no direction; train the network")
    return HeadParts(
        model=model, features=parts.features, weight=weight, bias=bias, normalized=normalized, mean_norm=mean_norm
    )


def _probe(head: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Compute W, b and whether the head has FN from its outputs."""
    eye = torch.eye(z.shape[1], device=z.device)
    bias = head(torch.zeros_like(eye[:1])).float()[0]
    weight = (head(eye).float() - bias).T.contiguous()
    answer = head(z).float()
    normalized = torch.allclose(head(2 * z).float(), answer, rtol=1e-4, atol=1e-5 * float(answer.abs().max()))
    expected = F.linear(F.normalize(z, dim=1) if normalized else z, weight, bias)
    if not torch.allclose(expected, answer, rtol=1e-3, atol=1e-3 * float(answer.abs().max())):
        raise UserError(
            f"this {type(head).__name__} is not linear in the features or their direction, so its classes have no "
            "directions to measure angles with; name the last linear layer as the head"
        )
    return weight, bias, normalized
