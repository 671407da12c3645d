"""A table's cells and differences: each computed from stored outcomes, beside the paper's number if there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from advsphere.comparison.gain import BARE, Gains, measure_gains, row_for
from advsphere.errors import UserError
from advsphere.evaluation.results import WORST, Evaluation
from advsphere.reproduce.groups import WEIGHT_DECAY, Group, confounders, groups_of
from advsphere.reproduce.results import StoredResult
from advsphere.reproduce.tables import TABLES, Table
from advsphere.stats import Estimate, mean_over_pairs, mean_over_seeds, wilson

FEWEST_PAIRS = 3
"""Pairs from which on a mean over them is shown."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method's accuracy under one attack, in [0, 1]: of each seed, with a 95 % interval over images and, from three
    seeds on, over seeds; and the paper's, if it has one.
    """

    seeds: tuple[float, ...]
    low: float
    high: float
    paper: float | None

    @property
    def value(self) -> float:
        """The mean over seeds."""
        return fmean(self.seeds)


def entry(group: Group, name: str, attack: str, table: Table) -> Entry | None:
    """A table's entry; None if no run of the method has that row. A plain head's rows stand for those "(s = 1)"."""
    columns = _columns(group.evaluations(name), attack)
    if columns is None:
        return None
    if len(columns) == 1:
        low, high = wilson(int(columns.sum()), columns.size)
    else:
        found = mean_over_seeds(columns)
        low, high = max(0.0, found.low), min(1.0, found.high)
    paper = table.printed(name, group.network).get(table.columns.get(attack, ""))
    seeds = tuple(float(accuracy) for accuracy in columns.mean(1))
    return Entry(seeds=seeds, low=low, high=high, paper=None if paper is None else paper / 100)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A method beside its baseline, on one network. Only shared seeds are compared; `refused` says why not."""

    baseline: str
    method: str
    network: str
    seeds: tuple[int, ...]
    gains: Gains | None
    refused: str = ""


def pairs(group: Group, table: Table) -> list[Pair]:
    """Every pair of the table of which the group has both arms."""
    names = [(base.name, method.name) for base, method in table.pairs]
    return [_pair(group, *both, table) for both in names if group.arms.keys() >= {*both}]


def _pair(group: Group, baseline: str, method: str, table: Table) -> Pair:
    seeds = [{one.run["seed"] for one in group.arms[name]} for name in (baseline, method)]
    shared = tuple(sorted(seeds[0] & seeds[1]))
    pair = partial(Pair, baseline=baseline, method=method, network=group.network, seeds=shared)
    if not shared:
        return pair(gains=None, refused="they share no seed")
    first, second = (confounders(group.arms[name][0].run) for name in (baseline, method))
    if group.weight_decay is None:  # arms at their best weight decay may differ in it
        first.pop(WEIGHT_DECAY, None)
        second.pop(WEIGHT_DECAY, None)
    if differ := {*first.values()} ^ {*second.values()}:
        return pair(gains=None, refused="; ".join(sorted(differ)))
    headline = next((attack for attack in table.headlines if attack in group.attacks()), None)
    arms = (group.evaluations(name, shared) for name in (baseline, method))
    try:
        return pair(gains=measure_gains(*arms, pgd=headline))
    except UserError as error:
        return pair(gains=None, refused=str(error))


def by_image(group: Group, pair: Pair, attack: str) -> NDArray[np.float64]:
    """(images,): the method's outcomes less the baseline's, in [-1, 1], the mean over shared seeds."""
    columns = [_columns(group.evaluations(name, pair.seeds), attack) for name in (pair.method, pair.baseline)]
    method, baseline = (of_arm.mean(0) for of_arm in columns if of_arm is not None)
    return np.asarray(method - baseline)


def _columns(evaluations: Sequence[Evaluation], attack: str) -> NDArray[np.float64] | None:
    """(seeds, images) of 0 and 1; None if no evaluation has that row."""
    rows = [row for evaluation in evaluations if (row := row_for(evaluation, attack)) is not None]
    return np.array([[c == "1" for c in row.outcomes] for row in rows], dtype=float) if rows else None


def paper_gain(table: Table, baseline: str, method: str, attack: str, network: str = "") -> float | None:
    """The paper's method less its baseline in the column beside our attack, in [-1, 1].

    For the worst case, the difference of the lowest columns of each, if the table has more than two attacks.
    """
    plain, sphere = (table.printed(name, network) for name in (baseline, method))
    columns = [table.columns.get(attack, "")]
    if attack == WORST:
        columns = [column for column in table.columns.values() if column != "clean"]
        columns = columns if len(columns) > 2 else [""]
    if not all(column in row for column in columns for row in (plain, sphere)):
        return None
    return (min(sphere[column] for column in columns) - min(plain[column] for column in columns)) / 100


def paper_survival(table: Table) -> list[str]:
    """For each pair with HE, the paper's gain under the headline's attack and in its lowest column."""
    lines = []
    with_he = ((base, method) for base, method in table.pairs if not base.variant)
    for (plain, sphere), headline in product(with_he, table.headlines):
        before, after = (paper_gain(table, plain.name, sphere.name, a) for a in (headline, WORST))
        if before is not None and after is not None:
            under = table.columns[headline]
            lines.append(f"{sphere.name} {100 * before:+.2f} under {under}, {100 * after:+.2f} in the worst column")
    return lines


class Comparison(NamedTuple):
    """A pair of a table, and what it gains."""

    table: Table
    group: Group
    pair: Pair
    gains: Gains

    @property
    def at_their_best(self) -> bool:
        """Whether held-out training images chose both arms' weight decay among several."""
        return self.group.at_its_best(self.pair.method) and self.group.at_its_best(self.pair.baseline)


class Family(NamedTuple):
    """HE with several objectives on one network, all at one weight decay, or each arm at its best. `members` holds each
    objective once for each set of images and threat.
    """

    network: str
    weight_decay: str
    members: tuple[Comparison, ...]

    def mean(self, attack: str | None = None) -> Estimate:
        """The mean gain over the members, under the headline's attack or a named one."""
        images: dict[str, list[NDArray[np.float64]]] = {}
        for one in self.members:
            found = by_image(one.group, one.pair, attack or one.gains.pgd)
            images.setdefault(one.group.data, []).append(found)
        return mean_over_pairs(list(images.values()))


def comparisons(files: Mapping[Path, Sequence[StoredResult]]) -> list[Comparison]:
    """Every measured pair of every table, once: not again where both arms are at their best weight decay and it is the
    same. `files` holds the results by their file.
    """
    found: list[Comparison] = []
    for table in TABLES.values():
        of_table: list[Pair] = []
        for group in (group for results in files.values() for group in groups_of(table, results)):
            for pair in pairs(group, table):
                again = group.weight_decay is None and pair in of_table
                if pair.gains is not None and not again:
                    of_table.append(pair)
                    found.append(Comparison(table, group, pair, pair.gains))
    return found


def families(every: Sequence[Comparison]) -> list[Family]:
    """The families of three members or more. An objective is taken from the first table that has it, at its best
    checkpoint, if that table attacks bare cosines.
    """
    found: dict[tuple[str, str], dict[tuple[str, ...], Comparison]] = {}
    for one in every:
        with_he = one.pair.method == f"{one.pair.baseline}+HE"
        if with_he and one.gains.pgd.endswith(BARE) and one.group.checkpoint == "best":
            kinds = [] if one.group.weight_decay is None else [f"{one.group.weight_decay:g}"]
            for kind in [*kinds, *(["each its best"] if one.at_their_best else [])]:
                members = found.setdefault((one.group.network, kind), {})
                members.setdefault((one.pair.method, one.group.data, one.group.threat), one)
    made = [Family(network, kind, tuple(members.values())) for (network, kind), members in found.items()]
    return [family for family in made if len(family.members) >= FEWEST_PAIRS]


def largest(found: Sequence[Family]) -> Family | None:
    """The family with most members, the first of several."""
    return max(found, key=lambda family: len(family.members), default=None)
