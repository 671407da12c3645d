"""Hypersphere embedding as the paper's official code has it: the network gives bare cosines, and each loss multiplies
them by s and takes s m off the true class. Written from the formulas; ours has s in the head and m in the criterion.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advsphere.rng import Rng


class Bare(nn.Module):
    """A network without its last bias, with cosines for logits if `sphere`, else <W, z> + b as it was."""

    def __init__(self, net: nn.Sequential, sphere: bool) -> None:
        super().__init__()
        self.body, self.sphere = net[:-1], sphere
        self.weight, self.bias = nn.Parameter(net[-1].weight.detach().clone()), net[-1].bias

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        if not self.sphere:
            return z @ self.weight.t() + self.bias
        unit = self.weight / torch.sqrt((self.weight * self.weight).sum(1, keepdim=True))
        return (z / torch.sqrt((z * z).sum(1, keepdim=True))) @ unit.t()


def he_cross_entropy(cos: Tensor, y: Tensor, s: float, m: float) -> Tensor:
    """-log e^(s (cos_y - m)) / (e^(s (cos_y - m)) + sum_{j != y} e^(s cos_j)), the mean over the batch. s = 1 and m = 0
    give cross-entropy.
    """
    shifted = s * (cos - m * torch.eye(cos.shape[1], dtype=cos.dtype)[y])
    return -(shifted.softmax(1).log()[torch.arange(len(y)), y]).mean()


def batch_mean_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q), summed over the classes and averaged over the batch."""
    return (p * (p.log() - q.log())).sum() / len(p)


def near(x: Tensor, seed: int) -> Tensor:
    """x + 0.001 N(0, 1), with the random numbers that ours uses."""
    return x + 0.001 * Rng.of(x, seed).normal(x.shape[1:], "start").to(x.dtype)


def uniform_noise(x: Tensor, rng: Rng, eps: float) -> Tensor:
    """Uniform in [-eps, eps], with the random numbers that ours uses."""
    return (2 * rng.uniform(x.shape[1:], "start").to(x.dtype) - 1) * eps
