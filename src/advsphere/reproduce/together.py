"""What HE gains and keeps with each objective, and with all of them together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from advsphere.evaluation import Survival
from advsphere.evaluation.survival import BARE
from advsphere.reproduce.cells import Pair, by_image, pairs
from advsphere.reproduce.groups import Group, groups_of
from advsphere.reproduce.tables import TABLES, Table
from advsphere.results import Row

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


class Reach(NamedTuple):
    """A difference in [-1, 1] with its 95 % interval."""

    value: float
    low: float
    high: float


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


def mean(differences: Sequence[Sequence[NDArray[np.float64]]]) -> Reach:
    """The mean over pairs, and its 95 % interval by Student's t: over pairs and over images, whose variances are added,
    with Satterthwaite's degrees of freedom. Some of the images' variance is in the spread of pairs too, and so counts
    twice.

    differences: for each set of images, of each pair (n,) in [-1, 1]; pairs have the first n images of their set.
    """
    from scipy.stats import t  # slow to import

    means = [float(one.mean()) for of_set in differences for one in of_set]
    over_pairs, over_images = stdev(means) ** 2 / len(means), 0.0
    for of_set in differences:
        share = np.zeros(max(map(len, of_set)))  # of each image in the mean of all
        for one in of_set:
            share[: len(one)] += (one - one.mean()) / (len(one) * len(means))
        over_images += float(share @ share)
    both = over_pairs + over_images
    freedom = (len(means) - 1) * (both / over_pairs) ** 2 if over_pairs else math.inf
    half = float(t.ppf(0.975, freedom)) * math.sqrt(both)
    return Reach(fmean(means), fmean(means) - half, fmean(means) + half)
