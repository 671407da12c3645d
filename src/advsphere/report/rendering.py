"""Templates, and how they write numbers and names."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: object) -> Markup:
    """A fragment of HTML; whatever is not markup already is escaped."""
    return Markup(_environment().get_template(f"{template}.html.j2").render(**values))


def stylesheet() -> Markup:
    """The page's CSS."""
    return Markup(files(__package__).joinpath("templates", "style.css").read_text())


def script() -> Markup:
    """The page's JavaScript; without it everything is there, unsorted and on one page."""
    return Markup(files(__package__).joinpath("templates", "page.js").read_text())


def checksum(text: str) -> str:
    """What a content security policy names a script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def typographic(text: str) -> str:
    """Plain text with minus signs, apostrophes and unbreakable percents as they are printed; hyphens in names stay."""
    text = re.sub(r"(?<![\w.-])-(?=\d)", "\u2212", text)
    text = re.sub(r"(?<=\w)'(?=\w)", "\u2019", text)
    return re.sub(r"(?<=\d) %", "\u00a0%", text)


def unbroken(text: str) -> Markup:
    """The same on fewer lines: "PGD-AT+HE" and "s = 1" are not broken where a line is full."""
    parts = re.split(r"(\S+ = \S+|\S*-\S*)", str(text))
    keep = Markup('<span class="keep">{}</span>')
    return Markup("").join(keep.format(part) if i % 2 else part for i, part in enumerate(parts))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("advsphere.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"typographic": typographic, "unbroken": unbroken}
    return environment
