"""How many of a finite population have a property, bounded from above by a random sample that may grow.

Looks are planned before anything is seen: sizes of the sample, each with the most hits at which the claim is made, and
a share of the allowed error. The page docs/statistics.md explains them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from advsphere.stats import CONFIDENCE

FIRST_SHARE = 0.9
"""Share of the allowed error that the first look spends. Each later one spends half of what is left."""

MOST = 0.75
"""The largest share of the population that a sample takes; beyond it the whole population is the next look."""


class Look(NamedTuple):
    """One planned look at the sample.

    Attributes:
        size: Members of the population in the sample.
        hits: The most of them with the property for which the claim is made.
        error: The probability that the claim of this look is false, at most.
    """

    size: int
    hits: int
    error: float


def looks(population: int, allowed: int, confidence: float = CONFIDENCE) -> Iterator[Look]:
    """Plan the looks that show that at most `allowed` members outside the sample have the property.

    Let K members have it, and X_j of the first m_j in a random order. Look j claims K <= `most_with(X_j, ...)`, which
    is false with probability `error` at most, for any K. The errors add up to less than 1 - confidence, so with that
    confidence no look makes a false claim, whichever of them is the last (Bonferroni's inequality). The last look is
    the whole population, where nothing is left to claim.

    Args:
        population: Number of members.
        allowed: Members outside the sample that may have the property.
        confidence: Of all claims together, in (0, 1).

    Yields:
        The looks, of rising size. Their sizes depend on the arguments only.
    """
    left, share, hits, size = 1 - confidence, FIRST_SHARE, 0, -1
    while size < population:
        error = share * left
        size = _enough(population, allowed, hits, error)
        size = size if size <= MOST * population else population
        yield Look(size, hits if size < population else population, error)
        left, share, hits = left - error, 0.5, max(1, 2 * hits)


def most_with(hits: int, size: int, population: int, error: float) -> int:
    """The exact upper limit of the number of members with the property (hypergeometric distribution).

    Args:
        hits: Members of the sample with it.
        size: Size of the sample, drawn without replacement.
        population: Number of members.
        error: Probability that the limit is too low, at most.

    Returns:
        The largest number at which a sample has so few hits with a probability above `error`.
    """
    low, high = hits, population - size + hits  # the highest number that is possible at all
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if at_most(hits, size, population, middle) > error else (low, middle - 1)
    return low


def at_most(hits: int, size: int, population: int, having: int) -> float:
    """The probability of few hits in a sample (hypergeometric distribution).

    Args:
        hits: The most members of the sample with the property.
        size: Size of the sample, drawn without replacement.
        population: Number of members.
        having: How many of them have the property.

    Returns:
        The probability of at most so many.
    """
    others, whole = population - having, _log_ways(population, size)
    possible = range(max(0, size - others), min(hits, size, having) + 1)
    return math.fsum(math.exp(_log_ways(having, i) + _log_ways(others, size - i) - whole) for i in possible)


def _enough(population: int, allowed: int, hits: int, error: float) -> int:
    """The smallest sample of which `hits` members still show that at most `allowed` others have the property."""
    if hits + allowed >= population:
        return population if hits else 0
    low, high = 0, population
    while low < high:
        size = (low + high) // 2
        shown = at_most(hits, size, population, hits + allowed + 1) <= error
        low, high = (low, size) if shown else (size + 1, high)
    return low


def _log_ways(n: int, k: int) -> float:
    """The logarithm of the number of ways to choose k of n."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
