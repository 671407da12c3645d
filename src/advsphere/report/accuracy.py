"""The sections on accuracy under attack: for one checkpoint of each model, over seeds, and against eps."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from advsphere.analysis.curves import curve_figure
from advsphere.comparison.gain import Gain, row_for
from advsphere.evaluation.display import NO_VERDICT
from advsphere.evaluation.results import WORST, Evaluation
from advsphere.evaluation.rows import Row, columns_of
from advsphere.evaluation.unsampled import compare, paired_rows
from advsphere.report.collect import ModelReport
from advsphere.report.rendering import TableCell, accuracy_cell, figure, key, percent, points, render, span, table
from advsphere.report.sections import section
from advsphere.report.verdict import survived
from advsphere.stats import ENOUGH_SEEDS, PairedDifference, mean_over_seeds
from advsphere.threat import radius

ON_SAMPLE = "on a sample"
"""Stands for the accuracy under an attack that ran only on images that others left; it counts in the worst case."""

Cells = list[str | TableCell | None]
"""A row of a table: its name, and a cell for each further column."""


def rows_of(models: Sequence[ModelReport]) -> list[tuple[str, list[Row | None]]]:
    """Each attack's rows, one for each model, in the order of the longest evaluation; the worst case comes last.

    A row is None if the model was not attacked so, or the time was over before. The scale s of a plain head is 1, so
    its rows also count as the rows "(s = 1)".
    """
    evaluations = [model.evaluation for model in models]
    longest = sorted(evaluations, key=lambda e: -len(e.rows))
    names = list(dict.fromkeys(row.name for e in longest for row in e.rows if row.name != WORST))
    return [(name, [row_for(e, name) for e in evaluations]) for name in (*names, WORST)]


def differences(models: Sequence[ModelReport]) -> list[tuple[str, list[PairedDifference | None]]]:
    """For every attack, the paired difference of each model to the first; None if either was not attacked so, or only
    on a sample, which counts in the worst case alone.

    Raises UserError if the images or the threat models differ.
    """
    worst: list[PairedDifference | None] = [compare(model.evaluation, models[0].evaluation) for model in models[1:]]
    *attacks, _ = rows_of(models)
    return [*((name, [_paired(row, first) for row in rest]) for name, (first, *rest) in attacks), (WORST, worst)]


@section("Over seeds", order=10)
def seeds(models: Sequence[ModelReport]) -> Markup | None:
    """Mean accuracy over seeds, the accuracy of each seed, and the gain over the first model."""
    if not any(model.seeds for model in models):
        return None
    found = [survived(models[0], model) for model in models[1:]]
    gains = [{gain.name: gain for gain in one.gains} if one else {} for one in found]
    ends = _ends([gain for one in gains for gain in one.values()])
    rows: list[Cells] = [
        [
            name,
            *(_mean(model, name) for model in models),
            *(_difference(one[name], ends, tells=one[name].clear) if name in one else _untold(row_s) for one in gains),
        ]
        for name, row_s in rows_of(models)
    ]
    numbers = [", ".join(str(seed) for seed, _ in model.seeds) for model in models]
    below = [f"seed{'s' * (',' in text)} {text}" if text else "" for text in numbers]
    enough = min(len(model.seeds) for model in models) >= ENOUGH_SEEDS
    return render("seeds", models=models, of_the_methods=enough, tables=_tables(models, below, rows))


@section("Accuracy under attack", order=20)
def accuracy(models: Sequence[ModelReport]) -> Markup:
    """Accuracy with its interval under each attack, and the paired differences to the first model."""
    compared = differences(models)
    ends = _ends([d for _, row in compared for d in row if d is not None])
    rows: list[Cells] = [
        [
            name,
            *(None if row is None else _accuracy(m.evaluation, row) for m, row in zip(models, row_s, strict=True)),
            *(_untold(row_s) if d is None else _difference(d, ends, tells=not d.cannot_tell) for d in pairs),
        ]
        for (name, row_s), (_, pairs) in zip(rows_of(models), compared, strict=True)
    ]
    return render("accuracy", models=models, tables=_tables(models, [""] * len(models), rows))


@section("Accuracy against eps", order=40)
def curves(models: Sequence[ModelReport]) -> Markup | None:
    """Accuracy against eps, as a figure and a table."""
    known = {model.name: model.curve for model in models if model.curve is not None}
    if not known:
        return None
    drawing = curve_figure(known, {model.name: model.evaluation for model in models if model.name in known})
    radii = sorted({eps for curve in known.values() for eps in curve.at})
    cells = [
        {e: accuracy_cell(a, i) for e, a, i in zip(curve.at, curve.accuracy, curve.intervals, strict=True)}
        for curve in known.values()
    ]
    rows = [[radius(eps), *(column.get(eps, "") for column in cells)] for eps in radii]
    curve = next(iter(known.values()))
    return render(
        "curves",
        figure=figure(drawing, f"Accuracy against eps, from 0 to {radius(radii[-1])}, of {', '.join(known)}."),
        table=table(
            f"The values of the curves: accuracy in % under PGD-{curve.steps}, with 95 % intervals.",
            ["eps", *key(list(known))],
            rows,
        ),
        curve=curve,
    )


def _untold(rows: Sequence[Row | None]) -> str | None:
    """What stands for the difference of two rows that can't be compared."""
    return ON_SAMPLE if any(row is not None and row.sampled for row in rows) else None


def _accuracy(evaluation: Evaluation, row: Row) -> TableCell | str:
    if row.sampled:
        return ON_SAMPLE
    return NO_VERDICT if evaluation.refuted(row) else accuracy_cell(row.accuracy, row.interval)


def _tables(
    models: Sequence[ModelReport], below: Sequence[str], rows: Sequence[Cells]
) -> list[tuple[list[tuple[str, str]], list[Cells]]]:
    """(headings, rows): the models, then the differences of the others to the first one. With more than two models the
    differences have a table of their own, because one would be too wide for the page.
    """
    names = [model.name for model in models]
    attack, dots, to = ("attack", ""), key(names), f"to {names[0]}"
    accuracies = [attack, *zip(dots, below, strict=True)]
    if len(models) < 3:
        return [([*accuracies, *[("difference", to)] * (len(models) - 1)], list(rows))]
    cut = len(accuracies)
    return [
        (accuracies, [row[:cut] for row in rows]),
        ([attack, *((dot, "difference") for dot in dots[1:])], [[row[0], *row[cut:]] for row in rows]),
    ]


def _paired(row: Row | None, first: Row | None) -> PairedDifference | None:
    if row is None or first is None or row.sampled or first.sampled:
        return None
    return paired_rows(row, first)


def _ends(found: Sequence[PairedDifference | Gain]) -> tuple[float, float]:
    """The ends of the axis on which the intervals of a table are drawn."""
    ends = [0.0, *(d.low for d in found), *(d.high for d in found)]
    return min(ends), max(ends)


def _difference(d: PairedDifference | Gain, ends: tuple[float, float], *, tells: bool) -> TableCell:
    left, right = ends
    length = (right - left) or 1.0
    bar = tuple(round(1000 * (v - left) / length) for v in (0.0, d.low, d.difference, d.high))
    return TableCell(points(d.difference), span(d), bar, open=not tells)


def _mean(model: ModelReport, name: str) -> TableCell | str | None:
    """The mean accuracy over the seeds of a model, and each seed's; None if the attack was not run on every seed."""
    rows = [row_for(evaluation, name) for evaluation in model.checkpoints.values()]
    shares = [row.accuracy for row in rows if row is not None]
    if len(shares) < len(rows):
        return None
    if sampled := _untold(rows):
        return sampled
    mean = mean_over_seeds(columns_of([row for row in rows if row is not None]))
    return TableCell(percent(mean.value), " \u00b7 ".join(map(percent, shares)))
