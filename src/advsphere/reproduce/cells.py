"""Cells and differences: each computed from outcomes alone, and beside the paper's number where there is one."""

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

from advsphere.comparison.gain import BARE, Survival, survival
from advsphere.evaluation import WORST
from advsphere.reproduce.groups import Group, Measurement, groups_of
from advsphere.reproduce.results import Row
from advsphere.reproduce.tables import TABLES, Table
from advsphere.stats import Reach, mean, reach, wilson


@dataclass(frozen=True, kw_only=True)
class Cell:
    """An arm's accuracy under one attack, in [0, 1]. seeds: of each run. low, high: 95 %, over images and, from three
    seeds on, over seeds. paper: the paper's, None where it has none.
    """

    seeds: tuple[float, ...]
    low: float
    high: float
    paper: float | None

    @property
    def value(self) -> float:
        return fmean(self.seeds)


def cell(group: Group, arm: str, attack: str, table: Table) -> Cell | None:
    """None where no run of the arm has that row; a plain head's rows stand for those "(s = 1)"."""
    outcomes = [row for m in group.arms[arm] if (row := _outcomes(m, attack)) is not None]
    if not outcomes:
        return None
    low, high = _interval(outcomes)
    told = table.printed(arm, group.network).get(table.columns.get(attack, ""))
    seeds = tuple(row.count("1") / len(row) for row in outcomes)
    return Cell(seeds=seeds, low=low, high=high, paper=None if told is None else told / 100)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A method beside its baseline, both of one network. seeds: those that both have, which alone are compared.
    refused: why they are not compared, if they are not.
    """

    baseline: str
    method: str
    network: str
    seeds: tuple[int, ...]
    gains: Survival | None
    refused: str = ""


def pairs(group: Group, table: Table) -> list[Pair]:
    """Every pair of the table that the group has both arms of; seeds that one of them lacks are left out."""
    found = []
    for base, method in table.pairs:
        if base.name in group.arms and method.name in group.arms:
            found.append(_pair(group, base.name, method.name, table))
    return found


def _pair(group: Group, baseline: str, method: str, table: Table) -> Pair:
    seeds = [{m.any["seed"] for m in group.arms[name]} for name in (baseline, method)]
    shared = tuple(sorted(seeds[0] & seeds[1]))
    told = partial(Pair, baseline=baseline, method=method, network=group.network, seeds=shared)
    if not shared:
        return told(gains=None, refused="they share no seed")
    first, second = (_of_seeds(group, name, shared) for name in (baseline, method))
    differ = {*first[0].confounders} ^ {*second[0].confounders}
    if group.weight_decay is None:  # what the group is about
        differ = {line for line in differ if not line.startswith("training.weight_decay:")}
    if differ:
        return told(gains=None, refused="; ".join(sorted(differ)))
    asked = next((attack for attack in table.headlines if attack in group.attacks()), None)
    gains = survival([m.evaluation() for m in first], [m.evaluation() for m in second], pgd=asked)
    return told(gains=gains)


def by_image(group: Group, pair: Pair, attack: str) -> np.ndarray:
    """(images,): the method's outcomes less the baseline's under an attack, in [-1, 1], the mean over shared seeds."""
    arms = []
    for name in (pair.method, pair.baseline):
        rows = [row for m in _of_seeds(group, name, pair.seeds) if (row := _outcomes(m, attack)) is not None]
        arms.append(_columns(rows).mean(0))
    return np.asarray(arms[0] - arms[1])


def _of_seeds(group: Group, name: str, seeds: Sequence[int]) -> list[Measurement]:
    return [m for m in group.arms[name] if m.any["seed"] in seeds]


def _columns(outcomes: Sequence[str]) -> np.ndarray:
    """(seeds, images) of 0 and 1."""
    return np.array([[c == "1" for c in row] for row in outcomes], dtype=float)


def paper_gain(table: Table, baseline: str, method: str, attack: str, network: str = "") -> float | None:
    """The paper's method less its baseline in the column that an attack of ours stands beside, in [-1, 1], on our
    network where it has that; for the worst case, between the lowest columns of each, where the table has more than two
    attacks.
    """
    plain, sphere = (table.printed(arm, network) for arm in (baseline, method))
    columns = [table.columns.get(attack, "")]
    if attack == WORST:
        columns = [column for column in table.columns.values() if column != "clean"]
        columns = columns if len(columns) > 2 else [""]
    if not all(column in row for column in columns for row in (plain, sphere)):
        return None
    return (min(sphere[column] for column in columns) - min(plain[column] for column in columns)) / 100


def paper_survival(table: Table) -> list[str]:
    """What the paper's own columns say: each pair's gain under the headline's attack and in the worst column; nothing
    for tables of fewer than three attacks, which have no worst to speak of.
    """
    told = []
    with_he = ((base, method) for base, method in table.pairs if not base.variant)
    for (plain, sphere), headline in product(with_he, table.headlines):
        before, after = (paper_gain(table, plain.name, sphere.name, a) for a in (headline, WORST))
        if before is not None and after is not None:
            under = table.columns[headline]
            told.append(f"{sphere.name} {100 * before:+.2f} under {under}, {100 * after:+.2f} in the worst column")
    return told


def _outcomes(measurement: Measurement, attack: str) -> str | None:
    row = measurement.rows.get(attack)
    if row is None and measurement.any["scale"] is None:
        row = measurement.rows.get(attack.removesuffix(BARE))
    return None if row is None else str(row["outcomes"])


def _interval(outcomes: Sequence[str]) -> tuple[float, float]:
    """95 % for a mean over images; from three seeds on, their spread is added."""
    if len(outcomes) == 1:
        return wilson(outcomes[0].count("1"), len(outcomes[0]))
    columns = _columns(outcomes)
    half = reach(columns)
    return max(0.0, float(columns.mean()) - half), min(1.0, float(columns.mean()) + half)


# FOLDED together: What HE gains and keeps with each objective, and with all of them together.

FEWEST = 3
"""Pairs that a mean over them is worth telling of."""


class Compared(NamedTuple):
    """A pair of a table, and what it gains."""

    table: Table
    group: Group
    pair: Pair
    gains: Survival

    @property
    def at_their_best(self) -> bool:
        """Whether held-out training images chose both arms' weight decay among several."""
        return self.group.at_its_best(self.pair.method) and self.group.at_its_best(self.pair.baseline)


class Family(NamedTuple):
    """HE with several objectives on one network. weight_decay: that of all, or how it was chosen. members: each
    objective once for each set of images and threat.
    """

    network: str
    weight_decay: str
    members: tuple[Compared, ...]

    def mean(self, attack: str | None = None) -> Reach:
        """The mean gain over the members, under the headline's attack or a named one, with the interval of `mean`."""
        images: dict[str, list[NDArray[np.float64]]] = {}
        for one in self.members:
            found = by_image(one.group, one.pair, attack or one.gains.pgd)
            images.setdefault(one.group.data, []).append(found)
        return mean(list(images.values()))


def compared(files: Mapping[Path, Sequence[Row]]) -> list[Compared]:
    """Every pair that was measured, table by table, once: not again where both arms are at their best weight decay and
    it is the same. files: rows by the file that they are in.
    """
    found: list[Compared] = []
    for table in TABLES.values():
        of_table: list[Pair] = []
        for group in (group for rows in files.values() for group in groups_of(table, rows)):
            for pair in pairs(group, table):
                again = group.weight_decay is None and pair in of_table
                if pair.gains is not None and not again:
                    of_table.append(pair)
                    found.append(Compared(table, group, pair, pair.gains))
    return found


def families(every: Sequence[Compared]) -> list[Family]:
    """HE on one network, all at one weight decay, or each arm at its best: those that have three members or more. An
    objective is taken from the first table that has it, at its best checkpoint, where attacks on bare cosines are; once
    for each set of images and threat.
    """
    found: dict[tuple[str, str], dict[tuple[str, ...], Compared]] = {}
    for one in every:
        with_he = one.pair.method == f"{one.pair.baseline}+HE"
        if with_he and one.gains.pgd.endswith(BARE) and one.group.checkpoint == "best":
            kinds = [] if one.group.weight_decay is None else [f"{one.group.weight_decay:g}"]
            for kind in [*kinds, *(["each its best"] if one.at_their_best else [])]:
                members = found.setdefault((one.group.network, kind), {})
                members.setdefault((one.pair.method, one.group.data, one.group.threat), one)
    made = [Family(network, kind, tuple(members.values())) for (network, kind), members in found.items()]
    return [family for family in made if len(family.members) >= FEWEST]


def largest(found: Sequence[Family]) -> Family | None:
    """The family of most members, the first of several; None where there is none."""
    return max(found, key=lambda family: len(family.members), default=None)
