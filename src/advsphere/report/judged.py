"""What a report is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from advsphere.analysis import ClassAccuracy, Curve, LayerGradients, Picture, Spread
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation
from advsphere.evaluation.corruption_record import CorruptionRecord


class Seed(NamedTuple):
    """One of several trainings that differ in their seed alone."""

    number: int
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A model with what was found out about it; only the evaluation has to be known.

    name: what the page calls it. evaluation, curve, spread: of the same model and images. classes: accuracy class by
    class. gradients: of its layers, as a diagnosis measured them. corruption: under common corruptions. metrics: what
    its run logged after each epoch. training: how it was trained, as JSON-able settings. seeds: where the same was
    trained several times, all of these, this one first. Raises UserError where curve or spread are of something else,
    and for one seed twice.
    """

    name: str
    evaluation: Evaluation
    curve: Curve | None = None
    spread: Spread | None = None
    classes: Sequence[ClassAccuracy] = ()
    gradients: LayerGradients | None = None
    corruption: CorruptionRecord | None = None
    metrics: Sequence[Mapping[str, float]] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[Seed] = ()

    def __post_init__(self) -> None:
        if len({seed.evaluation.identity["model"]["checksum"] for seed in self.seeds}) < len(self.seeds):
            raise UserError(
                f"a checkpoint is twice among the seeds of {self.name}; the same one again is no other seed"
            )
        identity = self.evaluation.identity
        found = (identity["model"]["checksum"], identity["data"]["checksum"])
        for what, part in (("curve is", self.curve), ("angles are", self.spread)):
            if part is not None and (part.model, part.data) != found:
                raise UserError(f"the {what} of another model or other images than the evaluation of {self.name}")

    @property
    def checkpoints(self) -> dict[str, Evaluation]:
        """The evaluations of all seeds, each under a name of its own."""
        every = {f"{self.name}, seed {seed.number}": seed.evaluation for seed in self.seeds}
        return every or {self.name: self.evaluation}


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The same examples under one attack on each model. of: by the models' names. scale: the pixel difference that is
    drawn as black or white.
    """

    attack: str
    scale: float
    of: Mapping[str, Sequence[Picture]]


class Command(NamedTuple):
    """A line to type, and what it does."""

    what: str
    line: str
