"""How often the interval of a gain contains the truth if attacks ran on a sample, in a simulation that hides images.

    python benchmarks/comparison_coverage.py --write docs/statistics.md

Networks and images are those of `interval_coverage.py`. The search leaves the survivors of the worst case, and the
sampled attacks would fool some of them: none, or in one arm or both so many that a first look most often claims too
little, just above its limit. Each arm is sampled as `advsphere compare` does it, both in the same random order.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from interval_coverage import GAIN, WORST, Tally, trial

from advsphere.cli.arguments import parse
from advsphere.evaluation.sampling import Bound, usual_certainty
from advsphere.evaluation.unsampled import Bounds, covering_difference, covering_share
from advsphere.looks import looks, most_with
from advsphere.reproduce.markdown import head, line
from advsphere.reproduce.results import write_between
from advsphere.stats import CONFIDENCE, Columns, difference_of_arms

HIDDEN = ("no arm", "the method", "the baseline", "both")
HEADS = ("seeds", "images", "certainty", "misses images in", "contains the gain", "width", "contains the share",
         "the sample taken for all: contains the gain", "width", "sampled")  # fmt: skip
SETTINGS = (
    *product((1,), (250,), (0.5, 1.0), ("no arm", "the method")),
    *product((1,), (1000,), (0.5,), HIDDEN),
    *product((1,), (1000,), (1.0, 10.0), ("no arm", "the method")),
    *product((3,), (1000,), (0.5,), HIDDEN),
    *product((1,), (10_000,), (0.5, 1.0), ("no arm", "the method")),
)
"""Seeds, images, the certainty as a multiple of the usual one, and where the search misses images."""
MARKERS = {"begin": "<!-- comparison -->", "end": "<!-- /comparison -->"}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Simulate, and print the table."""

    write: Path | None = None
    """A page that gets the table, between its markers."""
    trials: int = 4000
    """Trials of each line; a quarter of them with 10,000 images. An eighth of them measure the share."""
    seed: int = 0


class Sampled(NamedTuple):
    """An arm after its sample: the outcomes, the bound of each seed, and the share of the survivors that was tried."""

    outcomes: Columns
    bounds: Bounds
    tried: float


@cache
def hardest(survivors: int, certainty: float, n: int) -> float:
    """The share of the survivors that would fall, just above what a first look without any claims at 97.5 %."""
    look = next(looks(survivors, math.floor(certainty * n / 100 + 1e-9)))
    return (most_with(0, look.size, survivors, look.error / 2) + 1) / survivors if look.size < survivors else 0.0


def sampled(rng: np.random.Generator, left: Columns, share: float, certainty: float, order: np.ndarray) -> Sampled:
    """Let so many survivors of the search fall in the sampled attacks, which try them in this order as planned."""
    outcomes, bounds, tried, n = left.copy(), [], 0.0, left.shape[1]
    for row in outcomes:
        survivors = order[row[order] == 1]
        falls = rng.random(len(survivors)) < share
        look, hits = next(
            (look, hits)
            for look in looks(len(survivors), math.floor(certainty * n / 100 + 1e-9))
            if (hits := int(falls[: look.size].sum())) <= look.hits or look.size == len(survivors)
        )
        row[survivors[: look.size][falls[: look.size]]] = 0
        bounds.append(Bound(certainty=certainty, survivors=len(survivors), sampled=look.size, fell=hits, most=0, n=n,
                            confidence=CONFIDENCE, looks=((look.size, hits),)))  # fmt: skip
        tried += look.size / max(1, len(survivors)) / len(left)
    return Sampled(outcomes, bounds, tried)


class Comparison(NamedTuple):
    """What `compare` would see of two arms, and the truth.

    `before` and `after` are the outcomes of the baseline and the method under PGD and in the worst case.
    """

    before: tuple[Columns, Columns]
    after: tuple[Columns, Columns]
    bounds: tuple[Bounds, Bounds]
    gain: float
    tried: float


def comparison(rng: np.random.Generator, seeds: int, n: int, times: float, where: str) -> Comparison:
    """Draw networks, images and samples."""
    certainty = usual_certainty(n) * times
    rates = [
        hardest(round(accuracy * n), certainty, n) if where in (arm, "both") else 0.0
        for arm, accuracy in (("the baseline", WORST), ("the method", WORST + GAIN))
    ]
    one = trial(rng, seeds, n, 1.0 if seeds > 1 else 0.0)
    order = rng.permutation(n)
    baseline, method = (sampled(rng, *arm, certainty, order) for arm in zip(one.after, rates, strict=True))
    gain = (WORST + GAIN) * (1 - rates[1]) - WORST * (1 - rates[0])
    after, bounds = (baseline.outcomes, method.outcomes), (baseline.bounds, method.bounds)
    return Comparison(one.before, after, bounds, gain, (baseline.tried + method.tried) / 2)


def measured(seeds: int, n: int, times: float, where: str, trials: int, seed: int) -> list[str]:
    """A line of the table after its settings."""
    rng = np.random.default_rng([seed, seeds, n, round(100 * times), HIDDEN.index(where)])
    ours, share, naive, tried = Tally(), Tally(), Tally(), 0.0
    for number in range(trials):
        one = comparison(rng, seeds, n, times, where)
        ours.add(covering_difference(*one.after[::-1], one.bounds[::-1])[0], one.gain)
        naive.add(difference_of_arms(*one.after[::-1])[0], one.gain)
        if number < trials // 8:  # it takes most of the time
            share.add(covering_share(one.after[::-1], one.before[::-1], one.bounds[::-1]), one.gain / GAIN)
        tried += one.tried
    return [*ours.cells, share.cells[0], *naive.cells, f"{100 * tried / trials:.0f} %"]


def main(options: Arguments) -> None:
    lines = head(HEADS)
    print("\n".join(lines), flush=True)
    for seeds, n, times, where in SETTINGS:
        trials = options.trials if n < 10_000 else options.trials // 4
        cells = [str(seeds), f"{n:,}", f"{usual_certainty(n) * times:.2g}", where]
        lines.append(line([*cells, *measured(seeds, n, times, where, trials, options.seed)]))
        print(lines[-1], flush=True)
    if options.write is not None:
        write_between(options.write, "\n".join(lines), **MARKERS)


if __name__ == "__main__":
    main(parse(Arguments, sys.argv[1:], prog="comparison_coverage.py"))
