"""The sections for whoever asks where a model gives way, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from advsphere.analysis.agreement import Agreement, agreement_figure
from advsphere.analysis.angles import Spread, spread_figure
from advsphere.analysis.classwise import ClassAccuracy, class_figure, weakest
from advsphere.analysis.gradients import ratio_figure, ratio_history_figure, recorded_ratios
from advsphere.analysis.perturbations import Picture
from advsphere.corruption.result import ALEXNET, CorruptionRecord
from advsphere.errors import UserError
from advsphere.report import rendering as numbers
from advsphere.report.collect import ModelReport, Pictures
from advsphere.report.rendering import png, render, svg
from advsphere.report.sections import EN_DASH, Cell, Section
from advsphere.threat import radius

NARROW = 10
"""Up to so many attacks, two of their figures stand side by side."""


class Drawing(NamedTuple):
    """A figure to embed, with the sentence below it."""

    figure: Markup
    caption: str


def classes(models: Sequence[ModelReport]) -> Section | None:
    """Clean and worst-case accuracy of each class."""
    known = {model.name: model.classes for model in models if model.classes}
    if not known:
        return None
    shown = weakest(known)
    by_name = {name: {one.name: one for one in found} for name, found in known.items()}
    rows = [
        (label, next(iter(by_name.values()))[label].n, [_cells(found[label]) for found in by_name.values()])
        for label in shown
    ]
    least = {name: min(found, key=lambda one: one.worst / one.n) for name, found in known.items()}
    title = f"Accuracy class by class, of {', '.join(known)}. The table below has its numbers."
    html = render(
        "classes",
        figure=_drawn(class_figure(known), "classes-figure", title),
        names=list(known),
        rows=rows,
        count=len(next(iter(known.values()))),
        least=[(name, one, numbers.percent(one.worst / one.n)) for name, one in least.items()],
    )
    return Section("classes", "Class by class", html)


def agreement(models: Sequence[ModelReport]) -> Section | None:
    """What each attack finds that another misses."""
    known = {model.name: Agreement.of(model.evaluation) for model in models}
    known = {name: found for name, found in known.items() if len(found.names) > 1}
    if not known:
        return None
    drawings = [
        (name, found, _drawn(agreement_figure(found), f"agreement-{i}", _agreement_title(name, found)), _pairs(found))
        for i, (name, found) in enumerate(known.items())
    ]
    narrow = max(len(found.names) for found in known.values()) <= NARROW
    return Section("agreement", "Agreement of the attacks", render("agreement", drawings=drawings, narrow=narrow))


def angles(models: Sequence[ModelReport]) -> Section | None:
    """How angles and angular margins spread over the images."""
    known = {model.name: model.spread for model in models if model.spread is not None}
    if not known:
        return None
    titles: dict[Literal["angle", "margin"], tuple[str, str]] = {
        "margin": ("Angular margins", "by which the nearest other class is farther than the own one"),
        "angle": ("Angles to the own class", "between an image's features and the direction of its class"),
    }
    drawings = [
        Drawing(
            _drawn(spread_figure(known, what), f"angles-{what}", f"{title} of {', '.join(known)}, as histograms."),
            f"{title}: {meaning}.",
        )
        for what, (title, meaning) in titles.items()
    ]
    rows = [(name, part, *_quartiles(spread, part)) for name, spread in known.items() for part in _PARTS]
    one = next(iter(known.values()))
    html = render("angles", drawings=drawings, rows=rows, steps=one.steps, n=one.n, of=one.of)
    return Section("angles", "Margins and angles", html)


def gradients(models: Sequence[ModelReport]) -> Section | None:
    """Gradient-norm ratios of the layers, adversarial over clean."""
    measured = {model.name: model.gradients for model in models if model.gradients is not None}
    logged = {model.name: model.metrics for model in models if recorded_ratios(model.metrics)[0]}
    of = "Gradient-norm ratios"
    drawings = []
    if measured:
        drawn = _drawn(ratio_figure(measured), "gradients-layers", f"{of} layer by layer, of {', '.join(measured)}.")
        drawings.append(Drawing(drawn, "Layer by layer, in the network as it was judged."))
    if logged:
        drawn = _drawn(ratio_history_figure(logged), "gradients-epochs", f"{of} over training, of {', '.join(logged)}.")
        drawings.append(Drawing(drawn, "After each epoch of training: the median of the layers."))
    rows = [
        (name, f"{min(ratios):.2f}", f"{found.middle:.2f}", f"{max(ratios):.2f}", len(ratios))
        for name, found in measured.items()
        if (ratios := [v for v in found.ratio if v == v])
    ]
    if not drawings:
        return None
    return Section("gradients", "Gradient norms", render("gradients", drawings=drawings, rows=rows))


_PARTS = {"clean": "clean", "adversarial": "under attack"}


def _quartiles(spread: Spread, part: str) -> tuple[str, list[Cell]]:
    """(the share of images with a margin below 0; median and quartiles of margins and angles)."""
    sample = getattr(spread, part)
    cells = []
    for values in map(sorted, (sample.margin, sample.angle)):
        low, middle, high = (f"{values[round(q * (len(values) - 1))]:.1f}" for q in (0.25, 0.5, 0.75))
        cells.append(Cell(middle, f"{low} to {high}"))
    return numbers.percent(sum(v < 0 for v in sample.margin) / len(sample.margin)), cells


def _cells(one: ClassAccuracy) -> list[Cell]:
    pairs = ((one.clean, one.clean_interval), (one.worst, one.interval))
    return [Cell(numbers.percent(k / one.n), numbers.limits(interval, EN_DASH)) for k, interval in pairs]


def _pairs(found: Agreement) -> list[tuple[str, str, int, int, int]]:
    """For each two attacks: what both fool, what the one does alone, what the other does."""
    count = len(found.names)
    return [
        (found.names[i], found.names[j], found.both(i, j), found.only(i, j), found.only(j, i))
        for i in range(count)
        for j in range(i + 1, count)
    ]


def _agreement_title(name: str, found: Agreement) -> str:
    alone = {attack: found.alone(i) for i, attack in enumerate(found.names) if found.alone(i)}
    adds = ", ".join(f"{attack} {count}" for attack, count in alone.items()) or "none"
    return f"What one attack on {name} fools and another does not. Fooled by one attack alone: {adds}."


def _drawn(figure: Figure, name: str, title: str) -> Markup:
    return Markup(svg(figure, name=name, title=title))


# FOLDED gallery: The pictures, as cards to be paged through.


def pictures(found: Pictures | None) -> Section | None:
    """Clean image, perturbation and adversarial image of the same examples for each model."""
    if found is None or not any(found.of.values()):
        return None
    cards = [
        (same[0], [_Tiles.of(name, picture, found.scale) for name, picture in zip(found.of, same, strict=True)])
        for same in zip(*found.of.values(), strict=True)
    ]
    each = 1 + max(sum(other.label == one.label for other, _ in cards[:i]) for i, (one, _) in enumerate(cards))
    html = render(
        "pictures",
        cards=cards,
        attack=found.attack,
        scale=radius(found.scale),
        several=len(found.of) > 1,
        each="" if each == 1 else each,
    )
    return Section("pictures", "Perturbations", html)


class _Tiles(NamedTuple):
    """A picture as images to embed."""

    name: str
    prediction: str
    clean: str
    perturbation: str
    adversarial: str

    @classmethod
    def of(cls, name: str, picture: Picture, scale: float) -> _Tiles:
        images = (picture.clean, picture.scaled(scale), picture.adversarial)
        return cls(name, picture.prediction, *map(png, images))


# FOLDED corruption: The section on common corruptions: no adversary, but what weather, cameras and codecs do to
# FOLDED corruption: images.

DEEPEST = 45
"""Per cent of colour in a field as accurate as without corruption; the numbers in it stay legible on dark and light."""


class Field(NamedTuple):
    """Of a heat map: an accuracy, and how much of the colour is in its tint, in per cent."""

    number: str
    tint: int


def corruptions(models: Sequence[ModelReport]) -> Section | None:
    """mCA with its interval, paired differences to the first model, and for each model accuracy at each severity."""
    known = {model.name: model.corruption for model in models if model.corruption is not None}
    if not known:
        return None
    first = next(iter(known.values()))
    rows = [(name, *_cells_corruption(record), _difference(record, first)) for name, record in known.items()]
    html = render(
        "corruptions",
        rows=rows,
        maps=[(name, _map(record)) for name, record in known.items()],
        severities=_severities(first),
        n=first.clean.n,
        counted=[name.replace("_", " ") for name in first.counted],
        all_of_them=first.counted == tuple(ALEXNET),
        source=_source(first),
    )
    return Section("corruptions", "Accuracy under common corruptions", html)


def _cells_corruption(record: CorruptionRecord) -> tuple[Cell, Cell]:
    clean, mca = record.clean, record.mca
    return (
        Cell(numbers.percent(clean.accuracy), numbers.limits(clean.interval, EN_DASH)),
        Cell(numbers.percent(mca.value), numbers.limits((mca.low, mca.high), EN_DASH)),
    )


def _difference(record: CorruptionRecord, first: CorruptionRecord) -> Cell | None:
    """In mCA, in points; None for the first itself, and empty where they are of different sets."""
    if record is first:
        return None
    try:
        d = record.better_than(first)
    except UserError:
        return Cell()
    told = ", cannot tell" if d.cannot_tell else ""
    return Cell(numbers.points(d.value), f"{numbers.points(d.low)} to {numbers.points(d.high)}{told}")


def _map(record: CorruptionRecord) -> list[tuple[str, bool, list[Field]]]:
    """For each corruption its name, whether mCA counts it, and a field for each severity and for their mean."""
    top = max(record.clean.accuracy, 1e-9)
    rows = []
    for name in record.names:
        shares = [*(record.cell(name, severity).accuracy for severity in _severities(record)), 1 - record.error(name)]
        fields = [Field(numbers.percent(share), round(DEEPEST * min(1.0, share / top))) for share in shares]
        rows.append((name.replace("_", " "), name in record.counted, fields))
    return rows


def _severities(record: CorruptionRecord) -> list[int]:
    return sorted({cell.severity for cell in record.cells})


def _source(record: CorruptionRecord) -> str:
    source = record.identity["corruptions"]
    if source["kind"] != "generated":
        return f"read from {source['folder']}"
    frost = "" if source["frost"] != "procedural" else ", frost with textures made of noise"
    return f"generated with the strengths of {source['table']}{frost}"
