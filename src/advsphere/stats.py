"""Statistics: every interval and test of the package, and the means that have an interval, are computed here.

| question | function |
|---|---|
| accuracy on n examples | `wilson` |
| is a share larger than chance allows | `more_than` |
| two classifiers on the same examples | `paired`, `mcnemar` |
| two arms of several seeds | `difference_of_arms` |
| several tests at once | `holm` |
| a mean over images, over seeds, over pairs | `mean_over_images`, `mean_over_seeds`, `mean_over_pairs` |
| any other statistic | `bootstrap` |

Intervals have 95 % confidence unless a function takes another one. With one or two seeds an interval covers the
sampling of images only, so it applies to these checkpoints. From `ENOUGH_SEEDS` seeds on, it includes the spread of the
seeds, so it applies to the method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advsphere.errors import UserError
from advsphere.rng import derived_seed

ENOUGH_SEEDS = 3
"""Number of seeds from which an interval includes their spread."""
CONFIDENCE = 0.95

Columns = NDArray[np.float64]
"""(seeds, examples): 1 if an example is classified as labelled, else 0."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its interval.

    Attributes:
        value: The value.
        low: Lower end of the interval.
        high: Upper end.
        confidence: Confidence of the interval.
    """

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE

    @property
    def cannot_tell(self) -> bool:
        """For a difference: whether the interval contains 0."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The difference in accuracy of two classifiers on the same examples.

    Attributes:
        n: Number of examples.
        only_first: Examples that only the first classifies correctly.
        only_second: Examples that only the second classifies correctly.
        low: Lower end of the interval of the difference, in [-1, 1].
        high: Upper end.
        p_value: p-value of McNemar's exact test that neither is better.
        confidence: Confidence of the interval.
    """

    n: int
    only_first: int
    only_second: int
    low: float
    high: float
    p_value: float
    confidence: float = CONFIDENCE

    @property
    def difference(self) -> float:
        """Accuracy of the first minus that of the second."""
        return (self.only_first - self.only_second) / self.n

    @property
    def cannot_tell(self) -> bool:
        """True unless both the interval and the test show a difference."""
        return self.low <= 0 <= self.high or self.p_value > 1 - self.confidence

    def __str__(self) -> str:
        points = f"{100 * self.difference:+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f})"
        return f"{points}: cannot tell the two apart" if self.cannot_tell else points


def wilson(k: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927, JASA 22:209), which stays sensible at k = 0 and k = n.

    Args:
        k: Successes.
        n: Trials.
        confidence: In (0, 1).

    Returns:
        (low, high), each in [0, 1].

    Raises:
        UserError: If n is 0, or k is not between 0 and n.
    """
    if not 0 <= k <= n or n == 0:
        raise UserError(f"there is no proportion of {k} in {n} examples; give at least one example")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, weight = k / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / weight
    half = z / weight * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the limit is exactly the proportion; rounding must not move it beyond.
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def more_than(k: int, n: int, share: float, confidence: float = CONFIDENCE) -> bool:
    """Test whether a proportion exceeds `share`, given k successes in n trials.

    A one-sided exact binomial test at (1 - confidence) / 2, which agrees with the lower limit of Clopper and
    Pearson's interval (1934, Biometrika 26:404). It is valid for a single example as well.

    Args:
        k: Successes.
        n: Trials.
        share: The proportion to exceed, in (0, 1).
        confidence: In (0, 1).

    Returns:
        True if the test rejects.
    """
    from scipy.special import bdtrc

    return k > 0 and float(bdtrc(k - 1, n, share)) <= (1 - confidence) / 2


def paired(first: Sequence[bool], second: Sequence[bool], confidence: float = CONFIDENCE) -> PairedDifference:
    """Compare two classifiers on the same examples.

    The interval is Newcombe's paired score interval (1998, Statistics in Medicine 17:2635, method 10), the test is
    McNemar's exact test. Both apply to these two classifiers, not to the methods that trained them.

    Args:
        first: Whether each example is classified correctly by the first.
        second: The same for the second, in the same order.
        confidence: In (0, 1).

    Returns:
        The difference, first minus second.

    Raises:
        UserError: If the two have different lengths, or are empty.
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
    """McNemar's exact test that neither of two classifiers is better.

    Each of the m examples on which they differ is as likely to favour either, so the smaller count is Binomial(m, 1/2).

    Args:
        only_first: Examples that only the first classifies correctly.
        only_second: Examples that only the second classifies correctly.

    Returns:
        The two-sided p-value.
    """
    from scipy.special import bdtr

    m = only_first + only_second
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), m, 0.5))) if m else 1.0


def _newcombe(a: int, b: int, c: int, d: int, confidence: float) -> tuple[float, float]:
    """Limits of p1 - p2 = (b - c) / n, from the two Wilson intervals and the correlation phi of the two columns."""
    n = a + b + c + d
    p1, p2 = (a + b) / n, (a + c) / n
    (low1, high1), (low2, high2) = wilson(a + b, n, confidence), wilson(a + c, n, confidence)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    product = a * d - b * c
    shrunk = max(product - n / 2, 0) if product > 0 else product  # method 10, for a positive correlation
    phi = shrunk / math.sqrt(margins) if margins else 0.0

    def distance(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    return p1 - p2 - distance(p1 - low1, high2 - p2), p1 - p2 + distance(high1 - p1, p2 - low2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for testing several hypotheses at once (Holm 1979, Scandinavian Journal of Statistics 6:65).

    Args:
        p_values: One for each hypothesis.

    Returns:
        The adjusted p-values, in the same order.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def difference_of_arms(first: Columns, second: Columns) -> tuple[Estimate, float]:
    """Compare two arms of one or several seeds on the same examples.

    With one seed each it is `paired`. With more, the interval is Student's over examples; from ENOUGH_SEEDS in each arm
    on, the variance over seeds is added, with Welch's degrees of freedom.

    Args:
        first: (seeds, examples) outcomes of 0 and 1.
        second: The same for the other arm; its seeds may differ.

    Returns:
        The mean accuracy of the first minus that of the second, and the p-value of the hypothesis of no difference.
    """
    value = float(first.mean()) - float(second.mean())
    if len(first) == len(second) == 1:
        one = paired(first[0].astype(bool).tolist(), second[0].astype(bool).tolist())
        return Estimate(value=value, low=one.low, high=one.high), one.p_value
    from scipy.stats import t  # slow to import

    by_image = first.mean(0) - second.mean(0)
    seeds, freedom = 0.0, math.inf
    if min(len(first), len(second)) >= ENOUGH_SEEDS:
        parts = [(float(arm.mean(1).var(ddof=1)) / len(arm), len(arm) - 1) for arm in (second, first)]
        seeds, freedom = sum(variance for variance, _ in parts), _satterthwaite(parts)
    variance = float(by_image.var(ddof=1)) / by_image.size + seeds
    p = float(2 * t.sf(abs(value) / math.sqrt(variance), freedom)) if variance else float(value == 0)
    return _student(value, variance, freedom), p


def mean_over_images(values: Sequence[float]) -> Estimate:
    """The mean of one number for each image, with a normal interval over images.

    Outcomes of one image under several corruptions depend on each other, so give each image's own mean.

    Args:
        values: One for each image.

    Returns:
        The mean.
    """
    centre = fmean(values)
    half = 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(value=centre, low=centre - half, high=centre + half)


def mean_over_seeds(columns: NDArray[np.float64]) -> Estimate:
    """The mean over images and seeds. From ENOUGH_SEEDS seeds on, their spread widens the interval.

    Args:
        columns: (seeds, images), such as outcomes of 0 and 1, or differences of two of them.

    Returns:
        The mean, with Student's interval.
    """
    images = float(columns.mean(0).var(ddof=1)) / columns.shape[1]
    seeds = float(columns.mean(1).var(ddof=1)) / len(columns) if len(columns) >= ENOUGH_SEEDS else 0.0
    value, freedom = fmean(columns.mean(1).tolist()), _satterthwaite([(seeds, len(columns) - 1)], images + seeds)
    return _student(value, images + seeds, freedom)


def mean_over_pairs(differences: Sequence[Sequence[NDArray[np.float64]]]) -> Estimate:
    """The mean over pairs of methods, over sets of images.

    The variances over pairs and over images are added. This is conservative, because the spread of the pairs already
    contains part of the variance over images.

    Args:
        differences: For each set of images, (n,) differences in [-1, 1] for each pair. Pairs of one set share its first
            images.

    Returns:
        The mean, with Student's interval.
    """
    means = [float(one.mean()) for of_set in differences for one in of_set]
    over_pairs, over_images = stdev(means) ** 2 / len(means), 0.0
    for of_set in differences:
        share = np.zeros(max(map(len, of_set)))  # weight of each image in the overall mean
        for one in of_set:
            share[: len(one)] += (one - one.mean()) / (len(one) * len(means))
        over_images += float(share @ share)
    variance = over_pairs + over_images
    return _student(fmean(means), variance, _satterthwaite([(over_pairs, len(means) - 1)], variance))


def bootstrap(
    statistic: Callable[..., Tensor],
    *samples: int | Sequence[int],
    seed: int = 0,
    repeats: int = 2000,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """A percentile bootstrap (Efron 1979, Annals of Statistics 7:1) of any statistic.

    All arms that the statistic compares see the same draws, so the comparison is paired.

    Args:
        statistic: Takes for each sample (R, n) float64 counts of how often each example or kind was drawn, and returns
            (R,) values.
        samples: For each sample its size or, if many of its examples are equal, the number of examples of each kind.
        seed: The draws depend only on it and on the samples.
        repeats: Number of resamples.
        confidence: In (0, 1).

    Returns:
        The statistic of the original samples, with its interval.
    """
    each = max(1, 2_000_000 // max(one if isinstance(one, int) else len(one) for one in samples))  # to save memory
    rng = np.random.default_rng(seed)
    drawn = [
        _resampled_examples(one, seed, repeats, each)
        if isinstance(one, int)
        else _resampled_kinds(one, rng, repeats, each)
        for one in samples
    ]
    found = torch.cat([statistic(*parts) for parts in zip(*drawn, strict=True)])
    low, high = np.quantile(found.numpy(), [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    whole = (torch.ones(one) if isinstance(one, int) else torch.tensor(one) for one in samples)
    value = float(statistic(*(counts.double()[None] for counts in whole)))
    return Estimate(value=value, low=low, high=high, confidence=confidence)


def _resampled_examples(n: int, seed: int, repeats: int, each: int) -> Iterator[Tensor]:
    """Yield counts of how often each of n examples was drawn, (`each`, n) at a time."""
    generator = torch.Generator().manual_seed(derived_seed(seed, n, "bootstrap"))
    for chunk in torch.arange(repeats).split(each):
        drawn = torch.randint(n, (len(chunk), n), generator=generator)
        counts = torch.zeros(len(chunk), n, dtype=torch.float64)
        yield counts.scatter_add_(1, drawn, torch.ones_like(counts))


def _resampled_kinds(counts: Sequence[int], rng: np.random.Generator, repeats: int, each: int) -> Iterable[Tensor]:
    """Yield counts of how often each kind of example was drawn, (`each`, kinds) at a time."""
    total = sum(counts)
    drawn = rng.multinomial(total, np.asarray(counts) / total, size=repeats)
    return torch.from_numpy(drawn).double().split(each)


def _satterthwaite(parts: Sequence[tuple[float, int]], total: float | None = None) -> float:
    """Degrees of freedom of a sum of variances.

    `parts` holds (variance, degrees of freedom) of variances that were estimated from few values. `total` is the whole
    sum if there are others.
    """
    total = sum(variance for variance, _ in parts) if total is None else total
    below = sum(variance**2 / freedom for variance, freedom in parts if variance)
    return total**2 / below if below else math.inf


def _student(value: float, variance: float, freedom: float) -> Estimate:
    from scipy.stats import t  # slow to import

    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return Estimate(value=value, low=value - half, high=value + half)
