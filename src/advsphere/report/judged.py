"""What a report is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from advsphere.analysis import Curve, Picture
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A model with what was found out about it.

    name: what the page calls it. evaluation, curve: of the same model and images. training: how it was trained, as
    JSON-able settings; {} where that is not known. Raises UserError where the curve is of something else.
    """

    name: str
    evaluation: Evaluation
    curve: Curve | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        identity = self.evaluation.identity
        found = (identity["model"]["checksum"], identity["data"]["checksum"])
        if self.curve is not None and (self.curve.model, self.curve.data) != found:
            raise UserError(f"the curve of {self.name} is of another model or other images than its evaluation")


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
