"""Pictures of clean, perturbation and adversarial image, as data, chosen by a rule and not by eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advsphere.data import Images
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation, Ledger


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
