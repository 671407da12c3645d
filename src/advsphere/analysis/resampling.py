"""How far a statistic may be off by the choice of examples alone: a paired bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advsphere.draws import derived_seed


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with the ends of its interval at `confidence`. It speaks of these networks on such images, and not of the
    methods that trained them.
    """

    value: float
    low: float
    high: float
    confidence: float = 0.95


def bootstrap(
    statistic: Callable[[Tensor], Tensor], n: int, *, seed: int = 0, repeats: int = 2000, confidence: float = 0.95
) -> Estimate:
    """A percentile bootstrap over n examples (Efron 1979, Annals of Statistics 7:1).

    statistic: (R, n) float64, how often each example was drawn -> (R,). Every arm of a comparison that it holds is thus
    resampled alike, which makes the comparison a paired one. The draws are a function of (seed, n).
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, n, "bootstrap"))
    found = []
    for chunk in torch.arange(repeats).split(max(1, 2_000_000 // n)):
        drawn = torch.randint(n, (len(chunk), n), generator=generator)
        counts = torch.zeros(len(chunk), n, dtype=torch.float64)
        found.append(statistic(counts.scatter_add_(1, drawn, torch.ones_like(counts))))
    tail = (1 - confidence) / 2
    low, high = torch.cat(found).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    value = float(statistic(torch.ones(1, n, dtype=torch.float64)))
    return Estimate(value=value, low=low, high=high, confidence=confidence)
