"""Group the stored evaluations that may stand in one table: they differ only in the method and the seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from advsphere.errors import UserError
from advsphere.evaluation.results import Evaluation
from advsphere.recipes import plain
from advsphere.reproduce.results import StoredResult
from advsphere.reproduce.tables import ABLATION, Table
from advsphere.runs.config import OBJECTIVES, title_of

Tried = Mapping[float, Mapping[int, float]]
"""Robust accuracy of an arm on held-out training images, in [0, 1], by weight decay and then by seed."""

_TITLES = {name: title_of(kind) for name, kind in OBJECTIVES.items()}
SEED, WEIGHT_DECAY = "training.seed", "training.weight_decay"
_OF_THE_METHOD = ("sphere", "objective.beta")
"""Settings that define a method; ALP's beta weighs logits, which HE scales by s."""


def method_name(run: Mapping[str, Any]) -> str:
    """The name of a run's method in the paper's tables: "FastAT+m-HE", or "FastAT+HE, no FN" for an ablation."""
    name = _TITLES.get(run["objective"], run["objective"])
    if run["scale"] is None:
        return name
    if run["recipe"].endswith("-m-he"):
        return f"{name}+m-HE"
    changed = {change["path"].removeprefix("sphere."): change["new"] for change in run["overrides"]
               if change["path"].startswith("sphere.")}  # fmt: skip
    variant = next((variant for variant, settings in ABLATION.items() if settings == changed), None)
    if variant is not None:
        return f"{name}+{variant}"
    return f"{name}+HE" + "".join(f", {key} = {value}" for key, value in changed.items())


def on_imagenet(run: Mapping[str, Any]) -> bool:
    """Whether a run stands for a run of the paper on ImageNet."""
    return run["recipe"].startswith(("imagenet-", "tiny-imagenet-"))


def confounders(run: Mapping[str, Any], *, without: Sequence[str] = (SEED,)) -> dict[str, str]:
    """The settings that must be equal in a pair: the plain recipe, and all overrides but those of seed and method."""
    kept = {
        change["path"]: f"{change['path']}: {change['old']} -> {change['new']}"
        for change in run["overrides"]
        if change["path"] not in without and not change["path"].startswith(_OF_THE_METHOD)
    }
    return {"recipe": plain(run["recipe"]), **kept}


def mean_by_decay(tried: Tried) -> dict[float, float]:
    """The mean for each weight decay, over the seeds that were trained at all of them; empty without such a seed."""
    shared = set.intersection(*(set(seeds) for seeds in tried.values())) if tried else set()
    return {decay: fmean(seeds[seed] for seed in shared) for decay, seeds in tried.items()} if shared else {}


def preferred(tried: Tried) -> float | None:
    """The weight decay with the highest mean, or the first of equal ones; None if there was no choice."""
    found = mean_by_decay(tried)
    return max(found, key=lambda decay: found[decay]) if len(found) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Evaluations that may stand in one table.

    `arms` holds each method's results, one for each seed. `guides` is the feature attack's number of guides.
    `weight_decay` is that of all arms, or None if each arm has its best. `tried` holds the weight decays at which each
    method was trained.
    """

    data: str
    network: str
    threat: str
    suite: str
    n: int
    checkpoint: str
    guides: int | None
    weight_decay: float | None
    arms: Mapping[str, tuple[StoredResult, ...]] = field(hash=False)
    tried: Mapping[str, Tried] = field(hash=False, default_factory=dict)

    @property
    def title(self) -> str:
        """The settings that its evaluations have in common, as text."""
        at_best = self.weight_decay is None
        decay = "each arm at its best weight decay" if at_best else f"weight decay {self.weight_decay:g}"
        title = f"{self.network} on {self.data}, {self.n:,} test images, {self.threat}, {decay}"
        title += f", {self.guides} guides" if self.guides is not None else ""
        return title + (", last checkpoint" if self.checkpoint == "last" else "")

    def at_its_best(self, name: str) -> bool:
        """Whether an arm has the weight decay that held-out training images preferred among several."""
        return preferred(self.tried.get(name, {})) == self.arms[name][0].run["weight_decay"]

    def evaluations(self, name: str, seeds: Sequence[int] | None = None) -> list[Evaluation]:
        """The evaluations of an arm, for all seeds or some."""
        return [one.evaluation for one in self.arms[name] if seeds is None or one.run["seed"] in seeds]

    def attacks(self) -> list[str]:
        """The attacks of the group's longest evaluation, in order."""
        longest = max((one.evaluation.rows for arm in self.arms.values() for one in arm), key=len)
        return [row.name for row in longest]


def groups(results: Iterable[StoredResult], table: Table, *, suite: str) -> list[Group]:
    """Group the evaluations that belong in a table.

    If arms were trained at several weight decays, another group follows, with each arm at the weight decay that was
    most robust on held-out training images, unless that is the same for all. Raises UserError if the runs of an arm
    differ in more than their seed.
    """
    wanted = {(method.name, method.data == "imagenet"): place for place, method in enumerate(table.shown_methods)}
    every = list(results)
    tried = _tried(every)
    of_best = {one.evidence for one in every if one.run["checkpoint"] == "best"}
    found: dict[Group, dict[str, list[StoredResult]]] = {}
    for one in every:
        name = method_name(one.run)
        if one.run["checkpoint"] == "last" and one.evidence in of_best:
            continue  # the last checkpoint is the best one, which is shown already
        if one.kind == "evaluation" and one.suite == suite and (name, on_imagenet(one.run)) in wanted:
            found.setdefault(_question(one), {}).setdefault(name, []).append(one)
    made = []
    for question, arms in found.items():
        for name, arm in arms.items():
            if any(confounders(one.run) != confounders(arm[0].run) for one in arm):
                raise UserError(f"{name} has runs that differ in more than their seed; keep them in separate files")
        ordered = sorted(arms, key=lambda name: wanted[name, on_imagenet(arms[name][0].run)])
        kept = {name: tuple(sorted(arms[name], key=lambda one: int(one.run["seed"]))) for name in ordered}
        if not table.required or {method.name for method in table.required} & kept.keys():
            of_arms = {name: tried.get(_arm(arm[0]), {}) for name, arm in kept.items()}
            made.append(replace(question, arms=kept, tried=of_arms))
    return [*made, *_at_their_best(made)]


def groups_of(table: Table, results: Sequence[StoredResult]) -> list[Group]:
    """All groups of a table: those of its own suite, then those of further suites; empty if it measures no attacks."""
    suites = (table.suite, *table.also_suites) if table.measure == "attacks" else ()
    return [group for suite in suites for group in groups(results, table, suite=suite)]


def _question(result: StoredResult) -> Group:
    """A group without arms: the settings that an evaluation shares with its group."""
    rows = result.evaluation.rows
    return Group(
        data=result.run["data"],
        network=result.run["network"],
        threat=result.threat,
        suite=result.suite,
        n=result.n,
        checkpoint=result.run["checkpoint"],
        guides=next((row.settings["tries"] for row in rows if "tries" in row.settings), None),
        weight_decay=result.run["weight_decay"],
        arms={},
    )


def _arm(result: StoredResult) -> tuple[str, ...]:
    """The settings that the runs of an arm have in common, apart from weight decay."""
    run = result.run
    return (
        method_name(run),
        run["network"],
        run["data"],
        *confounders(run, without=(SEED, WEIGHT_DECAY)).values(),
    )


def _tried(results: Iterable[StoredResult]) -> dict[tuple[str, ...], dict[float, dict[int, float]]]:
    """The robust accuracy of each run's best checkpoint on held-out training images, by arm."""
    found: dict[tuple[str, ...], dict[float, dict[int, float]]] = {}
    for one in results:
        if "validated" in one.run and one.run["checkpoint"] == "best":
            of_seeds = found.setdefault(_arm(one), {}).setdefault(one.run["weight_decay"], {})
            of_seeds[one.run["seed"]] = one.run["validated"]["robust"]
    return found


def _at_their_best(made: Sequence[Group]) -> list[Group]:
    """For groups that differ only in weight decay, another group with each arm at its best, unless one of them already
    is that. Arms that were trained at only one weight decay are left out.
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
