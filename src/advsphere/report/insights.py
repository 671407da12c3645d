"""The sections on where and why a model fails: corruptions, classes, attacks, angles, gradients and pictures."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from advsphere.analysis.agreement import Agreement, agreement_figure
from advsphere.analysis.angles import Spread, spread_figure
from advsphere.analysis.classwise import class_figure, weakest
from advsphere.analysis.gradients import ratio_figure, ratio_history_figure, recorded_ratios
from advsphere.corruption.result import ALEXNET, CorruptionRecord, corruption_figure
from advsphere.errors import UserError
from advsphere.report.collect import ModelReport
from advsphere.report.rendering import TableCell, accuracy_cell, figure, key, percent, points, render, table
from advsphere.report.sections import section
from advsphere.threat import radius

NARROW = 10
"""Figures of up to this many attacks are shown side by side."""


@section("Accuracy under common corruptions", order=50)
def corruptions(models: Sequence[ModelReport]) -> Markup | None:
    """mCA with its interval, paired differences to the first model, and accuracy at each severity."""
    known = {model.name: model.corruption for model in models if model.corruption is not None}
    if not known:
        return None
    first = next(iter(known.values()))
    rows = [
        [
            name,
            accuracy_cell(record.clean.accuracy, record.clean.interval),
            accuracy_cell(record.mca.value, (record.mca.low, record.mca.high)),
            *([_mca_difference(record, first)] if len(known) > 1 else []),
        ]
        for name, record in zip(key(list(known)), known.values(), strict=True)
    ]
    difference = [("difference", f"to {next(iter(known))}, paired")] if len(known) > 1 else []
    return render(
        "corruptions",
        columns=["model", "clean", "mCA", *difference],
        rows=rows,
        maps=[
            (name, figure(corruption_figure(record), f"Accuracy of {name} under each corruption at each severity."))
            for name, record in known.items()
        ],
        severities=len({cell.severity for cell in first.cells}),
        n=first.clean.n,
        counted=[name.replace("_", " ") for name in first.counted],
        all_of_them=first.counted == tuple(ALEXNET),
        source=_source(first),
    )


@section("Accuracy of each class", order=60)
def classes(models: Sequence[ModelReport]) -> Markup | None:
    """Clean and worst-case accuracy of each class."""
    known = {model.name: model.classes for model in models if model.classes}
    if not known:
        return None
    shown = weakest(known)
    by_name = [{one.name: one for one in found} for found in known.values()]
    rows = []
    for label in shown:
        cells: list[str | TableCell] = [label, f"{by_name[0][label].n}"]
        for found in by_name:
            one = found[label]
            cells.append(accuracy_cell(one.clean / one.n, one.clean_interval))
            cells.append(accuracy_cell(one.worst / one.n, one.interval))
        rows.append(cells)
    lowest = {name: min(found, key=lambda one: one.worst / one.n) for name, found in known.items()}
    return render(
        "classes",
        lowest=[(name, one.name, percent(one.worst / one.n)) for name, one in lowest.items()],
        figure=figure(class_figure(known), f"Accuracy of each class, of {', '.join(known)}."),
        table=table(
            "Accuracy in %, with 95 % intervals (Wilson).",
            ["class", "images", *["clean", "worst case"] * len(known)],
            rows,
            groups=[(name, 2) for name in key(list(known))],
        ),
        shown=len(shown),
        count=len(by_name[0]),
    )


@section("Overlap of the attacks", order=70)
def agreement(models: Sequence[ModelReport]) -> Markup | None:
    """The number of images that each attack fools and another does not."""
    known = {model.name: Agreement.of(model.evaluation) for model in models}
    known = {name: found for name, found in known.items() if len(found.names) > 1}
    if not known:
        return None
    drawings = []
    for name, found in known.items():
        alone = {attack: found.alone(i) for i, attack in enumerate(found.names) if found.alone(i)}
        adds = ", ".join(f"{attack} {count}" for attack, count in alone.items()) or "none"
        alt = f"Images on which one attack fools {name} and another does not. Fooled by one attack alone: {adds}."
        drawings.append((name, found, figure(agreement_figure(found), alt)))
    narrow = max(len(found.names) for found in known.values()) <= NARROW
    return render("agreement", drawings=drawings, narrow=narrow)


@section("Margins and angles", order=80)
def angles(models: Sequence[ModelReport]) -> Markup | None:
    """The distributions of angles and angular margins over the images."""
    known = {model.name: model.spread for model in models if model.spread is not None}
    if not known:
        return None
    of = ", ".join(known)
    rows = [
        [f"{name}, {words}", *_quartiles(spread, part)]
        for name, spread in known.items()
        for part, words in (("clean", "clean"), ("adversarial", "under attack"))
    ]
    return render(
        "angles",
        margins=figure(spread_figure(known, "margin"), f"Histograms of the angular margins of {of}."),
        angles=figure(spread_figure(known, "angle"), f"Histograms of the angles to the true class of {of}."),
        table=table(
            "Medians and quartiles in degrees, and the share of images that are closer to another class, in %.",
            ["images", "angular margin", "below 0", "angle to the true class"],
            rows,
        ),
        one=next(iter(known.values())),
    )


@section("Gradient norms", order=90)
def gradients(models: Sequence[ModelReport]) -> Markup | None:
    """The gradient-norm ratio of adversarial to clean images in each layer."""
    measured = {model.name: model.gradients for model in models if model.gradients is not None}
    logged = {model.name: model.metrics for model in models if recorded_ratios(model.metrics)[0]}
    if not measured and not logged:
        return None
    ratios = {name: [v for v in found.ratio if v == v] for name, found in measured.items()}
    rows = [
        [name, *(f"{v:.2f}" for v in (min(values), measured[name].middle, max(values))), f"{len(values)}"]
        for name, values in ratios.items()
        if values
    ]
    return render(
        "gradients",
        layers=measured and figure(ratio_figure(measured), f"Gradient-norm ratios of {', '.join(measured)}, by layer."),
        epochs=logged
        and figure(ratio_history_figure(logged), f"Gradient-norm ratios of {', '.join(logged)}, by epoch."),
        table=rows and table("Gradient-norm ratios.", ["model", "smallest", "median", "largest", "layers"], rows),
    )


@section("Perturbations", order=100)
def pictures(models: Sequence[ModelReport]) -> Markup | None:
    """Clean image, perturbation and adversarial image of the same examples for each model."""
    found = {model.name: model.pictures for model in models if model.pictures and model.pictures.examples}
    if not found:
        return None
    eps = float(models[0].evaluation.identity["threat"]["eps"])
    cards = [dict(zip(found, same, strict=True)) for same in zip(*(p.examples for p in found.values()), strict=True)]
    labels = [picture.label for picture in next(iter(found.values())).examples]
    return render(
        "pictures",
        cards=cards,
        attack=next(iter(found.values())).attack,
        scale=radius(eps),
        eps=eps,
        each=max(map(labels.count, labels)),
    )


def _quartiles(spread: Spread, part: str) -> list[str | TableCell]:
    """Cells: quartiles of the margins, the share of margins below 0, quartiles of the angles."""
    sample = getattr(spread, part)
    cells = []
    for values in map(sorted, (sample.margin, sample.angle)):
        low, middle, high = (f"{values[round(q * (len(values) - 1))]:.1f}" for q in (0.25, 0.5, 0.75))
        cells.append(TableCell(middle, f"{low} to {high}"))
    return [cells[0], percent(sum(v < 0 for v in sample.margin) / len(sample.margin)), cells[1]]


def _mca_difference(record: CorruptionRecord, first: CorruptionRecord) -> str | TableCell:
    """The difference in mCA, in points."""
    if record is first:
        return ""
    try:
        d = record.better_than(first)
    except UserError:
        return "not comparable"
    told = ", cannot tell" if d.cannot_tell else ""
    return TableCell(points(d.value), f"{points(d.low)} to {points(d.high)}{told}")


def _source(record: CorruptionRecord) -> str:
    source = record.identity["corruptions"]
    if source["kind"] != "generated":
        return f"read from {source['folder']}"
    frost = "" if source["frost"] != "procedural" else ", frost with noise textures"
    return f"generated with the strengths of {source['table']}{frost}"
