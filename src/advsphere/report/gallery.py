"""The pictures, as cards to be paged through."""

from __future__ import annotations

from typing import NamedTuple

from advsphere.analysis import Picture
from advsphere.evaluation import radius
from advsphere.report.figures import png
from advsphere.report.judged import Pictures
from advsphere.report.rendering import render
from advsphere.report.sections import Section


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
