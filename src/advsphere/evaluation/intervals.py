"""What n examples allow to be said: intervals for an accuracy, and for the difference of two on the same examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from advsphere.errors import UserError


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
