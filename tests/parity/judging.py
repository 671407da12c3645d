"""What an attack's result is worth, judged alike for ours and theirs, and how far two verdicts may differ by chance."""

from __future__ import annotations

import torch
from torch import Tensor

from advsphere.attacks import Attack
from advsphere.classifier import fooled
from advsphere.rng import Rng
from advsphere.threat import Norm, ThreatModel
from tests.parity.peers import Peer, alone
from tests.parity.targets import Target

ROUNDING = 1e-4
"""By this share some packages leave the ball. What is farther outside does not count."""


def norms(target: Target, norm: Norm, x_adv: Tensor) -> Tensor:
    """The size of each perturbation, infinite where it does not fool the model or leaves the box: (B,)."""
    with torch.no_grad():
        hit = fooled(target.model(x_adv), target.y)
    flat = x_adv.flatten(1)
    inside = (flat >= -1e-6).all(1) & (flat <= 1 + 1e-6).all(1)
    sizes = ThreatModel(norm=norm, eps=0.0).distance(x_adv.double(), target.x.double())
    return torch.where(hit & inside, sizes, torch.inf)


def broken(target: Target, norm: Norm, x_adv: Tensor) -> Tensor:
    """Which images are fooled within the target's radius: (B,) bool."""
    return norms(target, norm, x_adv) <= target.radii[norm] * (1 + ROUNDING) + 1e-7


def by_ours(attack: Attack, target: Target, seed: int) -> Tensor:
    return attack(target.model, target.x, target.y, rng=Rng.of(target.x, seed))


def by_theirs(attack: Peer, target: Target, seed: int) -> Tensor:
    with alone(seed):
        return attack(target.model, target.x.clone(), target.y.clone(), seed)


def noise(us: Tensor, them: Tensor) -> float:
    """By how many images the mean counts of two equal attacks may differ: three standard deviations of what is seen to
    change between runs of the same attack, and never less than if one image did; (seeds, B) bool each.

    An image that breaks with probability p differs between two runs with 2 p (1 - p), which is twice its variance.
    """
    runs = len(us)
    differing = [
        float((verdicts[i] != verdicts[j]).sum()) for verdicts in (us, them) for i in range(runs) for j in range(i)
    ]
    per_pair = max(sum(differing) / len(differing), 1.0)
    return 3 * (per_pair / runs) ** 0.5
