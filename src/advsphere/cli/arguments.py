"""Parse arguments into typed dataclasses with tyro, with radii such as 8/255 and times such as 10m."""

from __future__ import annotations

import math
import re
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


SECONDS = {"h": 3600.0, "min": 60.0, "m": 60.0, "sec": 1.0, "s": 1.0}


def seconds(text: str) -> float:
    """Read 10m, 10min, 90s, 1.5h, 1h30m or a plain number as seconds. Raises ValueError for anything else, or 0 or
    less.
    """
    parts = re.findall(r"([0-9./]+)(h|min|m|sec|s)", text)
    try:
        whole = "".join(amount + unit for amount, unit in parts) == text != ""
        value = sum(number(amount) * SECONDS[unit] for amount, unit in parts) if whole else number(text)
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not a positive time; write 90s, 10m or 1h30m")
    return value


DURATION = PrimitiveConstructorSpec[float | None](
    nargs=1,
    metavar="TIME",
    instance_from_str=lambda words: None if words[0] == "None" else seconds(words[0]),
    is_instance=lambda value: value is None or isinstance(value, int | float),
    str_from_instance=lambda value: [str(value)],
)
"""Parses a number of seconds written as 90s, 10m or 1h30m."""


def number(text: str) -> float:
    """Read 0.03, 1e-3 or 8/255. Raises ValueError for anything else."""
    try:
        return float(text)
    except ValueError:
        try:
            return float(Fraction(text))
        except ArithmeticError as error:  # x/0, or beyond the largest number
            raise ValueError(f"{text} is no number") from error
