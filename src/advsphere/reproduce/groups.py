"""Rows that may stand in one table: equal in everything but the method and the seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from advsphere.errors import UserError
from advsphere.evaluation import Evaluation
from advsphere.evaluation.rows import Row as Measured
from advsphere.recipes import plain
from advsphere.reproduce.results import Row
from advsphere.reproduce.tables import ABLATION, Table
from advsphere.runs.config import OBJECTIVES, title_of

# FOLDED grid: The grid of weight decays: at which of them an arm is at its best.

Tried = Mapping[float, Mapping[int, float]]
"""An arm's robust accuracy on held-out training images, in [0, 1]: by weight decay, then by seed."""


def means(tried: Tried) -> dict[float, float]:
    """By weight decay, the mean over the seeds that were trained at all of them; empty where there is no such seed."""
    shared = set.intersection(*(set(seeds) for seeds in tried.values())) if tried else set()
    return {decay: fmean(seeds[seed] for seed in shared) for decay, seeds in tried.items()} if shared else {}


def preferred(tried: Tried) -> float | None:
    """The weight decay of the highest mean, the first of equals; None where there was no choice."""
    found = means(tried)
    return max(found, key=lambda decay: found[decay]) if len(found) > 1 else None


_METHODS = {name: title_of(kind) for name, kind in OBJECTIVES.items()}
_OF_THE_SEED = ("training.seed:",)
_OF_THE_METHOD = ("sphere", "objective.beta:")
"""ALP's beta weighs logits, which on the sphere are s times the cosines that the paper's code pairs."""


def method(row: Row) -> str:
    """As the paper's tables call it: "FastAT+m-HE", or "FastAT+HE, no FN" for an ablation."""
    name = str(_METHODS.get(row["objective"], row["objective"]))
    if row["scale"] is None:
        return name
    if row["recipe"].endswith("-m-he"):
        return f"{name}+m-HE"
    changed = {line.split(": ")[0]: line.split(" -> ")[1] for line in row["overrides"] if line.startswith("sphere.")}
    for variant, settings in ABLATION.items():
        if changed == {f"sphere.{key}": str(value) for key, value in settings.items()}:
            return f"{name}+{variant}"
    return f"{name}+HE" + "".join(f", {key.removeprefix('sphere.')} = {value}" for key, value in changed.items())


def on_imagenet(row: Row) -> bool:
    """Whether it stands for the paper's ImageNet."""
    return row["recipe"].startswith(("imagenet-", "tiny-imagenet-"))


@dataclass(frozen=True)
class Measurement:
    """One run under one suite. rows: by attack, in the suite's order."""

    rows: Mapping[str, Row]

    @property
    def any(self) -> Row:
        return next(iter(self.rows.values()))

    @property
    def confounders(self) -> tuple[str, ...]:
        """What must be equal within a pair: the recipe without its sphere, and what was overridden but the seed."""
        kept = (line for line in self.any["overrides"] if not line.startswith((*_OF_THE_SEED, *_OF_THE_METHOD)))
        return (plain(self.any["recipe"]), *kept)

    def evaluation(self) -> Evaluation:
        """The rows as the evaluation they came from, as far as comparing needs it."""
        measured = {
            name: Measured(name=name, outcomes=row["outcomes"], settings=row["settings"], invalid=0, unreached=0,
                           median=row["median"], seconds=row["attack_seconds"], forwards=0)
            for name, row in self.rows.items()
        }  # fmt: skip
        row = self.any
        return Evaluation(
            clean=measured.pop("clean"),
            worst=measured.pop("worst case"),
            attacks=tuple(measured.values()),
            identity={
                "data": {"checksum": row["evaluated"]["data"]},
                "threat": {"of": row["threat"]},
                "model": {"scale": row["scale"] or 1.0, "checksum": row["evaluated"]["model"]},
            },
            environments=(),
            ledger=row["evaluated"]["ledger"],
            findings=(),
            signs=(),
        )


@dataclass(frozen=True, kw_only=True)
class Group:
    """arms: a method's measurements, one for each seed. effort: beyond the suite's name. weight_decay: of all arms,
    None where each has its best. tried: by method, the weight decays that it was trained at.
    """

    data: str
    network: str
    threat: str
    suite: str
    n: int
    checkpoint: str
    effort: str
    weight_decay: float | None
    arms: Mapping[str, tuple[Measurement, ...]] = field(hash=False)
    tried: Mapping[str, Tried] = field(hash=False, default_factory=dict)

    @property
    def title(self) -> str:
        """What its rows have in common."""
        decay = "each arm at its best weight decay" if self.weight_decay is None else (
            f"weight decay {self.weight_decay:g}"
        )  # fmt: skip
        told = f"{self.network} on {self.data}, {self.n:,} test images, {self.threat}, {decay}"
        told += f", {self.effort}" if self.effort else ""
        return told + (", last checkpoint" if self.checkpoint == "last" else "")

    def at_its_best(self, name: str) -> bool:
        """Whether an arm has the weight decay that held-out training images preferred among several."""
        return preferred(self.tried.get(name, {})) == self.arms[name][0].any["weight_decay"]

    def attacks(self) -> list[str]:
        """Every attack of the group, in the order of the arm that has the most."""
        longest = max((m.rows for arm in self.arms.values() for m in arm), key=len)
        return list(longest)


def groups(rows: Iterable[Row], table: Table, *, suite: str) -> list[Group]:
    """The rows that belong in a table, in groups; of the paper's data that the table is about, and its methods only.

    Where arms were trained at several weight decays, one more group follows with each arm at the one that was most
    robust on held-out training images, unless that is the same for all. Raises UserError where an arm has runs that
    differ in more than their seed.
    """
    wanted = {(arm.name, arm.data == "imagenet"): place for place, arm in enumerate((*table.arms, *table.also))}
    runs: dict[tuple[Any, ...], dict[str, Row]] = {}
    every = list(rows)
    tried = _tried(every)
    for row in every:
        if row["suite"] == suite and (method(row), on_imagenet(row)) in wanted:
            runs.setdefault(_run(row), {})[row["attack"]] = row
    found: dict[Group, dict[str, list[Measurement]]] = {}
    for measurement in map(Measurement, runs.values()):
        found.setdefault(_question(measurement), {}).setdefault(method(measurement.any), []).append(measurement)
    made = []
    for question, arms in found.items():
        for name, arm in arms.items():
            if len({measurement.confounders for measurement in arm}) > 1:
                raise UserError(f"{name} has runs that differ in more than their seed; keep them in files of their own")
        ordered = sorted(arms, key=lambda name: wanted[name, on_imagenet(arms[name][0].any)])
        kept = {name: tuple(sorted(arms[name], key=lambda m: int(m.any["seed"]))) for name in ordered}
        if not table.about or {arm.name for arm in table.about} & kept.keys():
            of_arms = {name: tried.get(_arm(arm[0].any), {}) for name, arm in kept.items()}
            made.append(replace(question, arms=kept, tried=of_arms))
    return [*made, *_at_their_best(made)]


def groups_of(table: Table, rows: Sequence[Row]) -> list[Group]:
    """All groups of a table: of its own suite, then of those that it shows too; none if it is not of attacks."""
    suites = (table.suite, *table.shown) if table.measure == "attacks" else ()
    return [group for suite in suites for group in groups(rows, table, suite=suite)]


def _run(row: Row) -> tuple[Any, ...]:
    return (row["recipe"], *row["overrides"], row["seed"], row["checkpoint"], row["data"], row["threat"], row["n"])


def _question(measurement: Measurement) -> Group:
    """What was asked, of which networks and images; guides of the feature attack are part of it."""
    row = measurement.any
    guides = next((r["settings"]["tries"] for r in measurement.rows.values() if "tries" in r.get("settings", {})), None)
    return Group(
        data=row["data"],
        network=row["network"],
        threat=row["threat"],
        suite=row["suite"],
        n=row["n"],
        checkpoint=row["checkpoint"],
        effort="" if guides is None else f"{guides} guides",
        weight_decay=row["weight_decay"],
        arms={},
    )


def _arm(row: Row) -> tuple[Any, ...]:
    """What the runs of an arm have in common, whatever their weight decay."""
    kept = (line for line in Measurement({"": row}).confounders if not line.startswith("training.weight_decay:"))
    return (method(row), row["network"], row["data"], *kept)


def _tried(rows: Iterable[Row]) -> dict[tuple[Any, ...], dict[float, dict[int, float]]]:
    """The robust accuracy of each run's best checkpoint on held-out training images, by arm."""
    found: dict[tuple[Any, ...], dict[float, dict[int, float]]] = {}
    for row in rows:
        if "validated" in row and row["checkpoint"] == "best":
            of_seeds = found.setdefault(_arm(row), {}).setdefault(row["weight_decay"], {})
            of_seeds[row["seed"]] = row["validated"]["robust"]
    return found


def _at_their_best(made: Sequence[Group]) -> list[Group]:
    """For each set of groups that differ in weight decay alone, one with each arm at its best, if none of them has
    those already; arms that were trained at one weight decay alone stay out.
    """
    families: dict[Group, list[Group]] = {}
    for one in made:
        families.setdefault(replace(one, weight_decay=None, arms={}, tried={}), []).append(one)
    best = []
    for common, family in families.items():
        tried = {name: of for group in family for name, of in group.tried.items()}
        arms = {
            name: group.arms[name]
            for name in tried
            for group in family
            if name in group.arms and preferred(tried[name]) == group.weight_decay
        }
        if arms and not any(arms.items() <= group.arms.items() for group in family):
            best.append(replace(common, arms=arms, tried={name: tried[name] for name in arms}))
    return best
