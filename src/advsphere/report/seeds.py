"""The section for methods that were trained from several seeds: means, each seed, and the difference over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from advsphere.evaluation import ENOUGH_SEEDS, WORST, Evaluation, row_for
from advsphere.report import numbers
from advsphere.report.judged import Judged
from advsphere.report.rendering import render
from advsphere.report.sections import Section, difference_of, rows_of, threat_of
from advsphere.report.verdict import survived


class Arm(NamedTuple):
    """Accuracies in percent: the mean, and each seed's in order."""

    mean: str
    each: list[str]


def seeds(models: Sequence[Judged], data: str) -> Section | None:
    """Each row's mean and seeds, and the gain over the first model with its interval. data: the images' name."""
    if not any(model.seeds for model in models):
        return None
    found = [survived(models[0], model) for model in models[1:]]
    gains = [{gain.name: gain for gain in one.gains} if one else {} for one in found]
    known = [gain for one in gains for gain in one.values()]
    ends = [0.0, *(gain.low for gain in known), *(gain.high for gain in known)]
    rows = [
        (
            name,
            [_arm([*model.checkpoints.values()], name) for model in models],
            [difference_of(one[name], one[name].clear, min(ends), max(ends)) if name in one else None for one in gains],
        )
        for name, _ in rows_of(models)
    ]
    html = render(
        "seeds",
        models=models,
        rows=rows,
        worst=WORST,
        threat=threat_of(models[0]),
        n=models[0].evaluation.worst.n,
        data=data,
        of_the_methods=min(len(model.seeds) for model in models) >= ENOUGH_SEEDS,
    )
    return Section("seeds", "Over seeds", html)


def _arm(evaluations: Sequence[Evaluation], name: str) -> Arm | None:
    """None where one of them has no such row."""
    rows = [row_for(evaluation, name) for evaluation in evaluations]
    shares = [row.accuracy for row in rows if row is not None]
    if len(shares) < len(rows):
        return None
    return Arm(numbers.percent(sum(shares) / len(shares)), [numbers.percent(share) for share in shares])
