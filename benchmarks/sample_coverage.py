"""How often the bound of `advsphere.looks` holds, in a simulation that also picks the hardest populations.

    python benchmarks/sample_coverage.py --write docs/statistics.md

A population of survivors has a number of members that would fall. A run draws a random order, looks at its first
members as planned, and claims a bound at the look at which it stops. The claim is false if more of the others would
fall. The hardest numbers lie just above the limit of a look, where a false claim is most likely.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from advsphere.cli.arguments import parse
from advsphere.looks import Look, looks, most_with
from advsphere.reproduce.markdown import head, line
from advsphere.reproduce.results import write_between

QUESTIONS = ((500, 10), (500, 5), (215, 10), (5000, 50), (5000, 25), (2150, 50), (60, 3))
"""Survivors, and how many of them may be left."""
HEADS = (
    "survivors",
    "may be left",
    "all populations",
    "hardest",
    "would fall there",
    "sample if none fall",
    "if half fall",
)
MARKERS = {"begin": "<!-- sample -->", "end": "<!-- /sample -->"}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Simulate, and print the table."""

    write: Path | None = None
    """A page that gets the table, between its markers."""
    trials: int = 2000
    """Populations of a line, and runs on each of the hardest."""
    seed: int = 0


limit = cache(most_with)


@cache
def plan(population: int, allowed: int) -> tuple[Look, ...]:
    return tuple(looks(population, allowed))


def stopped(rng: np.random.Generator, population: int, allowed: int, having: int) -> tuple[Look, int]:
    """The look at which a run stops, and how many of its sample fell."""
    size = fell = 0
    for look in plan(population, allowed):
        if look.hits < fell:
            continue
        if look.size > size:
            fell += int(rng.hypergeometric(having - fell, population - size - having + fell, look.size - size))
        size = look.size
        if fell <= look.hits:
            return look, fell
    raise AssertionError("the last look stops")


def wrong(population: int, having: int, look: Look, fell: int) -> bool:
    """Whether more would fall than the bound of this look says."""
    return having > limit(fell, look.size, population, look.error)


def hardest(population: int, allowed: int) -> list[int]:
    """Just above the limit of each look, and of all looks that allow as many."""
    limits = {most_with(look.hits, look.size, population, look.error) + 1 for look in plan(population, allowed)[:-1]}
    return sorted({k for limit in limits for k in (limit, limit + 1) if k <= population})


def false_claims(rng: np.random.Generator, population: int, allowed: int, having: int, trials: int) -> float:
    """The share of runs on one population that claim too little."""
    runs = (stopped(rng, population, allowed, having) for _ in range(trials))
    return sum(wrong(population, having, *run) for run in runs) / trials


def measured(population: int, allowed: int, options: Arguments) -> list[str]:
    """A line of the table. Half of the populations are drawn from the hardest, a quarter is honest."""
    rng = np.random.default_rng([options.seed, population, allowed])
    hard, false = hardest(population, allowed), 0
    for i in range(options.trials):
        having = int(rng.choice(hard) if i % 2 else rng.integers(0, (population if i % 4 else allowed) + 1))
        false += wrong(population, having, *stopped(rng, population, allowed, having))
    worst, having = max((false_claims(rng, population, allowed, k, options.trials), k) for k in hard)
    sizes = [stopped(rng, population, allowed, would)[0].size for would in (0, population // 2)]
    shares = [f"{100 * (1 - false / options.trials):.1f}", f"{100 * (1 - worst):.1f}", f"{having:,}"]
    return [f"{population:,}", str(allowed), *shares, *(f"{size:,}" for size in sizes)]


def main(options: Arguments) -> None:
    lines = [*head(HEADS), *(line(measured(*question, options)) for question in QUESTIONS)]
    print("\n".join(lines))
    if options.write is not None:
        write_between(options.write, "\n".join(lines), **MARKERS)


if __name__ == "__main__":
    main(parse(Arguments, sys.argv[1:], prog="sample_coverage.py"))
