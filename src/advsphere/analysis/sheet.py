"""Perturbations to look at: one network, the same images, attacked with FN on the way and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from advsphere.analysis.anatomy import Anatomy
from advsphere.analysis.angles import Angles
from advsphere.analysis.canvas import canvas, show_image
from advsphere.analysis.crafted import STEPS, craft
from advsphere.analysis.palette import INK, SOFT
from advsphere.analysis.pictures import Picture
from advsphere.classifier import frozen
from advsphere.data import Images
from advsphere.evaluation import radius
from advsphere.threat import ThreatModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def first_right(clean: Angles, most: int = 6) -> tuple[int, ...]:
    """Of each class, in order, the first image that is classified as labelled; at most so many classes."""
    right = (clean.predictions == clean.labels).nonzero().squeeze(1).tolist()
    first: dict[int, int] = {}
    for i in right:
        first.setdefault(int(clean.labels[i]), i)
    return tuple(first[label] for label in sorted(first)[:most])


def both_ways(
    anatomy: Anatomy,
    images: Images,
    examples: Sequence[int],
    *,
    threat: ThreatModel,
    steps: int = STEPS,
    seed: int = 0,
) -> dict[str, tuple[Picture, ...]]:
    """{"with FN": ..., "without FN": ...}: these images under PGD with steps of eps / 4, by the network with FN on the
    attack's path and without. The predictions are the untouched network's, and need not be wrong.
    """
    chosen = images.take(torch.tensor(examples, device=images.labels.device))
    found = {}
    for name, fn in (("with FN", True), ("without FN", False)):
        crafted = craft(anatomy.model, chosen, threat=threat, steps=steps, path=anatomy.path(fn=fn), seed=seed)
        with frozen(anatomy.model) as classify, torch.no_grad():
            predictions = classify(crafted.x_adv).argmax(1).tolist()
        found[name] = tuple(
            Picture(
                example=example,
                label=images.classes[int(crafted.y[i])],
                prediction=images.classes[predictions[i]],
                clean=crafted.x[i].cpu(),
                adversarial=crafted.x_adv[i].cpu(),
            )
            for i, example in enumerate(examples)
        )
    return found


def picture_figure(found: Mapping[str, Sequence[Picture]], scale: float) -> Figure:
    """A row for each image: the clean one, then for each way of attacking it the perturbation and the result.

    scale: the difference in pixel units that is drawn as black or white.
    """
    ways = list(found)
    rows = list(zip(*(found[way] for way in ways), strict=True))
    columns, heads_and_note = 1 + 2 * len(ways), 0.75
    side = max(1.35, rows[0][0].clean.shape[-1] / 145)  # a photo keeps its pixels at 160 dots an inch
    figure, axes = canvas(side * columns, (side + 0.15) * len(rows) + heads_and_note, len(rows), columns)
    for r, same in enumerate(rows):
        line = axes[r * columns : (r + 1) * columns]
        show_image(line[0], same[0].clean, same[0].label)
        for w, picture in enumerate(same):
            show_image(line[1 + 2 * w], picture.scaled(scale))
            wrong = picture.prediction != picture.label
            show_image(line[2 + 2 * w], picture.adversarial, picture.prediction, bold=wrong)
    heads = ["clean", *(part for way in ways for part in (f"{way}:\nperturbation", f"{way}:\nadversarial"))]
    for ax, head in zip(axes, heads, strict=False):
        ax.set_title(head, color=INK, fontsize=8.5, parse_math=False)
    note = f"perturbations: grey is no change, black and white are -{radius(scale)} and +{radius(scale)}; bold: fooled"
    figure.supxlabel(note, color=SOFT, fontsize=8)
    return figure
