"""Figures and pictures as parts of a page: nothing to fetch, and in the colours of the page."""

from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from advsphere.analysis.palette import INK, LINE, SERIES, SOFT

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
