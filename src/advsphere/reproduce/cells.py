"""A table's cells and differences, computed from stored outcomes, with the paper's numbers if it has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from advsphere.comparison.gain import BARE, Gains, measure_gains, row_for
from advsphere.errors import UserError
from advsphere.evaluation.results import WORST, Evaluation
from advsphere.evaluation.rows import columns_of
from advsphere.reproduce.groups import WEIGHT_DECAY, Group, confounders, groups_of
from advsphere.reproduce.results import StoredResult
from advsphere.reproduce.tables import TABLES, Table
from advsphere.stats import Columns, Estimate, mean_over_pairs, mean_over_seeds, wilson

FEWEST_PAIRS = 3
"""A mean over pairs is shown for this many pairs or more."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method's accuracy under one attack, in [0, 1]: the mean over seeds with its 95 % interval, and each seed's.

    `paper` is the paper's number, if it has one.
    """

    value: float
    seeds: tuple[float, ...]
    low: float
    high: float
    paper: float | None


def entry(group: Group, name: str, attack: str, table: Table) -> Entry | None:
    """A table's entry; None if no run of the method has that row. See `row_for` for plain heads."""
    columns = _columns(group.evaluations(name), attack)
    if columns is None:
        return None
    mean = mean_over_seeds(columns)
    low, high = max(0.0, mean.low), min(1.0, mean.high)
    if len(columns) == 1:
        low, high = wilson(int(columns.sum()), columns.size)
    paper = table.printed(name, group.network).get(table.columns.get(attack, ""))
    seeds = tuple(float(accuracy) for accuracy in columns.mean(1))
    return Entry(value=mean.value, seeds=seeds, low=low, high=high, paper=None if paper is None else paper / 100)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A method of a table and its baseline in one group, the seeds that both have, and the gains on these seeds."""

    table: Table
    group: Group
    baseline: str
    method: str
    seeds: tuple[int, ...]
    gains: Gains

    @property
    def at_their_best(self) -> bool:
        """Whether held-out training images chose both arms' weight decay among several."""
        return self.group.at_its_best(self.method) and self.group.at_its_best(self.baseline)

    @property
    def evidence(self) -> frozenset[str]:
        """The checksums of the ledgers of both arms."""
        arms = (self.group.evaluations(name, self.seeds) for name in (self.baseline, self.method))
        return frozenset(one.ledger for arm in arms for one in arm)

    def by_image(self, attack: str) -> NDArray[np.float64]:
        """(images,): the method's outcomes minus the baseline's, in [-1, 1], averaged over shared seeds."""
        return np.asarray(self.by_seed(attack, self.seeds).mean(0))

    def by_seed(self, attack: str, seeds: Sequence[int]) -> NDArray[np.float64]:
        """(seeds, images): the method's outcomes minus the baseline's for each of these seeds."""
        columns = (_columns(self.group.evaluations(n, seeds), attack) for n in (self.method, self.baseline))
        method, baseline = (of_arm for of_arm in columns if of_arm is not None)
        return np.asarray(method - baseline)

    def paper_gain(self, attack: str) -> float | None:
        """The paper's gain for this pair; see the function `paper_gain`."""
        return paper_gain(self.table, self.baseline, self.method, attack, self.group.network)


def pairs(group: Group, table: Table) -> tuple[list[Pair], list[str]]:
    """The table's pairs for which the group has both arms, and a sentence for each pair that is not comparable."""
    found, refused = [], []
    for baseline, method in ((base.name, method.name) for base, method in table.pairs):
        if group.arms.keys() >= {baseline, method}:
            try:
                found.append(_pair(group, table, baseline, method))
            except UserError as error:
                refused.append(f"{method} and {baseline} are not compared: {error}.")
    return found, refused


def _pair(group: Group, table: Table, baseline: str, method: str) -> Pair:
    """Raises UserError if the arms share no seed, or differ in more than the method."""
    seeds = [{one.run["seed"] for one in group.arms[name]} for name in (baseline, method)]
    shared = tuple(sorted(seeds[0] & seeds[1]))
    if not shared:
        raise UserError("they share no seed")
    first, second = (confounders(group.arms[name][0].run) for name in (baseline, method))
    if group.weight_decay is None:  # arms at their best weight decay may differ in it
        first.pop(WEIGHT_DECAY, None)
        second.pop(WEIGHT_DECAY, None)
    if differ := {*first.values()} ^ {*second.values()}:
        raise UserError("; ".join(sorted(differ)))
    arms = [group.evaluations(name, shared) for name in (baseline, method)]
    if any(row.sampled for arm in arms for one in arm for row in one.attacks):
        raise UserError("attacks ran on a sample of the images; evaluate both without a certainty")
    headline = next((attack for attack in table.headlines if attack in group.attacks()), None)
    gains = measure_gains(*arms, pgd=headline)
    return Pair(table=table, group=group, baseline=baseline, method=method, seeds=shared, gains=gains)


def _columns(evaluations: Sequence[Evaluation], attack: str) -> Columns | None:
    """(seeds, images) of 0 and 1; None if no evaluation has that row."""
    rows = [row for evaluation in evaluations if (row := row_for(evaluation, attack)) is not None]
    return columns_of(rows) if rows else None


def paper_gain(table: Table, baseline: str, method: str, attack: str, network: str = "") -> float | None:
    """The paper's accuracy of the method minus that of the baseline, in the column of our attack, in [-1, 1].

    For the worst case it is the difference of each one's lowest column, if the table has more than two attacks.
    """
    plain, sphere = (table.printed(name, network) for name in (baseline, method))
    columns = [table.columns.get(attack, "")]
    if attack == WORST:
        columns = [column for column in table.columns.values() if column != "clean"]
        columns = columns if len(columns) > 2 else [""]
    if not all(column in row for column in columns for row in (plain, sphere)):
        return None
    return (min(sphere[column] for column in columns) - min(plain[column] for column in columns)) / 100


def paper_gains(table: Table) -> list[str]:
    """For each pair with HE, the paper's gain under the headline's attack and in its lowest column."""
    lines = []
    with_he = ((base, method) for base, method in table.pairs if not base.variant)
    for (plain, sphere), headline in product(with_he, table.headlines):
        before, after = (paper_gain(table, plain.name, sphere.name, a) for a in (headline, WORST))
        if before is not None and after is not None:
            under = table.columns[headline]
            lines.append(f"{sphere.name} {100 * before:+.2f} under {under}, {100 * after:+.2f} in the worst column")
    return lines


class Family(NamedTuple):
    """HE with several objectives on one network, all at one weight decay or each arm at its best. `members` has one
    pair for each objective, set of images and threat.
    """

    network: str
    weight_decay: str
    members: tuple[Pair, ...]

    def mean(self, attack: str | None = None) -> Estimate:
        """The mean gain over the members, under the headline attack or a named one."""
        images: dict[str, list[NDArray[np.float64]]] = {}
        for pair in self.members:
            images.setdefault(pair.group.data, []).append(pair.by_image(attack or pair.gains.pgd))
        return mean_over_pairs(list(images.values()))


def every_pair(files: Mapping[Path, Sequence[StoredResult]]) -> list[Pair]:
    """Every measured pair of every table. Evaluations that stand in several tables, or that are also those of arms at
    their best weight decays, are one pair: the first. `files` holds the results by their file.
    """
    found: dict[tuple[str, str, frozenset[str]], Pair] = {}
    for table in TABLES.values():
        for group in (group for results in files.values() for group in groups_of(table, results)):
            for pair in pairs(group, table)[0]:
                found.setdefault((pair.baseline, pair.method, pair.evidence), pair)
    return list(found.values())


class TwoDecays(NamedTuple):
    """A pair at two weight decays."""

    first: Pair
    second: Pair

    @property
    def seeds(self) -> list[int]:
        """The seeds that both have."""
        return sorted({*self.first.seeds} & {*self.second.seeds})

    def change(self, attack: str) -> Estimate:
        """The gain at the second weight decay minus that at the first, paired by seed and by image."""
        second, first = (one.by_seed(attack, self.seeds) for one in (self.second, self.first))
        return mean_over_seeds(second - first)


def two_decays(every: Sequence[Pair]) -> list[TwoDecays]:
    """The pairs that were measured at two weight decays with a seed in common."""
    found: dict[object, list[Pair]] = {}
    for one in every:
        if one.group.weight_decay is not None:
            question = replace(one.group, weight_decay=None, arms={}, tried={})
            found.setdefault((question, one.baseline, one.method), []).append(one)
    both = (TwoDecays(*pair) for same in found.values() for pair in combinations(same, 2))
    return [one for one in both if one.seeds]


def families(every: Sequence[Pair]) -> list[Family]:
    """The families with three members or more. Each objective comes from the first table that has it and attacks bare
    cosines, with its best checkpoint.
    """
    found: dict[tuple[str, str], dict[tuple[str, ...], Pair]] = {}
    for one in every:
        with_he = one.method == f"{one.baseline}+HE"
        if with_he and one.gains.pgd.endswith(BARE) and one.group.checkpoint == "best":
            kinds = [] if one.group.weight_decay is None else [f"{one.group.weight_decay:g}"]
            for kind in [*kinds, *(["each at its best"] if one.at_their_best else [])]:
                members = found.setdefault((one.group.network, kind), {})
                members.setdefault((one.method, one.group.data, one.group.threat), one)
    made = [Family(network, kind, tuple(members.values())) for (network, kind), members in found.items()]
    return [family for family in made if len(family.members) >= FEWEST_PAIRS]


def largest(found: Sequence[Family]) -> Family | None:
    """The family with the most members, or the first of several such families."""
    return max(found, key=lambda family: len(family.members), default=None)
