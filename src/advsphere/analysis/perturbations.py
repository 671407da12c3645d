"""Pictures of the clean image, the perturbation and the adversarial image, for examples selected by a fixed rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advsphere.analysis.angles import Angles
from advsphere.analysis.canvas import INK, SOFT, canvas, show_image
from advsphere.analysis.crafting import STEPS, craft
from advsphere.analysis.linear_head import HeadParts
from advsphere.classifier import frozen
from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation, Ledger
from advsphere.evaluation.trace import Attempt, Trace
from advsphere.threat import ThreatModel, radius

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, kw_only=True)
class Picture:
    """One attacked image: its number in the set, the names of its label and prediction, (C, H, W) pixels in [0, 1]
    before and after the attack, and the name of its file if it has one.
    """

    example: int
    label: str
    prediction: str
    clean: Tensor
    adversarial: Tensor
    file: str | None = None

    @property
    def perturbation(self) -> Tensor:
        """(C, H, W), adversarial minus clean."""
        return self.adversarial - self.clean

    def scaled(self, size: float) -> Tensor:
        """The perturbation as an image: grey means no change, black -size and white +size or beyond."""
        return (0.5 + self.perturbation / (2 * size)).clamp(0, 1)


def strongest(evaluations: Sequence[Evaluation]) -> str:
    """The attack that leaves the fewest examples correct, summed over the models; the first one of a tie.

    Attacks that skipped examples because of others count only if there are no other attacks. Raises UserError if the
    evaluations share no attack.
    """
    rows = evaluations[0].attacks
    names = [row.name for row in rows if not row.settings.get("after")] or [row.name for row in rows]
    shared = [name for name in names if all(any(row.name == name for row in e.attacks) for e in evaluations)]
    if not shared:
        raise UserError("these evaluations share no attack; run the same suite on all of them")
    return min(shared, key=lambda name: sum(e.row(name).k for e in evaluations))


def fooled_by(ledgers: Sequence[Ledger], attack: str, *, each: int = 1) -> list[int]:
    """The first example of each class on which the attack fooled all models, then the second, up to `each`."""
    columns = [{cell.example for cell in ledger.cells(attack) if cell.status == "fooled"} for ledger in ledgers]
    of_class: dict[int, list[int]] = {}
    for example in sorted(set.intersection(*columns)):
        of_class.setdefault(ledgers[0].labels[example], []).append(example)
    return [of_class[label][i] for i in range(each) for label in sorted(of_class) if i < len(of_class[label])]


def pictures(ledger: Ledger, images: Images, attack: str, examples: Sequence[int]) -> tuple[Picture, ...]:
    """Pictures of examples on which the attack fooled the model. Raises UserError for damaged data."""
    cells = {cell.example: cell for cell in ledger.cells(attack)}
    found = []
    for example in examples:
        adversarial, prediction = ledger.adversarial(attack, example), cells[example].prediction
        assert adversarial is not None, f"{attack} did not fool the model on {example}"
        found.append(_picture(images, example, prediction, adversarial))
    return tuple(found)


def _picture(images: Images, example: int, prediction: int | None, adversarial: Tensor) -> Picture:
    if prediction is None or prediction < 0:
        predicted = "no number"
    else:
        predicted = images.classes[prediction] if prediction < len(images.classes) else f"class {prediction}"
    return Picture(
        example=example,
        label=images.classes[int(images.labels[example])],
        prediction=predicted,
        clean=_clean(images, example),
        adversarial=adversarial.cpu(),
        file=None if images.files is None else images.files[example],
    )


def strip(trace: Trace, images: Images, attempt: Attempt, x_adv: Tensor) -> Picture:
    """The picture of one attempt on the example of a trace; x_adv is (C, H, W)."""
    return _picture(images, trace.example, attempt.prediction, x_adv)


def stored_strips(ledger: Ledger, trace: Trace, images: Images) -> dict[str, Picture]:
    """A picture for each attack whose result the ledger stores. Raises UserError if one is damaged or missing."""
    strips = {}
    for attempt in trace.attempts:
        if attempt.stored:
            x_adv = ledger.adversarial(attempt.attack, trace.example)
            if x_adv is None:
                raise UserError(f"{ledger.path} has lost the result of {attempt.attack} on example {trace.example}")
            outside = "" if attempt.outcome == "fooled" else ", outside the ball"
            strips[f"{attempt.attack}{outside}"] = strip(trace, images, attempt, x_adv)
    return strips


def strip_figure(trace: Trace, images: Images, strips: Mapping[str, Picture]) -> Figure:
    """A row for each attack, or the clean image alone. Captions give the largest value, which scales a perturbation."""
    rows, columns = max(1, len(strips)), 3 if strips else 1
    figure, axes = canvas(2.1 * columns + 0.4, 2.5 * rows + 0.4, rows, columns)
    figure.suptitle(trace.title, color=INK, fontsize=10, parse_math=False, wrap=True)
    if not strips:
        show_image(axes[0], _clean(images, trace.example), "clean")
    for row, (attack, picture) in enumerate(strips.items()):
        left, middle, right = axes[3 * row : 3 * row + 3]
        size = max(picture.perturbation.abs().max().item(), 1e-12)
        show_image(left, picture.clean, f"clean: {picture.label}")
        show_image(middle, picture.scaled(size), f"perturbation, +-{size:.3g}")
        show_image(right, picture.adversarial, f"perturbed: {picture.prediction}")
        middle.set_title(attack, color=INK, fontsize=9, fontweight="bold", parse_math=False)
    return figure


def _clean(images: Images, example: int) -> Tensor:
    x, _ = images.batch(torch.tensor([example]))
    return x[0].cpu()


def first_right(clean: Angles, most: int = 6) -> tuple[int, ...]:
    """The first correctly classified image of each class, in order, for at most `most` classes."""
    right = (clean.predictions == clean.labels).nonzero().squeeze(1).tolist()
    first: dict[int, int] = {}
    for i in right:
        first.setdefault(int(clean.labels[i]), i)
    return tuple(first[label] for label in sorted(first)[:most])


def both_ways(
    parts: HeadParts,
    images: Images,
    examples: Sequence[int],
    *,
    threat: ThreatModel,
    steps: int = STEPS,
    seed: int = 0,
) -> dict[str, tuple[Picture, ...]]:
    """PGD "with FN" and "without FN" on the examples. The network's predictions need not be wrong."""
    chosen = images.take(torch.tensor(examples, device=images.labels.device))
    found = {}
    for name, fn in (("with FN", True), ("without FN", False)):
        crafted = craft(parts.model, chosen, threat=threat, steps=steps, path=parts.path(fn=fn), seed=seed)
        with frozen(parts.model) as classify, torch.no_grad():
            predictions = classify(crafted.x_adv).argmax(1).tolist()
        found[name] = tuple(
            _picture(images, example, prediction, x_adv)
            for example, prediction, x_adv in zip(examples, predictions, crafted.x_adv, strict=True)
        )
    return found


def picture_figure(found: Mapping[str, Sequence[Picture]], scale: float) -> Figure:
    """Each row has a clean image, and the perturbation (-scale is black, +scale white) and result of each attack."""
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
