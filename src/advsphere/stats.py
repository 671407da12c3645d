"""Statistics: every interval and test of the package, and the means that have an interval, are computed here.

| question | function |
|---|---|
| accuracy on n examples | `wilson` |
| is a share larger than chance allows | `more_than` |
| two classifiers on the same examples | `paired`, `mcnemar` |
| two arms of several seeds; how many images they need | `difference_of_arms`, `images_for` |
| one such difference as a share of another | `share_of_difference` |
| several tests at once | `holm` |
| a mean over images, over seeds, over pairs | `mean_over_images`, `mean_over_seeds`, `mean_over_pairs` |
| any other statistic | `bootstrap` |

Intervals have 95 % confidence unless a function takes another one. With one or two seeds they cover the sampling of
images only, so they apply to these checkpoints. From `ENOUGH_SEEDS` seeds on, they include the spread of the seeds:
Student's, for the sum of both variances with Satterthwaite's degrees of freedom. docs/statistics.md has a simulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
"""(seeds, examples): 1 if an example is classified as labelled, else 0; or another number for each."""
Answers = Sequence[bool] | NDArray[np.bool_]  # (examples,): whether each is classified as labelled
Part = tuple[float, float]  # a variance and the degrees of freedom of its estimate


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

    A one-sided exact binomial test at (1 - confidence) / 2: the lower limit of Clopper and Pearson (1934, Biometrika
    26:404). It is valid for a single example as well.

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


def paired(first: Answers, second: Answers, confidence: float = CONFIDENCE) -> PairedDifference:
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
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    both, only_first, only_second, neither = (int(where.sum()) for where in (a & b, a & ~b, ~a & b, ~a & ~b))
    low, high = _newcombe(both, only_first, only_second, neither, confidence)
    p = mcnemar(only_first, only_second)
    return PairedDifference(
        n=n, only_first=only_first, only_second=only_second, low=low, high=high, p_value=p, confidence=confidence
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test that neither of two classifiers is better.

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
    margins, product = (a + b) * (c + d) * (a + c) * (b + d), a * d - b * c
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

    With one seed each and outcomes of 0 and 1 it is `paired`. Otherwise it is Student's interval over examples; from
    ENOUGH_SEEDS in each arm on, the variance over seeds is added, with the degrees of freedom of Satterthwaite (1946,
    Biometrics Bulletin 2:110).

    Args:
        first: (seeds, examples) outcomes of 0 and 1, or other numbers.
        second: The same for the other arm; its seeds may differ.

    Returns:
        The mean of the first minus that of the second, and the p-value of the hypothesis of no difference.
    """
    from scipy.special import stdtr  # slow to import

    value, parts = _difference(first, second)
    if len(first) == len(second) == 1 and np.isin([first, second], (0, 1)).all():
        one = paired(first[0] == 1, second[0] == 1)
        return Estimate(value=value, low=one.low, high=one.high), one.p_value
    variance, freedom = _sum(parts)
    p = 2 * float(stdtr(freedom, -abs(value) / math.sqrt(variance))) if variance else float(value == 0)
    return _student(value, parts), p


def share_of_difference(part: tuple[Columns, Columns], whole: tuple[Columns, Columns]) -> Estimate:
    """One difference of two arms as a share of another, such as a gain in the worst case of one under PGD.

    The interval holds each share r for which `part` - r * `whole` may be 0, by Student's interval as in
    `difference_of_arms` (Fieller 1954, JRSS B 16:175). An end beyond +-100 is infinite.

    Args:
        part: (seeds, examples) outcomes of the first and the second arm.
        whole: The same for the difference that is 1, which should be clear of 0.

    Returns:
        The share.
    """
    from scipy.optimize import brentq  # slow to import

    def apart(share: float) -> float:
        """Above 0 if `part` - `share` * `whole` is clear of 0."""
        first, second = (own - share * of_whole for own, of_whole in zip(part, whole, strict=True))
        found = _student(*_difference(first, second))
        return max(found.low, -found.high) - 1e-12

    value = _difference(*part)[0] / _difference(*whole)[0]
    low, high = (brentq(apart, value, end) if apart(end) > 0 else math.copysign(math.inf, end) for end in (-100, 100))
    return Estimate(value=value, low=low, high=high)


def images_for(first: Columns, second: Columns, half: float, beyond: float = 0.0) -> int | None:
    """The number of examples for which `difference_of_arms` has an interval of +- `half`, with the same seeds.

    With more examples their variance shrinks, also the part of it in the means of the seeds; the seeds' own does not.

    Args:
        first: (seeds, examples) outcomes.
        second: The same for the other arm.
        half: Half of the interval's length.
        beyond: What samples add to this half now. It shrinks with the root of the number, as the usual certainty does.

    Returns:
        The number, to 1 %; None if the spread of the seeds alone is too large for any number.
    """
    n, (_, ((variance, freedom), *seeds)) = first.shape[1], _difference(first, second)
    noise = [_of_examples(arm) for arm in (second, first) if seeds]

    def enough(times: float) -> bool:
        parts = [(max(v - r, 0) + min(v, r) / times, f) for (v, f), r in zip(seeds, noise, strict=True)]
        return _student(0.0, [(variance / times, freedom * times), *parts]).high + beyond / math.sqrt(times) <= half

    return next((math.ceil(n * 1.01**step) for step in range(-1000, 1500) if enough(1.01**step)), None)


def mean_over_images(values: Sequence[float]) -> Estimate:
    """The mean of one number for each image, with a normal interval over images.

    Args:
        values: One for each image: if it was measured several times, its own mean, since the outcomes are dependent.

    Returns:
        The mean.
    """
    centre = fmean(values)
    half = 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(value=centre, low=centre - half, high=centre + half)


def mean_over_seeds(columns: Columns) -> Estimate:
    """The mean over images and seeds. From ENOUGH_SEEDS seeds on, their spread widens the interval.

    Args:
        columns: (seeds, images), such as outcomes of 0 and 1.

    Returns:
        The mean, with Student's interval.
    """
    return _student(fmean(columns.mean(1).tolist()), _parts(columns.mean(0), columns))


def mean_over_pairs(differences: Sequence[Sequence[NDArray[np.float64]]]) -> Estimate:
    """The mean over pairs of methods, over sets of images. Pairs take the place of seeds.

    Args:
        differences: For each set of images, (n,) differences in [-1, 1] for each pair. Pairs of one set share its first
            images.

    Returns:
        The mean, with Student's interval.
    """
    means = [float(one.mean()) for of_set in differences for one in of_set]
    parts: list[Part] = [(stdev(means) ** 2 / len(means), len(means) - 1)]
    for of_set in differences:
        share = np.zeros(max(map(len, of_set)))  # weight of each image in the overall mean
        for one in of_set:
            share[: len(one)] += (one - one.mean()) / (len(one) * len(means))
        parts.append((float(share @ share), len(share) - 1))
    return _student(fmean(means), parts)


def bootstrap(
    statistic: Callable[..., Tensor], n: int, *, seed: int = 0, repeats: int = 2000, confidence: float = CONFIDENCE
) -> Estimate:
    """A percentile bootstrap (Efron 1979, Annals of Statistics 7:1) of any statistic.

    Args:
        statistic: Takes (R, n) float64 counts of how often each example was drawn, and returns (R,) values.
        n: Number of examples.
        seed: The draws depend only on it and on n.
        repeats: Number of resamples.
        confidence: In (0, 1).

    Returns:
        The statistic of the original sample, with its interval.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, n, "bootstrap"))
    found = []
    for chunk in torch.arange(repeats).split(max(1, 2_000_000 // n)):  # to save memory
        drawn = torch.randint(n, (len(chunk), n), generator=generator)
        counts = torch.zeros(len(chunk), n, dtype=torch.float64)
        found.append(statistic(counts.scatter_add_(1, drawn, torch.ones_like(counts))))
    low, high = np.quantile(torch.cat(found).numpy(), [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    value = float(statistic(torch.ones(1, n, dtype=torch.float64)))
    return Estimate(value=value, low=low, high=high, confidence=confidence)


def _parts(by_image: NDArray[np.float64], *arms: Columns) -> list[Part]:
    """The variance of a mean over images and then, with enough seeds in each arm, over the seeds of each."""
    images = float(by_image.var(ddof=1)) / by_image.size, by_image.size - 1
    enough = min(map(len, arms)) >= ENOUGH_SEEDS
    return [images, *((float(arm.mean(1).var(ddof=1)) / len(arm), len(arm) - 1) for arm in arms if enough)]


def _difference(first: Columns, second: Columns) -> tuple[float, list[Part]]:
    """The difference of two arms with its variances."""
    by_image = first.mean(0) - second.mean(0)
    return float(first.mean()) - float(second.mean()), _parts(by_image, second, first)


def _of_examples(arm: Columns) -> float:
    """The part of the variance over an arm's seeds that is due to the sampling of examples."""
    rest = arm - arm.mean(0) - arm.mean(1, keepdims=True) + arm.mean()
    return float((rest**2).sum()) / ((len(arm) - 1) * (arm.shape[1] - 1) * arm.size)


def _sum(parts: Sequence[Part]) -> Part:
    """The sum of variances, with Satterthwaite's degrees of freedom."""
    total = sum(variance for variance, _ in parts)
    below = sum(variance**2 / freedom for variance, freedom in parts if variance)
    return total, total**2 / below if below else math.inf


def _student(value: float, parts: Sequence[Part]) -> Estimate:
    from scipy.special import stdtrit  # slow to import

    variance, freedom = _sum(parts)
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Estimate(value=value, low=value - half, high=value + half)
