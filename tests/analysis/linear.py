"""Linear models, on which the smallest perturbation that fools is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advsphere.data import ImageSet
from advsphere.rng import Rng


def model(classes: int = 2, pixels: int = 16, seed: int = 0) -> nn.Sequential:
    network = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
    weights = Rng(seed, torch.arange(classes)).normal((pixels + 1,), "weights")
    with torch.no_grad():
        network[1].weight.copy_(weights[:, :-1])
        network[1].bias.copy_(-0.5 * weights[:, :-1].sum(1))  # grey is undecided
    return network


def images(network: nn.Module, n: int = 60, wrong: int = 3) -> ImageSet:
    """Images around grey, far from the box; labelled as the model sees them, except the first few."""
    x = 0.5 + 0.15 * (Rng(1, torch.arange(n)).uniform((1, 4, 4), "images") - 0.5)
    logits = network(x).detach()
    y = logits.argmax(1)
    y[:wrong] = logits.argmin(1)[:wrong]
    return ImageSet(x, y, tuple("abcdefghij"[: logits.shape[1]]), "linear")


def smallest_linf(network: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """(B,) the linf distance to the boundary of two classes: the margin over the l1 norm of the weights' difference."""
    linear = network[1]
    logits = network(x).detach()
    lead = logits.gather(1, y[:, None]).squeeze(1) - logits.gather(1, 1 - y[:, None]).squeeze(1)
    return lead / (linear.weight[0] - linear.weight[1]).abs().sum().detach()
