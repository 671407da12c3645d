"""An attack with a name and a record: what an evaluation runs, and exactly with which settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from advsphere.attacks import Attack, restarts
from advsphere.errors import UserError
from advsphere.files import tensor_checksum


@dataclass(frozen=True)
class AttackSpec:
    """One column of an evaluation.

    name: unique in its suite. attack: a `functools.partial` with all settings bound. restarts: how often it is run,
    each time with draws of its own; the worst case counts. after: attacks before it whose finds it does not look for
    again; what is left after it is what is left after all of them. minimal: it looks for the nearest adversarial
    example, however far that is, and is judged by the norm. note: what a reader has to know of its settings.
    """

    name: str
    attack: Attack
    restarts: int = 1
    after: tuple[str, ...] = ()
    minimal: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise UserError(
                f"{self.name} is to run {self.restarts} times; restarts counts the runs, so it is 1 or more"
            )

    @property
    def run(self) -> Attack:
        """The attack with its restarts."""
        return self.attack if self.restarts == 1 else restarts(self.attack, self.restarts)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as JSON-able data, defaults included: equal settings are the same attack."""
        described = describe(self.attack)
        settings = dict(described) if isinstance(described, Mapping) else {"name": described}
        own = {"after": list(self.after), "minimal": self.minimal, "note": self.note}
        return settings | {"restarts": self.restarts} | {key: value for key, value in own.items() if value}


def describe(value: object) -> Any:
    """JSON-able data that says what a setting is.

    A partial becomes its function's name and every parameter, defaults included. A function that another one made
    becomes its maker's name and what it was made from: `at_scale(margin, 0.1)` is {"name": "at_scale", "factor": 0.1,
    "loss": "margin"}. A tensor becomes its shape and checksum, a module its type and the checksum of its state. Raises
    UserError for what no record could tell apart, such as a lambda.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "checksum": tensor_checksum({"": value})}
    if isinstance(value, nn.Module):
        return {"module": type(value).__name__, "checksum": tensor_checksum(value.state_dict())}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: describe(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, partial):
        bound = inspect.signature(value.func).bind_partial(*value.args, **value.keywords)
        bound.apply_defaults()
        given = {k: describe(v) for k, v in bound.arguments.items() if k != "draws"}  # the evaluation gives these
        return {"name": describe(value.func), **given}
    name = getattr(value, "__qualname__", "")
    if not inspect.isroutine(value) or "<lambda>" in name:
        raise UserError(
            f"an attack's settings must be recorded exactly, and {value!r} can't be; "
            "use numbers, strings, named functions and functools.partial"
        )
    if "<locals>" not in name:
        return name
    maker = name.split(".<locals>")[0]
    made_from = inspect.getclosurevars(value).nonlocals
    return {"name": maker, **{k: describe(v) for k, v in sorted(made_from.items())}}
