"""Parse arguments into typed dataclasses with tyro, with radii such as 8/255 and times such as 10m."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from fractions import Fraction
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import tyro
from rich.text import Text
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from advsphere.cli.printing import print_error
from advsphere.typed import described

T = TypeVar("T")


def parse(kind: type[T], arguments: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """Build a dataclass from flags. If they do not fit, print one line with the cause and the cure, and exit with 2."""
    registry = ConstructorRegistry()
    registry.primitive_rule(_number)
    registry.primitive_rule(_either)
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            parsed: T = tyro.cli(
                kind,
                args=list(arguments),
                prog=prog,
                registry=registry,
                config=(tyro.conf.AvoidSubcommands,),
                **keywords,
            )
    except SystemExit as asked:
        if asked.code:
            print_error(f"{_cause(box.getvalue())}; `{prog} --help` explains the arguments")
        raise
    return parsed


def _cause(box: str) -> str:
    """The cause of an error, and the flags that may be meant, from the box that tyro prints. It has no other form."""
    rows = [row.strip(" │") for row in Text.from_ansi(box).plain.splitlines()[1:]]  # below the title
    cause, *more = re.split(r"\n[─-]+\n", "\n".join(rows).lstrip("-\n"))
    meant = [flag for part in more if part.startswith("Perhaps") for flag in re.findall(r"^--[^ ,]+", part, re.M)]
    line = " ".join(cause.removeprefix("Error parsing ").split()).rstrip(".")
    return f"{line}; use {' or '.join(meant)}" if meant else line


def _number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read whole numbers, and numbers such as 8/255."""
    if info.type not in (int, float):
        return None
    read = whole_number if info.type is int else number
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=info.type.__name__.upper(),
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, int | info.type),
        str_from_instance=lambda value: [str(value)],
    )


def _either(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read a value of one of several types. None is not mentioned: nobody types a default."""
    if get_origin(info.type) not in (Union, UnionType):
        return None
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    found = [ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, info.markers)) for kind in kinds]
    specs = [spec for spec in found if isinstance(spec, PrimitiveConstructorSpec)]
    if specs != found or len({spec.nargs for spec in specs}) > 1:
        return None

    def read(words: list[str]) -> Any:
        if words == ["None"] and NoneType in get_args(info.type):
            return None
        for spec in specs:
            with suppress(ValueError):
                return spec.instance_from_str(words)
        raise ValueError(f"{' '.join(words)!r} does not fit; give {' or '.join(map(described, kinds))}")

    return PrimitiveConstructorSpec(
        nargs=specs[0].nargs,
        metavar="|".join(spec.metavar for spec in specs),
        instance_from_str=read,
        is_instance=lambda value: value is None or any(spec.is_instance(value) for spec in specs),
        str_from_instance=lambda value: next(
            (spec.str_from_instance(value) for spec in specs if spec.is_instance(value)), ["None"]
        ),
    )


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
        except (ValueError, ArithmeticError) as error:  # x/0, or beyond the largest number
            raise ValueError(f"{text!r} is no number; write 0.03, 1e-3 or 8/255") from error


def whole_number(text: str) -> int:
    """Read 3 or -1. Raises ValueError for anything else."""
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no whole number") from error
