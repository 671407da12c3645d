"""Arguments from typed dataclasses, by tyro, with radii as people write them: 8/255."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

T = TypeVar("T")


def parse(kind: type[T], arguments: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """An instance of a dataclass from flags; exits with usage, and the nearest flag, where they don't fit."""
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


def number(text: str) -> float:
    """0.03, 1e-3 or 8/255. Raises ValueError for anything else."""
    try:
        return float(text)
    except ValueError:
        return float(Fraction(text))
