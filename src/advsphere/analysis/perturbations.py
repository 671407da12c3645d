"""Pictures of clean, perturbation and adversarial image, as data, chosen by a rule and not by eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advsphere.analysis.angles import Angles, HeadParts
from advsphere.analysis.canvas import INK, SOFT, canvas, show_image
from advsphere.analysis.hard_examples import STEPS, craft
from advsphere.classifier import frozen
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation import Attempt, Evaluation, Ledger, Trace
from advsphere.threat import ThreatModel, radius


@dataclass(frozen=True, eq=False, kw_only=True)
class Picture:
    """One image, and what fooled a model that classified the clean one as labelled.

    example: its number in the set. label, prediction: names of classes. clean, adversarial: (C, H, W) float32 in
    [0, 1].
    """

    example: int
    label: str
    prediction: str
    clean: Tensor
    adversarial: Tensor

    @property
    def perturbation(self) -> Tensor:
        """(C, H, W), the difference that the attack made."""
        return self.adversarial - self.clean

    def scaled(self, size: float) -> Tensor:
        """The perturbation to be looked at, (C, H, W) in [0, 1]: grey where nothing changed, black at -size and white
        at +size or beyond.
        """
        return (0.5 + self.perturbation / (2 * size)).clamp(0, 1)


def strongest(evaluations: Sequence[Evaluation]) -> str:
    """The attack that left the fewest examples, summed over the models; the first of equals. One that tried only what
    others had left is not asked, unless there is no other. Raises UserError where the evaluations have none in common.
    """
    rows = evaluations[0].attacks
    names = [row.name for row in rows if not row.settings.get("after")] or [row.name for row in rows]
    shared = [name for name in names if all(any(row.name == name for row in e.attacks) for e in evaluations)]
    if not shared:
        raise UserError("these evaluations share no attack; run the same suite on all of them")
    return min(shared, key=lambda name: sum(e.row(name).k for e in evaluations))


def fooled_by(ledgers: Sequence[Ledger], attack: str, *, each: int = 1) -> list[int]:
    """Of each class, in order, the first example with which the attack fooled all of the models; then the second of
    each, up to `each`. A class that has no more is passed over.
    """
    columns = [{cell.example for cell in ledger.cells(attack) if cell.status == "fooled"} for ledger in ledgers]
    of_class: dict[int, list[int]] = {}
    for example in sorted(set.intersection(*columns)):
        of_class.setdefault(ledgers[0].labels[example], []).append(example)
    return [of_class[label][i] for i in range(each) for label in sorted(of_class) if i < len(of_class[label])]


def pictures(ledger: Ledger, images: Images, attack: str, examples: Sequence[int]) -> tuple[Picture, ...]:
    """The pictures of these examples out of a ledger; each has to be one that the attack fooled the model with.

    images: those that were evaluated. Raises UserError for damaged data.
    """
    cells = {cell.example: cell for cell in ledger.cells(attack)}
    found = []
    for example in examples:
        x, y = images.batch(torch.tensor([example]))
        adversarial, prediction = ledger.adversarial(attack, example), cells[example].prediction
        assert adversarial is not None and prediction is not None, f"{attack} did not fool the model on {example}"
        found.append(
            Picture(
                example=example,
                label=images.classes[int(y)],
                prediction=images.classes[prediction] if prediction >= 0 else "no number",
                clean=x[0].cpu(),
                adversarial=adversarial,
            )
        )
    return tuple(found)


# FOLDED strips: One example as a figure: for each attack a strip of clean image, perturbation and adversarial
# FOLDED strips: image.

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def strip(told: Trace, images: Images, attempt: Attempt, x_adv: Tensor) -> Picture:
    """What an attack made of the example of a story. images: those that were evaluated. x_adv: (C, H, W)."""
    return Picture(
        example=told.example,
        label=told.name(told.label),
        prediction=told.name(attempt.prediction),
        clean=_clean(told, images),
        adversarial=x_adv,
    )


def stored_strips(book: Ledger, told: Trace, images: Images) -> dict[str, Picture]:
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


def strip_figure(told: Trace, images: Images, strips: Mapping[str, Picture]) -> Figure:
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


def _clean(told: Trace, images: Images) -> Tensor:
    x, _ = images.batch(images.labels.new_tensor([told.example]))
    return x[0].cpu()


# FOLDED sheet: Perturbations to look at: one network, the same images, attacked with FN on the way and
# FOLDED sheet: without.

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
    anatomy: HeadParts,
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
