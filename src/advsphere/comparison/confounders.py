"""Settings besides the method that differ between compared runs, and may explain a gain."""

from __future__ import annotations

from collections.abc import Sequence

from advsphere.files import Change
from advsphere.runs.config import Config, differences
from advsphere.training import Collapse

_WHY = {
    "training.weight_decay": "weight decay alone can move robust accuracy by several points (Pang et al. 2021)",
    "training.epochs": "longer training is more robust until it overfits (Rice et al. 2020)",
    "training.lr_schedule": "the schedule decides where robust overfitting sets in (Rice et al. 2020)",
    "training.optimizer": "another optimizer",
    "training.precision": "rounding differs between precisions, which changes a network as another seed does",
    "training.sync_bn": "batch norm has different statistics over all processes and over one share",
    "training.accumulate": "batch norm normalises each part of a batch separately",
    "training.batch_size": "the learning rate and batch norm's statistics depend on the batch size",
    "objective.mode": "batch norm's mode while crafting moves robust accuracy (Pang et al. 2021)",
    "objective.threat.eps": "a network is most robust at the radius of its training; 0.031 is not 8/255",
    "model.name": "another network",
    "data.name": "other images",
}


def confounders(baseline: Sequence[Config], method: Sequence[Config]) -> list[str]:
    """List the settings that differ between two arms and are not part of the method.

    The method is the sphere and, if the arms have different objectives, the objective.

    Args:
        baseline: The runs of one arm, which should differ only in their seed.
        method: The runs of the other arm.

    Returns:
        A sentence for each setting that differs between the arms, or between the runs of an arm.
    """
    first, second = baseline[0], method[0]
    ours = ["sphere"] if type(first.objective) is type(second.objective) else ["sphere", "objective"]
    found = [_explained(c) for c in differences(first, second) if not _of(c, [*ours, "training.seed"])]
    if sorted(c.training.seed for c in baseline) != sorted(c.training.seed for c in method):
        found.append("training.seed: the arms were trained with different seeds")
    return [*found, *within("the baseline", baseline), *within("the method", method)]


def within(name: str, arm: Sequence[Config]) -> list[str]:
    """List the settings besides the seed that differ between the runs of an arm.

    Args:
        name: What the arm is called.
        arm: Its runs.

    Returns:
        A sentence for each difference from the first run.
    """
    changes = [change for other in arm[1:] for change in differences(arm[0], other)]
    return [f"within {name}, {_explained(change)}" for change in changes if not _of(change, ["training.seed"])]


def trained_elsewhere(arm: str, config: Config, eps: float) -> list[str]:
    """A sentence if the radius of a run's training differs from that of its evaluation."""
    threat = getattr(config.objective, "threat", None)
    if threat is None or threat.eps == eps:
        return []
    return [f"the {arm} was trained at eps {threat.eps:.6g} and is evaluated at {eps:.6g}"]


def divided_otherwise(baseline: Sequence[int], method: Sequence[int]) -> list[str]:
    """A sentence if two arms were trained with different numbers of processes. Takes the number of each run."""
    if set(baseline) == set(method):
        return []
    first, second = (" or ".join(map(str, sorted(set(ranks)))) for ranks in (baseline, method))
    return [
        f"processes: {first} -> {second}; without --sync-bn, batch norm normalises each process's share of a batch "
        "separately"
    ]


def sampled_otherwise(baseline: Sequence[float | None], method: Sequence[float | None]) -> list[str]:
    """A sentence if the samples of two arms leave different points open. Takes those of each evaluation, None for one
    in which every attack ran on all images.
    """
    if set(baseline) == set(method):
        return []
    first, second = (
        " or ".join(sorted("every attack on all images" if c is None else f"{c:g} points" for c in set(certainties)))
        for certainties in (baseline, method)
    )
    return [f"certainty: {first} -> {second}; the interval of the worst case holds for both"]


def remedied(arm: str, collapses: Sequence[Collapse]) -> list[str]:
    """A sentence for each collapse in a run of an arm: from there on, the run was trained in another way."""
    return [
        f"in the {arm}, {collapse}, so it is no longer the training that its settings name" for collapse in collapses
    ]


def _of(change: Change, settings: Sequence[str]) -> bool:
    return any(change.path == setting or change.path.startswith(f"{setting}.") for setting in settings)


def _explained(change: Change) -> str:
    why = next((reason for setting, reason in _WHY.items() if _of(change, (setting,))), "")
    return f"{change}; {why}" if why else str(change)
