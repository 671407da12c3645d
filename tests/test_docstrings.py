"""Every public name has a docstring in Google style, complete, as griffe reads it.

Public are the names in `__all__` of advsphere and of its packages, the functions and classes of the top-level modules,
and the public methods of those classes. To check one package: `pytest tests/test_docstrings.py -k attacks`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
import pytest

ROOT = Path(__file__).parents[1]

INTERNAL = {"__main__", "cli", "files", "identity", "provenance", "report", "reproduce"}
"""Users reach these through the command line and the other modules."""

READING = {"returns_multiple_items": False, "returns_named_value": False, "warn_missing_types": False}
RETURNS = {griffe.DocstringSectionKind.returns, griffe.DocstringSectionKind.yields}
DECLARING = ("dataclass", "typing.NamedTuple", "typing.TypedDict")
"""What a class is made with whose attributes are its parameters."""

PACKAGE: Any = griffe.load("advsphere", search_paths=[ROOT / "src"], try_relative_path=False)


def exported() -> dict[str, Any]:
    """The public objects by their full names, each once, where it is defined."""
    found: list[Any] = []
    for module in (PACKAGE, *PACKAGE.modules.values()):
        if module.name in INTERNAL:
            continue
        if module.exports is not None:
            found += [module[name].final_target if module[name].is_alias else module[name] for name in module.exports]
        elif not module.is_init_module:
            found += [o for o in module.members.values() if o.is_public and not o.is_alias and not o.is_attribute]
    methods = [
        method
        for owner in found
        if owner.is_class
        for method in owner.members.values()
        if method.is_public and not method.is_alias and not method.name.startswith("_") and not inherits(method)
        if method.is_function or "property" in method.labels
    ]
    return {o.path: o for o in (*found, *methods) if not o.is_module}


def inherits(method: Any) -> bool:
    """A method that carries out what another class or PyTorch documents, and says nothing itself."""
    documented = any(method.name in base.members for base in method.parent.mro())
    return not method.has_docstring and (documented or method.name == "forward")


def parsed(thing: Any, caplog: pytest.LogCaptureFixture) -> tuple[dict[Any, Any], list[str]]:
    """The sections of a docstring by kind, and what griffe complains about."""
    caplog.clear()
    with caplog.at_level("DEBUG", logger="griffe"):
        sections = griffe.parse_google(thing.docstring, **READING)
    # That griffe does not load the standard library (ABC, NamedTuple) is no mistake.
    found = [record.message for record in caplog.records if not record.message.startswith("Base class")]
    return {section.kind: section.value for section in sections}, found


def names(items: Any) -> set[str]:
    return {item.name.lstrip("*") for item in items or ()}


def declares(owner: Any) -> bool:
    """Whether the attributes of a class are what it is made with."""
    made_of = [*owner.labels, *(base if isinstance(base, str) else base.canonical_path for base in owner.bases)]
    return any(way in made_of for way in DECLARING)


def attributes(owner: Any) -> set[str]:
    """The attributes that a dataclass, a named tuple or a typed dictionary declares, without private and class ones."""
    return {
        name
        for name, member in owner.members.items()
        if member.is_attribute and "property" not in member.labels and not name.startswith("_")
        if member.annotation is not None and "instance-attribute" in member.labels
    }


def parameters(function: Any) -> set[str]:
    bound = function.parent.is_class and "staticmethod" not in function.labels
    return {p.name.lstrip("*") for p in list(function.parameters)[bound:] if not p.name.startswith("_")}


def gives_something(function: Any) -> bool:
    """Whether a Returns section is due. The summary line of a method without parameters already says what it gives."""
    plain_method = function.parent.is_class and not parameters(function)
    return not plain_method and str(function.annotation) not in ("None", "NoReturn", "Never")


def mistakes(thing: Any, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is missing in a docstring, or wrong."""
    if not thing.has_docstring:
        return ["no docstring"]
    sections, wrong = parsed(thing, caplog)
    in_args = names(sections.get(griffe.DocstringSectionKind.parameters))
    in_attributes = names(sections.get(griffe.DocstringSectionKind.attributes))
    if thing.is_class and declares(thing):
        wrong += [f"attribute {name}: not documented" for name in attributes(thing) - in_attributes]
        wrong += [f"attribute {name}: does not exist" for name in in_attributes - set(thing.all_members)]
        wrong += ["Args: the section is called Attributes here"] * bool(in_args)
    elif thing.is_class:
        made = thing.all_members.get("__init__")
        wanted = parameters(made) if made is not None else set()
        wrong += [f"parameter {name}: not documented" for name in wanted - in_args]
    elif thing.is_function:
        wrong += [f"parameter {name}: not documented" for name in parameters(thing) - in_args]
        wrong += [f"parameter {name}: does not exist" for name in in_args - parameters(thing)]
        wrong += ["no Returns section"] * (gives_something(thing) and not RETURNS & sections.keys())
    return wrong


CASES = [pytest.param(thing, id=path.removeprefix("advsphere.")) for path, thing in sorted(exported().items())]


@pytest.mark.parametrize("thing", CASES)
def test_a_public_name_is_documented(thing: Any, caplog: pytest.LogCaptureFixture) -> None:
    found = [re.sub(r"^.*?:\d+: ", "", mistake) for mistake in mistakes(thing, caplog)]
    place = f"{thing.relative_filepath.name}:{thing.lineno} {thing.path}"
    if found:
        pytest.fail("\n  ".join([place, *sorted(set(found))]), pytrace=False)


def test_every_part_of_the_package_is_checked() -> None:
    checked = {path.split(".")[1] for path in exported()}
    assert {"attacks", "evaluation", "training", "threat", "losses", "data", "models"} <= checked


GOOD = '''
def half(x: float, *more: float, **options: int) -> float:
    """Half of a number.

    Args:
        x: the number; a note: with a colon.
        *more: further numbers,
            on two lines.
        **options: ignored.

    Returns:
        The half: exactly.

    Raises:
        ValueError: never.
    """
'''

BAD = {
    "no docstring": re.sub(r'""".*"""', "...", GOOD, flags=re.S),
    "parameter x: not documented": GOOD.replace("        x: the number; a note: with a colon.\n", ""),
    "parameter y: does not exist": GOOD.replace("        x:", "        y: what?\n        x:"),
    "no Returns section": re.sub(r"    Returns:.*?\n\n", "", GOOD, flags=re.S),
    "Failed to get": GOOD.replace("x: the number; a note: with a colon.", "the number"),
}


def mistakes_in(code: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    module = griffe.visit("case", filepath=Path("case.py"), code=code)
    return mistakes(next(iter(module.members.values())), caplog)


def test_a_complete_docstring_passes(caplog: pytest.LogCaptureFixture) -> None:
    assert mistakes_in(GOOD, caplog) == []


@pytest.mark.parametrize("complaint", BAD)
def test_what_is_missing_is_named(complaint: str, caplog: pytest.LogCaptureFixture) -> None:
    assert any(complaint in mistake for mistake in mistakes_in(BAD[complaint], caplog))
