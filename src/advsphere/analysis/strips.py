"""One example as a figure: for each attack a strip of clean image, perturbation and adversarial image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from advsphere.analysis.canvas import show_image
from advsphere.analysis.palette import INK
from advsphere.analysis.pictures import Picture
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation import Attempt, Ledger, Story

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def strip(told: Story, images: Images, attempt: Attempt, x_adv: Tensor) -> Picture:
    """What an attack made of the example of a story. images: those that were evaluated. x_adv: (C, H, W)."""
    return Picture(
        example=told.example,
        label=told.name(told.label),
        prediction=told.name(attempt.prediction),
        clean=_clean(told, images),
        adversarial=x_adv,
    )


def stored_strips(book: Ledger, told: Story, images: Images) -> dict[str, Picture]:
    """Everything that the ledger keeps images of, by attack. Raises UserError where one is damaged or gone."""
    strips = {}
    for attempt in told.attempts:
        if attempt.stored:
            x_adv = book.adversarial(attempt.attack, told.example)
            if x_adv is None:
                raise UserError(f"{book.path} has lost what {attempt.attack} made of example {told.example}")
            outside = "" if attempt.fate == "fooled" else ", outside the ball"
            strips[f"{attempt.attack}{outside}"] = strip(told, images, attempt, x_adv)
    return strips


def strip_figure(told: Story, images: Images, strips: Mapping[str, Picture]) -> Figure:
    """A row for each attack; the clean image alone where there is none.

    The perturbation is scaled by its own largest value, which its caption gives: grey where nothing changed.
    """
    from matplotlib.figure import Figure

    rows, columns = max(1, len(strips)), 3 if strips else 1
    figure = Figure(figsize=(2.1 * columns + 0.4, 2.5 * rows + 0.4), layout="constrained", facecolor="white")
    figure.suptitle(told.title, color=INK, fontsize=10, parse_math=False, wrap=True)
    axes = figure.subplots(rows, columns, squeeze=False)
    if not strips:
        show_image(axes[0][0], _clean(told, images), "clean")
    for row, (attack, picture) in zip(axes, strips.items(), strict=False):
        size = max(picture.perturbation.abs().max().item(), 1e-12)
        show_image(row[0], picture.clean, f"clean: {picture.label}")
        show_image(row[1], picture.scaled(size), f"perturbation, +-{size:.3g}")
        show_image(row[2], picture.adversarial, f"perturbed: {picture.prediction}")
        row[1].set_title(attack, color=INK, fontsize=9, fontweight="bold", parse_math=False)
    return figure


def _clean(told: Story, images: Images) -> Tensor:
    x, _ = images.batch(images.labels.new_tensor([told.example]))
    return x[0].cpu()
