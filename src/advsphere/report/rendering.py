"""Templates, and how they write numbers and names."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from functools import cache
from importlib.resources import files
from xml.etree import ElementTree

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from advsphere.analysis.canvas import INK, LINE, SERIES, SOFT
from advsphere.comparison.gain import Gain
from advsphere.stats import PairedDifference


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


# FOLDED numbers: Numbers as people read them, in plain ASCII; shares of examples become percent and points.


def percent(share: float) -> str:
    """0.61 -> "61.0"."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """0.046 -> "+4.6"; what rounds to zero has no sign."""
    rounded = round(100 * difference, 1)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}"


def limits(interval: tuple[float, float], dash: str = "-") -> str:
    """The interval of an accuracy, in percent: "56.7-65.2"."""
    return dash.join(map(percent, interval))


def span(difference: PairedDifference | Gain) -> str:
    """The interval of a difference, in points: "+2.3 to +6.9"."""
    return f"{points(difference.low)} to {points(difference.high)}"


def share(part: float) -> str:
    """A part of a gain, in whole percent: "38"; what rounds to zero has no sign."""
    return f"{round(100 * part)}" if abs(part) < 10 else f"{'-' if part < 0 else ''}over 1000"


def shares(low: float, high: float) -> str:
    """Its interval: "-40 to 60"."""
    return f"{share(low)} to {share(high)}"


def probability(p: float) -> str:
    """A p-value: "0.34", "0.004", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


# FOLDED figures: Figures and pictures as parts of a page: nothing to fetch, and in the colours of the page.

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

_COLOURS = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES, 1)
}
_REFERENCE = re.compile(r"url\(#(.+?)\)")


def svg(figure: Figure, *, name: str, title: str) -> str:
    """A figure as an <svg> element: its colours are the page's variables, so that it is legible on dark and on light,
    and its text stays text. name: keeps its ids apart from those of other figures. title: read out in its place.
    """
    out = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(out.getvalue())
    for defs in root.iter(f"{{{_SVG}}}defs"):
        for sheet in defs.findall(f"{{{_SVG}}}style"):  # it would hold for the whole page
            defs.remove(sheet)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        element.attrib = {
            key.removeprefix(f"{{{_XLINK}}}"): _local(key, value, name) for key, value in element.attrib.items()
        }
    for key in ("width", "height"):
        del root.attrib[key]
    root.attrib |= {"role": "img", "aria-label": title, "class": "figure", "style": "stroke-linejoin: round"}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _local(key: str, value: str, name: str) -> str:
    """An attribute with ids made unique, colours and fonts left to the page."""
    if key == "id":
        return f"{name}-{value}"
    if value.startswith("#") and key.endswith("href"):
        return f"#{name}-{value[1:]}"
    value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
    if key == "style":
        value = re.sub(r"font: (?:\w+ )*?([\d.]+px) [^;]*", r"font-size: \1", value)
        for colour, variable in _COLOURS.items():
            value = value.replace(colour, variable)
    return value


def png(image: Tensor) -> str:
    """An image (C, H, W) in [0, 1], with one or three channels, as a data URI, without loss."""
    levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    out = io.BytesIO()
    Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels).save(out, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
