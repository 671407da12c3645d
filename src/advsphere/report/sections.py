"""The sections of a report: each is a function of the models that registers itself with its title and its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from advsphere.errors import UserError
from advsphere.named import load
from advsphere.report.collect import ModelReport

SectionFunction = Callable[[Sequence[ModelReport]], str | None]
F = TypeVar("F", bound=SectionFunction)


class Section(NamedTuple):
    """A registered section; its id is the target of links."""

    id: str
    title: str
    order: float
    function: SectionFunction


SECTIONS: dict[str, Section] = {}
"""Every registered section by its id."""


def section(title: str, *, order: float = 105) -> Callable[[F], F]:
    """Register a function as a section of every report that is written from now on.

    The function takes the models of a report, the baseline first, and returns HTML, or None where it has nothing to
    show. Text that is not `markupsafe.Markup` is escaped. The function's name is the section's id on the page.

    Args:
        title: The heading.
        order: The place on the page. Ours are at 10 (seeds), 20 (accuracy), 30 (flags), 40 (curves), 50 (corruptions),
            60 (classes), 70 (agreement), 80 (angles), 90 (gradients), 100 (pictures), 110 (counts), 120 (training),
            130 (attacks), 140 (checks) and 150 (provenance).

    Raises:
        UserError: Another section has the same id.
    """

    def register(function: F) -> F:
        id_ = re.sub(r"\W+", "-", function.__name__)
        known = SECTIONS.get(id_)
        if known is not None and _origin(known.function) != _origin(function):
            raise UserError(f"the report has a section {id_!r} from {_origin(known.function)}; rename the function")
        SECTIONS[id_] = Section(id_, title, order, function)
        return function

    return register


def load_section(name: str) -> None:
    """Import the section with that name, which registers it.

    Args:
        name: `package.module:function`.

    Raises:
        UserError: There is no such function, or it is not registered.
    """
    function = load(name)
    if not any(known.function is function for known in SECTIONS.values()):
        raise UserError(f"{name} is no section of the report; decorate it with advsphere.report.section('A title')")


def _origin(function: SectionFunction) -> str:
    return f"{function.__module__}:{function.__qualname__}"
