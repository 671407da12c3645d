"""The page in a browser: silent, without a request to anybody, with tables that sort and pictures that page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from advsphere.report import page
from tests.report import made
from tests.report.browser import Seen, look, needed

pytestmark = needed

SORTING = """
  const [table] = document.querySelectorAll("#accuracy table");
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
  const heads = [...table.querySelectorAll("th[data-column]")];
  const found = { heads: heads.map((head) => head.querySelector("button").textContent.trim()), before: names() };
  for (const [key, column] of [["robust", 1], ["difference", 3], ["attack", 0]]) {
    found[key] = [1, 2, 3].map(() => {
      heads[column].querySelector("button").click();
      return { names: names(), sort: heads.map((head) => head.getAttribute("aria-sort")) };
    });
  }
  found.status = document.getElementById("status").textContent;
  found.tables = document.querySelectorAll("table.sortable").length;
"""
PAGING = """
  const gallery = document.querySelector(".gallery"), cards = [...gallery.querySelectorAll(".card")];
  const [back, on] = gallery.querySelectorAll(".pages button");
  const state = () => ({
    shown: cards.flatMap((card, i) => (card.checkVisibility() ? [i] : [])),
    text: gallery.querySelector("[role=status]").textContent,
    ends: [back, on].map((button) => button.getAttribute("aria-disabled")),
  });
  const press = (key) => gallery.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  found.pages = [state()];
  for (const step of [
    () => on.click(), () => press("ArrowRight"), () => press("ArrowRight"), () => press("ArrowLeft"),
    () => press("Home"), () => back.click(), () => press("End"), () => press("a"),
  ]) { step(); found.pages.push(state()); }
  found.images = [...document.images].map((image) => image.complete && image.naturalWidth > 0);
"""
SHAPE = """
  const wide = document.documentElement;
  found.overflow = wide.scrollWidth - wide.clientWidth;
  const scrolled = [...document.querySelectorAll(".scroll")];
  found.clipped = scrolled.filter((part) => part.scrollWidth > part.clientWidth).length;
  found.paper = getComputedStyle(document.body).backgroundColor;
  found.resources = performance.getEntriesByType("resource").map((entry) => entry.name.slice(0, 40));
  found.unnamed = [...document.querySelectorAll("button, a, [tabindex='0']")]
    .filter((part) => !(part.textContent.trim() || part.getAttribute("aria-label"))).length;
  return found;
"""


@pytest.fixture(scope="module")
def html() -> str:
    return page(made.pair(examples=14), commands=made.COMMANDS)


@pytest.fixture(scope="module")
def seen(html: str, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return look(html, SORTING + PAGING + SHAPE, tmp_path_factory.mktemp("wide"))


def test_it_is_silent_and_asks_nobody(seen: Seen) -> None:
    assert seen.console == [] and seen.asked == []
    assert all(name.startswith("data:") for name in seen.found["resources"])


def test_a_page_that_is_not_would_be_caught(html: str, tmp_path: Path) -> None:
    """The policy stops a request before it leaves, and says so; without the policy it is seen to leave."""
    ask = 'fetch("http://127.0.0.1:9/").catch(() => 0); new Image().src = "http://127.0.0.1:9/a.png"; return 0;'
    stopped = look(html, ask, tmp_path)
    assert any("Content Security Policy" in line for line in stopped.console) and stopped.asked == []
    bare = "<!doctype html><body></body>"
    assert "http://127.0.0.1:9/a.png" in look(bare, ask, tmp_path).asked


def test_tables_sort_both_ways_and_back(seen: Seen) -> None:
    found = seen.found
    assert found["heads"][:3] == ["attack", "PGD-AT", "PGD-AT+HE"] and found["tables"] >= 6
    before = ["clean", "FGSM", "PGD-20", "worst case"]
    assert found["before"] == before
    down, up, back = found["robust"]
    assert down["names"] == before and down["sort"] == [None, "descending", None, None]
    assert up["names"] == ["PGD-20", "FGSM", "clean", "worst case"], "the worst case stays below"
    assert up["sort"][1] == "ascending"
    assert back["names"] == before and back["sort"] == [None] * 4
    assert [one["names"][:3] for one in found["difference"]] == [
        ["PGD-20", "FGSM", "clean"],
        ["clean", "FGSM", "PGD-20"],
        before[:3],
    ]
    assert found["attack"][0]["names"][:3] == ["clean", "FGSM", "PGD-20"]
    assert found["attack"][1]["names"][:3] == ["PGD-20", "FGSM", "clean"]
    assert found["status"].startswith("attack") and found["status"].endswith("in the original order")


def test_pictures_page_by_mouse_and_keyboard_and_all_load(seen: Seen) -> None:
    first, second, last = list(range(6)), list(range(6, 12)), [12, 13]
    shown = [state["shown"] for state in seen.found["pages"]]
    assert shown == [first, second, last, last, second, first, first, last, last]
    assert seen.found["pages"][1]["text"] == "7\u201312 of 14"
    assert seen.found["pages"][0]["ends"] == ["true", "false"] and seen.found["pages"][2]["ends"] == ["false", "true"]
    assert len(seen.found["images"]) == 14 * 6 + 10 and all(seen.found["images"])


def test_it_fits_small_screens_and_has_a_dark_side(html: str, seen: Seen, tmp_path: Path) -> None:
    dark = look(html, "const found = {};" + SHAPE, tmp_path, width=500, flags=("--force-dark-mode",))
    assert dark.console == [] and dark.found["overflow"] <= 0 and seen.found["overflow"] <= 0
    assert seen.found["unnamed"] == seen.found["clipped"] == 0
    assert dark.found["paper"] != seen.found["paper"]


LONG = ("PGD-AT", "imagenet_linf_convnext_large_singh2023", "TRADES+m-HE (our reading)", "Wang2023Better_WRN-28-10")


def test_no_table_is_cut_off_with_four_models_and_long_names(tmp_path: Path) -> None:
    models = [made.model(name, made.evaluation(shift=i, model=f"{i}" * 64)) for i, name in enumerate(LONG)]
    models = [replace(m, corruption=made.corruption(i)) for i, m in enumerate(models)]
    wide = "return [...document.querySelectorAll('.scroll')].map((e) => e.scrollWidth - e.clientWidth);"
    found = look(page(models), wide, tmp_path, width=800).found
    assert len(found) >= 5 and max(found) <= 0
