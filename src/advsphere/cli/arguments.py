"""Parse arguments into typed dataclasses with tyro, with radii such as 8/255 and times such as 10m."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

T = TypeVar("T")


def parse(kind: type[T], arguments: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """Build a dataclass from flags. If they do not fit, print the usage and the nearest flag, and exit."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def fraction(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float] | None:
        if info.type is not float:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="FLOAT",
            instance_from_str=lambda words: number(words[0]),
            is_instance=lambda value: isinstance(value, int | float),
            str_from_instance=lambda value: [str(value)],
        )

    keywords: dict[str, Any] = {} if default is None else {"default": default}
    parsed: T = tyro.cli(
        kind, args=list(arguments), prog=prog, registry=registry, config=(tyro.conf.AvoidSubcommands,), **keywords
    )
    return parsed


SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Read 10m, 10min, 90s, 1.5h or a plain number as seconds. Raises ValueError for anything else, or 0 or less."""
    amount = text.rstrip("secminh")
    unit = text[len(amount) :]
    value = number(amount) * SECONDS[unit] if unit in SECONDS else 0.0
    if not value > 0:
        raise ValueError(f"{text} is not a positive time; write 90s, 10m or 2h")
    return value


DURATION = PrimitiveConstructorSpec[float | None](
    nargs=1,
    metavar="TIME",
    instance_from_str=lambda words: None if words[0] == "None" else seconds(words[0]),
    is_instance=lambda value: value is None or isinstance(value, int | float),
    str_from_instance=lambda value: [str(value)],
)
"""Parses a number of seconds written as 90s, 10m or 2h."""


def number(text: str) -> float:
    """Read 0.03, 1e-3 or 8/255. Raises ValueError for anything else."""
    try:
        return float(text)
    except ValueError:
        return float(Fraction(text))
