"""The grid of weight decays: at which of them an arm is at its best."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

Tried = Mapping[float, Mapping[int, float]]
"""An arm's robust accuracy on held-out training images, in [0, 1]: by weight decay, then by seed."""


def means(tried: Tried) -> dict[float, float]:
    """By weight decay, the mean over the seeds that were trained at all of them; empty where there is no such seed."""
    shared = set.intersection(*(set(seeds) for seeds in tried.values())) if tried else set()
    return {decay: fmean(seeds[seed] for seed in shared) for decay, seeds in tried.items()} if shared else {}


def preferred(tried: Tried) -> float | None:
    """The weight decay of the highest mean, the first of equals; None where there was no choice."""
    found = means(tried)
    return max(found, key=lambda decay: found[decay]) if len(found) > 1 else None
