"""The tables of `certainty_page.py` and `search_length.py`: what the committed ones say, and how they count."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield
    for name in ("certainty_page", "search_length", "certainty", "comparison"):
        sys.modules.pop(name, None)


@pytest.fixture
def page(scripts: None) -> ModuleType:
    return importlib.import_module("certainty_page")


@pytest.fixture
def searches(scripts: None) -> ModuleType:
    return importlib.import_module("search_length")


def test_the_committed_tables_say_what_the_rows_say(page: ModuleType, searches: ModuleType) -> None:
    readme = (FOLDER / "README.md").read_text()
    assert all(table in readme for table in page.tables(page.read(page.ROWS)).values())
    assert searches.page(searches.read(searches.ROWS)) in readme


def test_a_search_misses_what_another_one_of_the_same_network_and_radius_fools(searches: ModuleType) -> None:
    look = {
        "network": "a",
        "radius": 8 / 255,
        "n": 9,
        "search": searches.LOOK,
        "right": 8,
        "passes": 80,
        "fell": [1, 2],
    }
    look |= {"left": {"3": 0.1, "4": 0.25, "5": 0.9, "6": 0.8, "7": 0.5}}
    long, short = ({**look, "search": name, "passes": n} for name, n in (("long", 500), ("short", 250)))
    other = {**look, "network": "b", "fell": [1, 2, 3]}
    lines = searches.page([look, {**long, "fell": [1, 2, 3, 4]}, {**short, "fell": [1, 4]}, other]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:5]]
    assert cells == [[searches.LOOK, "16", "2", "16", "0"], ["long", "100", "0", "", ""], ["short", "50", "2", "", ""]]
    assert "fool 2 of these, which had kept at most 0.25 of their margin" in lines[6] and "60% have less" in lines[6]


def test_passes_on_a_part_of_the_images_are_scaled_by_the_share_of_robust_ones(
    page: ModuleType, tmp_path: Path
) -> None:
    same = {"network": "a", "eps": None, "seed": 0, "backwards": 0.0}
    part = {**same, "n": 4, "who": "official", "forwards": 100.0, "images": [0, 1], "robust": "10"}
    ours = {**same, "n": 4, "who": "ours", "certainty": 1, "forwards": 50.0, "robust": "1011"}
    more = {**ours, "n": 8, "robust": "10000000"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, (part, ours, more))))
    first, second = page.read(rows)
    assert first.ratio == pytest.approx(100 * (3 / 4) / (1 / 2) / 50) and first.official is not None
    assert second.ratio == pytest.approx(100 * (1 / 8) / (1 / 2) / 50) and second.official is None
    rows.write_text("\n".join(map(json.dumps, ({**part, "images": [0, 1, 2, 3], "robust": "1001"}, ours))))
    assert page.read(rows)[0].ratio == 2, "run whole, it is not scaled"
