"""What n examples allow to be said: intervals for an accuracy, and for the difference of two on the same examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advsphere.errors import UserError
from advsphere.rng import derived_seed


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) for a proportion of which k in n were seen; each in [0, 1].

    The score interval (Wilson 1927, JASA 22:209), which stays sensible at k = 0 and k = n. Raises UserError for n = 0.
    """
    if not 0 <= k <= n or n == 0:
        raise UserError(f"there is no proportion of {k} in {n} examples; give at least one example")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, weight = k / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / weight
    half = z / weight * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the limit is exactly the proportion; rounding must not move it beyond.
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def more_than(k: int, n: int, share: float, confidence: float = 0.95) -> bool:
    """Whether k in n are more than chance makes of a proportion no larger than `share`, which lies in (0, 1).

    The exact binomial test on one side, at half of 1 - confidence, so that it agrees with the lower limit of the
    interval of Clopper and Pearson (1934, Biometrika 26:404): right for a single example as well.
    """
    log_p, log_q = math.log(share), math.log1p(-share)

    def probability(i: int) -> float:
        ways = math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
        return math.exp(ways + i * log_p + (n - i) * log_q)

    return 1 - math.fsum(map(probability, range(k))) <= (1 - confidence) / 2


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """How much better the first of two classifiers does on the same n examples, and whether that can be told.

    only_first, only_second: examples that one gets right and the other wrong. difference: in [-1, 1]; (low, high) its
    interval at `confidence`. p_value: of McNemar's exact test that neither is better.
    """

    n: int
    only_first: int
    only_second: int
    low: float
    high: float
    p_value: float
    confidence: float = 0.95

    @property
    def difference(self) -> float:
        return (self.only_first - self.only_second) / self.n

    @property
    def cannot_tell(self) -> bool:
        """True unless the interval and the test both say that there is a difference."""
        return self.low <= 0 <= self.high or self.p_value > 1 - self.confidence

    def __str__(self) -> str:
        points = f"{100 * self.difference:+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f})"
        return f"{points}: cannot tell the two apart" if self.cannot_tell else points


def paired(first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95) -> PairedDifference:
    """Compare two 0/1 columns over the same examples in the same order. Raises UserError where there are not as many.

    The interval is Newcombe's paired score interval (1998, Statistics in Medicine 17:2635, method 10), the test
    McNemar's exact one. They say something of these two classifiers, not of the methods that trained them.
    """
    n = len(first)
    if n != len(second) or n == 0:
        raise UserError(f"paired columns have one entry for each example, but these have {n} and {len(second)}")
    pairs = list(zip(map(bool, first), map(bool, second), strict=True))
    both, only_first, only_second = (pairs.count(p) for p in [(True, True), (True, False), (False, True)])
    low, high = _newcombe(both, only_first, only_second, n - both - only_first - only_second, confidence)
    return PairedDifference(
        n=n,
        only_first=only_first,
        only_second=only_second,
        low=low,
        high=high,
        p_value=mcnemar(only_first, only_second),
        confidence=confidence,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test: of the m examples on which two classifiers differ, each is as likely
    to favour either, so the smaller count is Binomial(m, 1/2).
    """
    m, smaller = only_first + only_second, min(only_first, only_second)
    log_all = m * math.log(2) - math.lgamma(m + 1)
    tail = math.fsum(math.exp(-log_all - math.lgamma(i + 1) - math.lgamma(m - i + 1)) for i in range(smaller + 1))
    return min(1.0, 2 * tail)


def _newcombe(a: int, b: int, c: int, d: int, confidence: float) -> tuple[float, float]:
    """Limits of p1 - p2 = (b - c) / n, from the two Wilson intervals and the correlation phi of the two columns."""
    n = a + b + c + d
    p1, p2 = (a + b) / n, (a + c) / n
    (low1, high1), (low2, high2) = wilson(a + b, n, confidence), wilson(a + c, n, confidence)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    product = a * d - b * c
    shrunk = max(product - n / 2, 0) if product > 0 else product  # method 10, for a positive correlation
    phi = shrunk / math.sqrt(margins) if margins else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    return p1 - p2 - reach(p1 - low1, high2 - p2), p1 - p2 + reach(high1 - p1, p2 - low2)


# FOLDED resampling: How far a statistic may be off by the choice of examples alone: a paired bootstrap.


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


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean of accuracies on the same images, in [0, 1], with its 95 % interval for the sample of images alone.

    The interval takes each image's own mean as one observation: outcomes of one image under several corruptions depend
    on each other.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """values: one for each image."""
        centre = fmean(values)
        half = 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
        return cls(value=centre, low=centre - half, high=centre + half)

    @property
    def cannot_tell(self) -> bool:
        """Of a difference: whether it may be none."""
        return self.low <= 0 <= self.high


def reach(columns: np.ndarray) -> float:
    """Half of the 95 % interval of a mean over images; from three seeds on, their spread is added. columns: (seeds,
    images).
    """
    images, seeds = float(columns.mean(0).var(ddof=1)) / columns.shape[1], 0.0
    if len(columns) >= ENOUGH_SEEDS:
        seeds = float(columns.mean(1).var(ddof=1)) / len(columns)
    from scipy.stats import t  # slow to import

    # Satterthwaite: few seeds make it wide in so far as it is they that spread.
    freedom = (images + seeds) ** 2 * (len(columns) - 1) / seeds**2 if seeds else math.inf
    return float(t.ppf(0.975, freedom)) * math.sqrt(images + seeds)


class Reach(NamedTuple):
    """A difference in [-1, 1] with its 95 % interval."""

    value: float
    low: float
    high: float


def mean(differences: Sequence[Sequence[NDArray[np.float64]]]) -> Reach:
    """The mean over pairs, and its 95 % interval by Student's t: over pairs and over images, whose variances are added,
    with Satterthwaite's degrees of freedom. Some of the images' variance is in the spread of pairs too, and so counts
    twice.

    differences: for each set of images, of each pair (n,) in [-1, 1]; pairs have the first n images of their set.
    """
    from scipy.stats import t  # slow to import

    means = [float(one.mean()) for of_set in differences for one in of_set]
    over_pairs, over_images = stdev(means) ** 2 / len(means), 0.0
    for of_set in differences:
        share = np.zeros(max(map(len, of_set)))  # of each image in the mean of all
        for one in of_set:
            share[: len(one)] += (one - one.mean()) / (len(one) * len(means))
        over_images += float(share @ share)
    both = over_pairs + over_images
    freedom = (len(means) - 1) * (both / over_pairs) ** 2 if over_pairs else math.inf
    half = float(t.ppf(0.975, freedom)) * math.sqrt(both)
    return Reach(fmean(means), fmean(means) - half, fmean(means) + half)


ENOUGH_SEEDS = 3
