"""A page as a tree, read strictly: every element closed where it should be."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta", "link", "img", "br", "hr", "input", "wbr"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    def all(self, tag: str | None = None) -> list[Node]:
        """Every element below, with this tag, in order."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                found += [child] if tag in (None, child.tag) else []
                found += child.all(tag)
        return found

    def one(self, id_: str) -> Node:
        (found,) = [node for node in self.all() if node.attributes.get("id") == id_]
        return found

    @property
    def text(self) -> str:
        """What is read, with single spaces."""
        parts = [c if isinstance(c, str) else "" if c.tag == "wbr" else f" {c.text} " for c in self.children]
        return " ".join("".join(parts).split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in <{tag}>"
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(html: str) -> Node:
    """The tree of a page. Fails where an element is left open or closed out of order."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [reader.root]
    return reader.root


def texts(image: Node) -> list[str]:
    """The text that an embedded figure shows."""
    head, _, data = str(image.attributes["src"]).partition(",")
    if head != "data:image/svg+xml;base64":
        return []
    drawn = ElementTree.fromstring(base64.b64decode(data)).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(element.itertext()) for element in drawn]
