"""How often the intervals of `advsphere.stats` contain the truth, and what verdicts are given, in a simulation.

    python benchmarks/interval_coverage.py --write docs/statistics.md

An image of difficulty u is classified correctly by a network if a + e - u + w + v > 0. Here a belongs to the method,
e to the seed, w to the image under this method, and v to the image under this network. All but a are normal, with a
total variance of 1, so the method's accuracy is Phi(a). Both arms see the same images. In the worst case a is smaller,
so the images that resist it are among those that resist PGD.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from advsphere.cli.arguments import parse
from advsphere.comparison.gain import SHOWN, what_survives
from advsphere.reproduce.markdown import head, line
from advsphere.reproduce.results import write_between
from advsphere.stats import ENOUGH_SEEDS, Columns, Estimate, difference_of_arms, mean_over_pairs

DIFFICULTY, UNDER_METHOD = 0.9, 0.02
"""Shares of the variance. Two networks then disagree on a tenth of the images, as ours do in results/."""
BASELINE, WORST, GAIN = 0.30, 0.25, 0.08
"""Accuracy of the baseline under PGD and in the worst case, and the method's gain under PGD."""
SEEDS, IMAGES, SPREADS, SURVIVING = (1, 2, 3, 4, 5), (250, 1000, 10_000), (0.5, 1.0, 2.0), (0.0, 0.3, 0.6, 1.0)
PAIRS = 6


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Simulate, and print the tables."""

    write: Path | None = None
    """A page that gets the tables, between its markers."""
    trials: int = 2000
    """Trials of each line; half of them with 10,000 images."""
    seed: int = 0


class Trial(NamedTuple):
    """One draw of networks and images: (seeds, images) outcomes of the baseline and the method under PGD and in the
    worst case, and the gain of these checkpoints over all images under PGD.
    """

    before: tuple[Columns, Columns]
    after: tuple[Columns, Columns]
    of_checkpoints: float


def trial(rng: np.random.Generator, seeds: int, n: int, spread: float, survives: float = 1.0) -> Trial:
    """Draw networks and images. `spread` is the standard deviation over seeds in points of accuracy, and `survives` the
    share of the gain that remains in the worst case.
    """
    difficulty = rng.standard_normal(n, dtype=np.float32) * math.sqrt(DIFFICULTY)
    before, after, accuracies = [], [], []
    for accuracy, worst in ((BASELINE, WORST), (BASELINE + GAIN, WORST + survives * GAIN)):
        level = float(ndtri(accuracy))
        deviation = spread / 100 * math.sqrt(2 * math.pi) * math.exp(level**2 / 2)
        of_seed = rng.standard_normal((seeds, 1)) * deviation
        own = rng.standard_normal((seeds, n), dtype=np.float32)
        own *= math.sqrt(1 - deviation**2 - DIFFICULTY - UNDER_METHOD)
        under_method = rng.standard_normal(n, dtype=np.float32) * math.sqrt(UNDER_METHOD)
        margin = own + under_method - difficulty + of_seed.astype(np.float32)
        before.append((margin > -level).astype(float))
        after.append((margin > -float(ndtri(worst))).astype(float))
        accuracies.append(float(ndtr((level + of_seed) / math.sqrt(1 - deviation**2)).mean()))
    return Trial((before[0], before[1]), (after[0], after[1]), accuracies[1] - accuracies[0])


def welch(first: Columns, second: Columns) -> Estimate:
    """The interval of version 0.2: the same sum of variances, with Welch's degrees of freedom of the seeds alone."""
    parts = [(float(arm.mean(1).var(ddof=1)) / len(arm), len(arm) - 1) for arm in (first, second)]
    over_seeds = sum(variance for variance, _ in parts)
    by_image = first.mean(0) - second.mean(0)
    freedom = over_seeds**2 / max(sum(variance**2 / f for variance, f in parts), 1e-300)
    return _around(first, second, over_seeds + float(by_image.var(ddof=1)) / by_image.size, freedom)


def crossed(first: Columns, second: Columns) -> Estimate:
    """The crossed model of seeds and images: the part that both variances contain is subtracted once."""
    by_image = first.mean(0) - second.mean(0)
    of_images = float(by_image.var(ddof=1)) / by_image.size
    total, below = of_images, of_images**2 / (by_image.size - 1)
    for arm in (first, second):
        rest = arm - arm.mean(0) - arm.mean(1)[:, None] + arm.mean()
        freedom = (arm.shape[0] - 1) * (arm.shape[1] - 1)
        of_seeds, twice = float(arm.mean(1).var(ddof=1)) / len(arm), float((rest**2).sum()) / freedom / arm.size
        total += of_seeds - twice
        below += of_seeds**2 / (len(arm) - 1) + twice**2 / freedom
    total = max(total, of_images)
    return _around(first, second, total, max(total**2 / below, 1))


def _around(first: Columns, second: Columns, variance: float, freedom: float) -> Estimate:
    value = float(first.mean() - second.mean())
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(variance)
    return Estimate(value=value, low=value - half, high=value + half)


def resampled(rng: np.random.Generator, first: Columns, second: Columns, repeats: int = 400) -> Estimate:
    """A percentile bootstrap over images and over the seeds of each arm."""
    n, both = first.shape[1], np.concatenate([first, second])
    # Images with the same outcomes are interchangeable, so only the count of each kind is drawn.
    _, places, counts = np.unique(2.0 ** np.arange(len(both)) @ both, return_index=True, return_counts=True)
    images = rng.multinomial(n, counts / n, size=repeats) / n
    means = []
    for arm in (first[:, places], second[:, places]):
        drawn = rng.multinomial(len(arm), np.full(len(arm), 1 / len(arm)), size=repeats) / len(arm)
        means.append((images @ arm.T * drawn).sum(1))
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return Estimate(value=float(first.mean() - second.mean()), low=float(low), high=float(high))


class Tally:
    """Of the intervals of one method: how many contain the truth, how many are clear of 0, and their widths."""

    def __init__(self) -> None:
        self.inside = self.clear = self.count = 0
        self.width = 0.0

    def add(self, found: Estimate, truth: float) -> None:
        self.count += 1
        self.inside += found.low <= truth <= found.high
        self.clear += found.low > 0
        self.width += found.high - found.low

    @property
    def cells(self) -> list[str]:
        return [_percent(self.inside, self.count), f"{100 * self.width / self.count:.1f}"]


def few_seeds(rng: np.random.Generator, seeds: int, n: int, spread: float, trials: int) -> list[str]:
    """Intervals over images alone, of the checkpoints: a line of the first table."""
    checkpoints, method = Tally(), Tally()
    for _ in range(trials):
        one = trial(rng, seeds, n, spread)
        found, _ = difference_of_arms(*one.before[::-1])
        checkpoints.add(found, one.of_checkpoints)
        method.add(found, GAIN)
    return [*checkpoints.cells, _percent(checkpoints.clear, trials), method.cells[0]]


def many_seeds(rng: np.random.Generator, seeds: int, n: int, spread: float, trials: int) -> list[str]:
    """Intervals over images and seeds, of the method: a line of the second table."""
    tallies = {name: Tally() for name in ("ours", "welch", "crossed", "bootstrap")}
    for number in range(trials):
        arms = trial(rng, seeds, n, spread).before[::-1]
        tallies["ours"].add(difference_of_arms(*arms)[0], GAIN)
        tallies["welch"].add(welch(*arms), GAIN)
        tallies["crossed"].add(crossed(*arms), GAIN)
        if number < 200:  # it takes most of the time
            tallies["bootstrap"].add(resampled(rng, *arms), GAIN)
    ours, before, *others = tallies.values()
    clear = [[_percent(one.clear, trials)] for one in (ours, before)]
    return [*ours.cells, *clear[0], *before.cells, *clear[1], *(cell for one in others for cell in one.cells)]


def verdicts(rng: np.random.Generator, seeds: int, n: int, survives: float, trials: int) -> list[str]:
    """How often each verdict is given if so much of the gain survives: a line of the third table."""
    said: Counter[str] = Counter()
    for _ in range(trials):
        one = trial(rng, seeds, n, 1.0 if seeds >= ENOUGH_SEEDS else 0.0, survives=survives)
        said[what_survives(one.before, one.after)[1]] += 1
    true = {"more than half survives": survives > 0.5, "some survives": survives > 0,
            "some survives, less than half": 0 < survives < 0.5, "less than half survives": survives < 0.5,
            "turns into a loss": survives < 0}  # fmt: skip
    wrong = sum(said[verdict] for verdict in SHOWN if not true[verdict])
    return [*(_percent(said[verdict], trials) for verdict in (*SHOWN, "cannot tell")), _percent(wrong, trials)]


def together(rng: np.random.Generator, n: int, spread: float, trials: int) -> list[str]:
    """The mean over pairs whose true gains differ from pair to pair: a line of the last table."""
    tally = Tally()
    for _ in range(trials):
        difficulty = rng.standard_normal(n) * math.sqrt(DIFFICULTY)
        pairs = []
        for gain in GAIN / 2 + spread / 100 * rng.standard_normal(PAIRS):
            levels = [-float(ndtri(BASELINE)), -float(ndtri(BASELINE + gain))]
            plain, sphere = (
                difficulty + rng.standard_normal(n) * math.sqrt(1 - DIFFICULTY) < -level for level in levels
            )
            pairs.append(sphere.astype(float) - plain.astype(float))
        tally.add(mean_over_pairs([pairs]), GAIN / 2)
    return tally.cells


def _percent(k: int, of: int) -> str:
    return f"{100 * k / of:.1f}"


class Simulated(NamedTuple):
    """A table: its caption, its heads, the settings of each line, and the function that simulates a line."""

    caption: str
    heads: tuple[str, ...]
    settings: tuple[tuple[float, ...], ...]
    simulate: Callable[..., list[str]]

    def line(self, settings: Sequence[float], trials: int, seed: int) -> list[str]:
        """The cells of a line after its settings. Each line has its own draws."""
        rng = np.random.default_rng([seed, *(round(10 * value) for value in settings)])
        trials = trials if max(settings) < max(IMAGES) else trials // 2
        return self.simulate(rng, *settings, trials)


def _grid(*values: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    return tuple(product(*values))


_SETTINGS = ("seeds", "images", "spread of seeds")
_MANY = (*_SETTINGS, "contains the gain", "width", "clear of 0", "0.2: contains", "width", "clear of 0",
         "crossed: contains", "width", "bootstrap: contains", "width")  # fmt: skip
TABLES = (
    Simulated(
        "**One and two seeds.** The interval covers images, so it is one for the gain of these checkpoints. The last "
        "column shows how often it contains the gain of the method.",
        (*_SETTINGS, "contains the checkpoints' gain", "width", "clear of 0", "contains the method's gain"),
        _grid(SEEDS[: ENOUGH_SEEDS - 1], IMAGES, SPREADS),
        few_seeds,
    ),
    Simulated(
        "**Three seeds and more.** The interval covers images and seeds, so it is one for the gain of the method. "
        "Beside it stand that of version 0.2, that of the crossed model, and a bootstrap.",
        _MANY,
        _grid(SEEDS[ENOUGH_SEEDS - 1 :], IMAGES, SPREADS),
        many_seeds,
    ),
    Simulated(
        "**Verdicts**, by the share of the gain that survives: how often each is given, and how often it is false. The "
        "spread of three seeds is 1 point; with one seed it is 0, so that the share of the checkpoints is known.",
        ("seeds", "images", "survives", *SHOWN, "cannot tell", "false"),
        _grid((1, 3), IMAGES, SURVIVING),
        verdicts,
    ),
    Simulated(
        f"**The mean over {PAIRS} pairs**, each of one network with and without HE, on the same images. The spread is "
        "that of the pairs' true gains.",
        ("images", "spread of pairs", "contains the mean gain", "width"),
        _grid(IMAGES, (0.0, 1.0, 2.0)),
        together,
    ),
)


def main() -> None:
    """Simulate every table."""
    options = parse(Arguments, sys.argv[1:], prog="interval_coverage.py")
    parts = []
    for table in TABLES:
        lines = [
            line([*(f"{value:,g}" for value in settings), *table.line(settings, options.trials, options.seed)])
            for settings in table.settings
        ]
        parts.append("\n".join([table.caption, "", *head(table.heads), *lines]))
        print(parts[-1], flush=True)
    if options.write is not None:
        write_between(options.write, "\n\n".join(parts))


if __name__ == "__main__":
    main()
