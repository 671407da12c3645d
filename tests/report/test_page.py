"""The page as a whole: self-contained, well formed, accessible, small, deterministic, and safe with any name."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from advsphere.errors import UserError
from advsphere.report import page, report
from advsphere.report.collect import Pictures
from advsphere.report.rendering import asset
from tests.report import made
from tests.report.parsed import Node, parse, texts

LOADS = {"src", "href", "xlink:href", "srcset", "poster", "data", "action", "background", "formaction"}


@pytest.fixture(scope="module")
def html() -> str:
    return page(made.pair(examples=2), commands=made.COMMANDS)


@pytest.fixture(scope="module")
def tree(html: str) -> Node:
    return parse(html)


def test_nothing_is_fetched_from_anywhere(html: str, tree: Node) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)
    assert not {"iframe", "object", "embed", "base", "form"} & {node.tag for node in tree.all()}
    values = [value or "" for node in tree.all() for name, value in node.attributes.items() if name in LOADS]
    assert values and all(value.startswith(("#", "data:")) for value in values)
    (policy,) = [n for n in tree.all("meta") if n.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in str(policy.attributes["content"])


def test_the_page_s_own_script_runs_and_no_other_can(html: str, tree: Node) -> None:
    (policy,) = [n for n in tree.all("meta") if n.attributes.get("http-equiv") == "Content-Security-Policy"]
    (allowed,) = re.findall(r"script-src ([^;]*)", str(policy.attributes["content"]))
    (own,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert allowed == f"'sha256-{digest}'"
    assert not [name for node in tree.all() for name in node.attributes if name.startswith("on")]
    assert not re.search(r"fetch|XMLHttpRequest|import|eval|innerHTML|https?:", own)


def test_links_lead_somewhere_and_ids_are_unique(tree: Node) -> None:
    ids = Counter(node.attributes["id"] for node in tree.all() if "id" in node.attributes)
    assert max(ids.values()) == 1
    targets = [str(n.attributes["href"]) for n in tree.all() if str(n.attributes.get("href")).startswith("#")]
    referred = [reference for n in tree.all() for v in n.attributes.values() for reference in _urls(v)]
    assert len(tree.all("a")) > 5 and {t.removeprefix("#") for t in targets} | {*referred} <= ids.keys()
    labelled = {node.attributes["aria-labelledby"] for node in tree.all() if "aria-labelledby" in node.attributes}
    assert labelled and labelled <= ids.keys()


def _urls(value: str | None) -> list[str]:
    return re.findall(r"url\(#(.+?)\)", value or "")


def test_it_can_be_read_without_eyes(tree: Node) -> None:
    images = tree.all("img")
    assert len(images) == 12 + 10 and all(image.attributes.get("alt") for image in images)
    assert all(drawing.attributes.get("aria-hidden") == "true" for drawing in tree.all("svg"))
    for table in tree.all("table"):
        assert table.children and table.all("caption")[0].text
        assert all(th.attributes.get("scope") for th in table.all("th"))
    scrolled = [n for n in tree.all("div") if n.attributes.get("class") == "scroll"]
    assert all(n.attributes.get("tabindex") == "0" and n.attributes.get("aria-label") for n in scrolled)
    levels = [int(n.tag[1]) for n in tree.all() if re.fullmatch("h[1-6]", n.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert tree.all("html")[0].attributes["lang"] == "en"


def test_it_is_small_and_the_same_each_time(html: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    report(made.pair(examples=2), path, commands=made.COMMANDS)
    assert path.read_text() == html
    assert path.stat().st_size < 400_000


@pytest.mark.parametrize("name", ['<script>alert("1")</script>', 'a & b\'s "net"', "cost $x$ $", "{{ 7 * 7 }}"])
def test_names_are_text_whatever_they_look_like(name: str) -> None:
    tree = parse(page(made.pair(second=name, examples=2)))
    assert [script.text for script in tree.all("script")] == [parse(f"<script>{asset('page.js')}</script>").text]
    headings = [" ".join(th.text.split()) for th in tree.one("accuracy").all("th")]
    assert name in headings
    for section in ("curves", "classes", "angles", "gradients"):
        drawn = [text for image in tree.one(section).all("img") for text in texts(image)]
        assert name in drawn, section


def test_one_model_alone_and_several_beside_a_first() -> None:
    alone = parse(page([made.model("mine")]))
    assert "robust accuracy of mine is at most 59.5" in alone.all("h1")[0].text
    assert "difference" not in alone.one("accuracy").text.lower()
    others = [made.model(name, made.evaluation(shift=i)) for i, name in enumerate("abc")]
    several = parse(page(others))
    accuracies, differences = several.one("accuracy").all("thead")
    assert len(accuracies.all("th")) == 1 + 3 and len(differences.all("th")) == 1 + 2
    assert "these three checkpoints" in several.all("header")[0].text


def test_what_can_t_be_put_on_one_page_is_refused() -> None:
    with pytest.raises(UserError, match="different names"):
        page([])
    with pytest.raises(UserError, match="different names"):
        page([made.model("same"), made.model("same")])
    with pytest.raises(UserError, match="can't be compared"):
        page([made.model("a"), made.model("b", made.evaluation(eps=0.1))])
    with pytest.raises(UserError, match="another model"):
        made.model("a", curve=made.curve(model="other"))
    with pytest.raises(UserError, match="angles are of another model"):
        made.model("a", spread=made.spread(model="other"))


def test_a_picture_names_the_file_of_its_photo() -> None:
    shown = Pictures("PGD-20", [dataclasses.replace(made.picture(), file="cat/a & b.jpg"), made.picture(9)])
    captions = [c.text for c in parse(page([made.model("mine", pictures=shown)])).one("pictures").all("figcaption")]
    assert captions == ["Image 7, true class 5 cat/a & b.jpg", "Image 9, true class 5"]
