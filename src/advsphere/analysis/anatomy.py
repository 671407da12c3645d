"""A network taken apart: features, the directions of its classes, and the way from one to the other with FN or without.

FN, feature normalisation, replaces the features z by z / ||z|| in front of the last layer. Whether it changes what an
attack finds, or what a training step learns, can be asked of any network, without training another: switch it on or off
on the way from the features to the loss, and leave everything else as it is.
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
class Anatomy:
    """features: (B, C, H, W) -> (B, D), the z that enters the head. weight: (K, D), bias: (K,), so that the logits are
    W u + b, where u is z / ||z|| if the network has FN of its own (`normalized`), else z. radius: the mean ||z|| over
    clean images.
    """

    model: nn.Module
    features: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor
    normalized: bool
    radius: float

    def logits(self, z: Tensor, *, fn: bool, factor: float = 1.0) -> Tensor:
        """(B, D) features -> (B, K) logits with or without FN on the way, whatever the network itself does.

        With: factor * s * W'z/||z|| + b, where s is the radius of a network without FN of its own, and 1 for one that
        has it (its W holds the scale). Without: factor * W'z + b, and z / radius in the place of z for a network with
        FN. So the two have logits of the same size on average, and agree where ||z|| is constant. One of the two is, at
        factor 1, the network itself.
        """
        z = z.to(self.weight.dtype)
        unit = F.normalize(z, dim=1) if fn else z / self.radius
        return F.linear(unit * (factor if self.normalized else factor * self.radius), self.weight, self.bias)

    def path(self, *, fn: bool, factor: float = 1.0) -> Classifier:
        """The network with or without FN on the way, as a classifier to attack inside `frozen`."""

        def classify(x: Tensor) -> Tensor:
            return self.logits(self.features(x.contiguous(memory_format=torch.channels_last)), fn=fn, factor=factor)

        return classify

    def cosines(self, z: Tensor) -> Tensor:
        """(B, D) features -> (B, K) cosines of their angles with the classes' directions."""
        return F.normalize(z.to(self.weight.dtype), dim=1) @ F.normalize(self.weight, dim=1).T


def dissect(model: nn.Module, images: Images, *, head: str | None = None, batch_size: int = 250) -> Anatomy:
    """Take a network apart, and measure the mean norm of its features on these clean images.

    head: its name, where `classifier.find_head` can't tell. The head is asked, not looked up: its answers to the unit
    vectors are its directions, and it has FN if twice the features give the same logits. So heads of other projects do.
    Raises UserError where the head is neither linear nor linear after FN, or its features are no (B, D).
    """
    parts = split(model, head)
    with frozen(model), torch.no_grad():
        z = [parts.features(images.batch(index)[0]) for index in torch.arange(len(images)).split(batch_size)]
        if any(part.dim() != 2 for part in z):
            raise UserError(
                f"features of shape {tuple(z[0].shape[1:])} enter the head of this {type(model).__name__}, but angles "
                "need one vector an image; pool them first"
            )
        features = torch.cat(z).float()
        weight, bias, normalized = _asked(parts.head, features[:batch_size])
        radius = float(features.norm(dim=1).mean())
        if not radius > 0:
            raise UserError("the features that enter the head are all 0, and so have no direction; is it trained?")
    return Anatomy(model=model, features=parts.features, weight=weight, bias=bias, normalized=normalized, radius=radius)


def _asked(head: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, bool]:
    """(W, b, whether it has FN)."""
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
