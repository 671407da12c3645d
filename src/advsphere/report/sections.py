"""The registry of a report's sections. A section is a function of the models, registered with a title and a place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from advsphere.errors import UserError
from advsphere.named import load
from advsphere.report.collect import ModelReport

SectionFunction = Callable[[Sequence[ModelReport]], str | None]
F = TypeVar("F", bound=SectionFunction)


class Section(NamedTuple):
    """A registered section."""

    title: str
    order: float
    function: SectionFunction


SECTIONS: dict[str, Section] = {}
"""Every registered section by its id, which links on the page use."""


def section(title: str, *, order: float = 105) -> Callable[[F], F]:
    """Register a function as a section of every report that is written from now on.

    The function takes the models of a report, the baseline first, and returns HTML, or None if it has nothing to show.
    Text that is not `markupsafe.Markup` is escaped. The function's name is the section's id on the page.

    Args:
        title: The heading.
        order: The place on the page. The built-in sections are at 10 (seeds), 20 (accuracy), 30 (flags), 40 (curves),
            50 (corruptions), 60 (classes), 70 (agreement), 80 (angles), 90 (gradients), 100 (pictures), 110 (counts),
            120 (training), 130 (attacks), 140 (checks) and 150 (provenance).

    Returns:
        A decorator that registers the function and returns it.

    Raises:
        UserError: If another module has registered a section with the same id.
    """

    def register(function: F) -> F:
        id_ = function.__name__
        owner = SECTIONS[id_].function.__module__ if id_ in SECTIONS else function.__module__
        if owner != function.__module__:
            raise UserError(f"{owner} has registered a section called {id_!r}; rename {function.__module__}:{id_}")
        SECTIONS[id_] = Section(title, order, function)
        return function

    return register


def load_section(name: str) -> None:
    """Import package.module:function, which registers itself. Raises UserError if it is not a section."""
    function = load(name)
    if not any(known.function is function for known in SECTIONS.values()):
        raise UserError(f"{name} is not a section of the report; decorate it with advsphere.report.section('A title')")
