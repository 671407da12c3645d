"""All pairs of all tables: what each gains and keeps, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from advsphere.evaluation import WORST, Survival
from advsphere.evaluation.survival import BARE, ENOUGH_SEEDS
from advsphere.reproduce.cells import Pair, pairs
from advsphere.reproduce.groups import Group, groups_of
from advsphere.reproduce.markdown import line, rule
from advsphere.reproduce.tables import TABLES, Table
from advsphere.results import Row


class Compared(NamedTuple):
    """A pair of a table, and what it gains."""

    table: Table
    group: Group
    pair: Pair
    gains: Survival


def overview(files: Mapping[Path, Sequence[Row]]) -> list[str]:
    """Every pair of every table in a line: what it gains under the headline's attack, and in the worst case."""
    heads = [
        "table",
        "method",
        "network, images",
        "weight decay",
        "seeds",
        "n",
        "gain under the headline",
        "in the worst case",
    ]
    lines = ["## Every pair", "", "Points, with 95 % intervals.", "", *rule([*heads, "share left", "verdict"])]
    every = list(_every(files))
    lines += [line(_told(*one)) for one in every]
    return [*lines, "", *_together(every)]


def _every(files: Mapping[Path, Sequence[Row]]) -> Iterator[Compared]:
    for table in TABLES.values():
        for rows in files.values():
            for group in groups_of(table, rows):
                yield from (Compared(table, group, pair, pair.gains) for pair in pairs(group, table) if pair.gains)


def _told(table: Table, group: Group, pair: Pair, gains: Survival) -> list[str]:
    decay = [] if group.weight_decay is None else [f"{group.weight_decay:g}"]
    decay += ["each its best"] if group.at_its_best(pair.method) and group.at_its_best(pair.baseline) else []
    before, after = gains.gain(gains.pgd), gains.gain(WORST)
    points = [f"{100 * g.difference:+.1f} ({100 * g.low:+.1f} to {100 * g.high:+.1f})" for g in (before, after)]
    share = "" if gains.share is None else "{:.0f} % ({:.0f} to {:.0f})".format(*(100 * part for part in gains.share))
    images = f"{group.network}, {group.data}" + ", last checkpoint" * (group.checkpoint == "last")
    seeds = f"{gains.seeds[0]}" if gains.seeds[0] == gains.seeds[1] else f"{gains.seeds[0]}, {gains.seeds[1]}"
    link = f"[{table.name}]({table.name}.md)"
    points[0] = f"{gains.pgd}: {points[0]}"
    return [link, pair.method, images, ", ".join(decay), seeds, str(gains.n), *points, share, gains.verdict]


def _together(every: Sequence[Compared]) -> list[str]:
    """Mean gains over the objectives in which HE was measured on one network at one weight decay, each the mean of its
    seeds and one observation; nothing where there are fewer than three.
    """
    found: dict[tuple[str, float], dict[tuple[str, str], Survival]] = {}
    for _, group, pair, gains in every:
        if (
            pair.method.endswith("+HE")
            and gains.pgd.endswith(BARE)
            and group.weight_decay
            and group.checkpoint == "best"
        ):
            of_objectives = found.setdefault((group.network, group.weight_decay), {})
            of_objectives.setdefault((pair.method, group.data), gains)  # the first table that has it
    lines = []
    for (network, decay), objectives in found.items():
        if len(objectives) >= ENOUGH_SEEDS:
            before = [gains.gain(gains.pgd).difference for gains in objectives.values()]
            after = [gains.gain(WORST).difference for gains in objectives.values()]
            names = ", ".join(f"{name} on {data}" for name, data in objectives)
            lines.append(line([f"{network}, {decay:g}", names, mean_told(before), mean_told(after)]))
    told = (
        "The mean over objectives, each of which counts once with the mean of its seeds in the first table above that "
        "has it; the intervals are over objectives (Student's t), and say nothing of the images that all were judged "
        "on."
    )
    heads = ["network, weight decay", "objectives", "gain at s = 1", "in the worst case"]
    return ["## Together", "", told, "", *rule(heads), *lines] if lines else []


def mean_told(values: Sequence[float]) -> str:
    """The mean of at least two values in [-1, 1] in points, with its 95 % interval by Student's t."""
    from scipy.stats import t  # slow to import

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    mean = fmean(values)
    return f"{100 * mean:+.1f} ({100 * (mean - half):+.1f} to {100 * (mean + half):+.1f})"
