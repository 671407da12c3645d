"""The sections that a reader looks at first. Each is a function from data to a piece of the page, or None where there
is nothing to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from advsphere.analysis.curves import curve_figure
from advsphere.comparison.gain import Gain, row_for
from advsphere.evaluation import WORST, Evaluation, Row, compare
from advsphere.report import rendering as numbers
from advsphere.report.collect import ModelReport
from advsphere.report.rendering import render, svg
from advsphere.report.verdict import survived
from advsphere.stats import ENOUGH_SEEDS, PairedDifference, paired
from advsphere.threat import radius

EN_DASH = "\u2013"


@dataclass(frozen=True)
class Section:
    """id: what links point to. html: the content without its heading."""

    id: str
    title: str
    html: Markup


class Cell(NamedTuple):
    """A number of the table with its interval; both "" where the attack was not run."""

    number: str = ""
    interval: str = ""


class Difference(NamedTuple):
    """A paired difference; bar: (no difference, low, value, high) in per mille of an axis that all rows share."""

    number: str
    interval: str
    tells: bool
    bar: list[int]


def threat_of(model: ModelReport) -> str:
    """The threat in words: "linf, eps = 8/255"."""
    threat = model.evaluation.identity["threat"]
    return f"{threat['norm']}, eps = {radius(threat['eps'])}"


def rows_of(models: Sequence[ModelReport]) -> list[tuple[str, list[Row | None]]]:
    """Every row that any of the models has, in the order of the one with most, worst case last; None where a model has
    none. A plain head's s is 1, so there its rows stand for those "(s = 1)".
    """
    evaluations = [model.evaluation for model in models]
    longest = sorted(evaluations, key=lambda e: -len(e.rows))
    names = list(dict.fromkeys(row.name for e in longest for row in e.rows if row.name != WORST))
    return [(name, [row_for(e, name) for e in evaluations]) for name in (*names, WORST)]


def differences(models: Sequence[ModelReport]) -> list[tuple[str, list[PairedDifference | None]]]:
    """For every row, how much better each model after the first is than the first; None where one was not run.

    Raises UserError where they were judged on other images or under another threat.
    """
    for model in models[1:]:
        compare(model.evaluation, models[0].evaluation)
    return [(name, [_paired(row, first) for row in rest]) for name, (first, *rest) in rows_of(models)]


def accuracy(models: Sequence[ModelReport], data: str) -> Section:
    """The table: accuracy with its interval under each attack, and the paired differences. data: the images' name."""
    compared = differences(models)
    found = [d for _, row in compared for d in row if d is not None]
    ends = [0.0, *(d.low for d in found), *(d.high for d in found)]
    rows = [
        (
            name,
            [Cell(numbers.percent(r.accuracy), numbers.limits(r.interval, EN_DASH)) if r else Cell() for r in row],
            [d and difference_of(d, not d.cannot_tell, min(ends), max(ends)) for d in pairs],
        )
        for (name, row), (_, pairs) in zip(rows_of(models), compared, strict=True)
    ]
    html = render(
        "accuracy",
        models=models,
        rows=rows,
        worst=WORST,
        threat=threat_of(models[0]),
        n=models[0].evaluation.worst.n,
        data=data,
    )
    return Section("accuracy", "Accuracy under attack", html)


def curves(models: Sequence[ModelReport]) -> Section | None:
    """Accuracy against eps, as a figure and as the numbers behind it."""
    known = {model.name: model.curve for model in models if model.curve is not None}
    if not known:
        return None
    figure = curve_figure(known, {model.name: model.evaluation for model in models if model.name in known})
    radii = sorted({eps for curve in known.values() for eps in curve.at})
    rows = [
        (
            radius(eps),
            [
                Cell(numbers.percent(curve.accuracy[i]), numbers.limits(curve.intervals[i], EN_DASH))
                if (i := _position(curve.at, eps)) is not None
                else Cell()
                for curve in known.values()
            ],
        )
        for eps in radii
    ]
    title = (
        f"Accuracy against eps, from 0 to {radius(radii[-1])}, of {', '.join(known)}. Every curve falls; the table "
        "below has its numbers."
    )
    drawing = Markup(svg(figure, name="curves-figure", title=title))
    curve = next(iter(known.values()))
    html = render("curves", figure=drawing, names=list(known), rows=rows, steps=curve.steps, n=curve.n, of=curve.of)
    return Section("curves", "Accuracy against eps", html)


def _paired(row: Row | None, first: Row | None) -> PairedDifference | None:
    if row is None or first is None:
        return None
    return paired([mark == "1" for mark in row.outcomes], [mark == "1" for mark in first.outcomes])


def _position(eps: Sequence[float], value: float) -> int | None:
    return eps.index(value) if value in eps else None


def difference_of(d: PairedDifference | Gain, tells: bool, left: float, right: float) -> Difference:
    """As a cell shows it; left, right: the ends of the axis."""
    length = (right - left) or 1.0
    bar = [round(1000 * (v - left) / length) for v in (0.0, d.low, d.difference, d.high)]
    return Difference(numbers.points(d.difference), numbers.span(d), tells, bar)


# FOLDED seeds: The section for methods that were trained from several seeds: means, each seed, and the
# FOLDED seeds: difference over them.


class Arm(NamedTuple):
    """Accuracies in percent: the mean, and each seed's in order."""

    mean: str
    each: list[str]


def seeds(models: Sequence[ModelReport], data: str) -> Section | None:
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
