"""Render numbers, tables and figures as HTML."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from advsphere.comparison.gain import Gain
from advsphere.stats import PairedDifference


class TableCell(NamedTuple):
    """A number, a smaller text beside it and, for a difference, a drawn interval.

    Attributes:
        number: The text in bold.
        small: The smaller text, such as an interval.
        bar: Positions of (zero, low, value, high) in per mille of an axis that all rows share.
        open: Draw a hollow mark, for a difference that may be 0.
    """

    number: str
    small: str = ""
    bar: tuple[int, ...] = ()
    open: bool = False


def table(
    caption: str,
    columns: Sequence[str | tuple[str, str]],
    rows: Sequence[Sequence[str | TableCell | None]],
    *,
    groups: Sequence[tuple[str, int]] = (),
    large: bool = False,
) -> Markup:
    """Render an HTML table that scrolls on narrow screens and can be sorted by each column.

    Args:
        caption: What the table shows, with units.
        columns: The headings, first the one above the row names. Each is a text, or a pair of a text and a smaller text
            below it.
        rows: For each row its name, then its cells: text, a `TableCell`, or None for "not run".
        groups: Headings above the last columns, each with the number of columns that it spans.
        large: Use larger type, with each cell's smaller text on its own line.

    Returns:
        The HTML of the table.
    """
    heads = [(column, "") if isinstance(column, str) else column for column in columns]
    lead = len(columns) - sum(span for _, span in groups)
    label = re.split("[,;:]", caption)[0]
    return render(
        "table", caption=caption, label=label, columns=heads, rows=rows, groups=groups, lead=lead, large=large
    )


def figure(drawing: Figure, alt: str) -> Markup:
    """Embed a matplotlib figure as an SVG image.

    Args:
        drawing: The figure.
        alt: A description for readers who cannot see it.

    Returns:
        The HTML of the image.
    """
    out = io.BytesIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}  # the same figure gives the same bytes
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "advsphere"}):
        drawing.savefig(out, format="svg", transparent=True, metadata=nothing)
    source = _data_uri("image/svg+xml", out.getvalue())
    return Markup('<img class="figure" src="{}" alt="{}">').format(source, alt)


def png(image: Tensor) -> str:
    """An image (C, H, W) in [0, 1], with one or three channels, as the data URI of a PNG."""
    levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    out = io.BytesIO()
    Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels).save(out, format="PNG", optimize=True)
    return _data_uri("image/png", out.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def render(template: str, **values: object) -> Markup:
    """Render a template as HTML. Values that are not `Markup` are escaped."""
    return Markup(_environment().get_template(f"{template}.html.j2").render(**values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("advsphere.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"typographic": typographic, "unbroken": unbroken, "png": png}
    environment.globals |= {"table": table}
    return environment


def asset(name: str) -> Markup:
    """The page's stylesheet or script."""
    return Markup(files(__package__).joinpath("templates", name).read_text())


def script_checksum(text: str) -> str:
    """The source expression that allows a script in the page's content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def key(names: Sequence[str]) -> list[str]:
    """The names of models, each with a dot in the model's colour in figures."""
    dot = Markup('<span class="key series-{}">{}</span>')
    return [dot.format(i % 6 + 1, unbroken(name)) for i, name in enumerate(names)]


def typographic(text: str) -> str:
    """Plain text with typographic minus signs, apostrophes and percents; hyphens in names stay."""
    changed = re.sub(r"(?<![\w.-])-(?=\d)", "\u2212", text)
    changed = re.sub(r"(?<=[\w)])'(?=\w)", "\u2019", changed)
    changed = re.sub(r"\bp ([<=]) ", "p\u00a0\\1\u00a0", changed)
    return type(text)(re.sub(r"(?<=\d) %", "\u00a0%", changed))


LONGEST = 16
"""The most letters of a word that is never broken."""


def unbroken(text: str) -> Markup:
    """Text in which "PGD-AT+HE" and "s = 1" are not broken at the end of a line; longer words may be, after a mark."""
    if isinstance(text, Markup):
        return text
    parts = re.split(rf"(\S+ = \S+|\S{{{LONGEST + 1},}}|\S*[-\u2013]\S*)", text)
    return Markup("").join(_kept(part) if i % 2 else part for i, part in enumerate(parts))


def _kept(word: str) -> Markup:
    if len(word) <= LONGEST:
        return Markup('<span class="keep">{}</span>').format(word)
    return Markup("<wbr>").join(re.split(r"(?<=[-_+/.:\u2013])(?=.)", word))


def percent(share: float) -> str:
    """0.61 -> "61.0"."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """0.046 -> "+4.6"; a value that rounds to zero has no sign."""
    rounded = round(100 * difference, 1)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}"


def limits(interval: tuple[float, float], dash: str = "-") -> str:
    """The interval of an accuracy, in percent: "56.7-65.2"."""
    return dash.join(map(percent, interval))


def span(difference: PairedDifference | Gain) -> str:
    """The interval of a difference, in points: "+2.3 to +6.9"."""
    return f"{points(difference.low)} to {points(difference.high)}"


def probability(p: float) -> str:
    """A p-value: "0.34", "0.004", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def accuracy_cell(share: float, interval: tuple[float, float]) -> TableCell:
    """An accuracy in percent with its interval."""
    return TableCell(percent(share), limits(interval, "\u2013"))
