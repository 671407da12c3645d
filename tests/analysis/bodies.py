"""Networks whose features, angles and gradients can be written down by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from advsphere.data import ImageSet
from advsphere.rng import Rng


class Body(nn.Module):
    """Features z = A x of flattened images, so that images of two pixels are their own features for A = 1."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(weight.clone())  # no nn.Linear, which might be taken for the head

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.a.T


def with_head(body: nn.Module, weight: Tensor, bias: Tensor | None = None) -> nn.Sequential:
    """The body in front of a linear head."""
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        head.weight.copy_(weight)
        if bias is not None:
            head.bias.copy_(bias)
    return nn.Sequential(body, head).eval()


def polar(degrees: Sequence[float], lengths: Sequence[float]) -> Tensor:
    """(N, 1, 1, 2) images whose two pixels are a vector at that angle and of that length."""
    angle = torch.tensor(degrees).deg2rad()
    return (torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor(lengths)[:, None]).view(-1, 1, 1, 2)


def plane() -> nn.Sequential:
    """Images of two pixels, their own features; class 0 lies along the first axis, class 1 along the second."""
    return with_head(Body(torch.eye(2)), torch.eye(2))


class Spiral(nn.Module):
    """One pixel moves both: the angle of the features, from 0 to 90 degrees, and the log of their norm, by `pull`."""

    def __init__(self, pull: float) -> None:
        super().__init__()
        self.pull = pull
        self.turn = nn.Parameter(torch.tensor(math.pi / 2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        angle = self.turn * x
        return torch.cat([angle.cos(), angle.sin()], 1) * (self.pull * (x - 0.5)).exp()


def spiral(pull: float) -> nn.Sequential:
    """Class 0 below half brightness, class 1 above."""
    return with_head(Spiral(pull), torch.eye(2))


def dark(n: int = 40) -> ImageSet:
    """Single pixels well below half brightness, all of class 0."""
    pixels = 0.36 - 0.02 * Rng(3, torch.arange(n)).uniform((1, 1, 1), "pixels")
    return ImageSet(pixels, torch.zeros(n, dtype=torch.int64), ("dark", "bright"), "dots")
