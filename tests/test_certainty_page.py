"""The tables of `benchmarks/certainty_page.py`: what the committed ones say, and how passes are compared."""

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
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("certainty_page")
    for name in ("certainty_page", "comparison"):
        sys.modules.pop(name, None)


def test_the_committed_tables_say_what_the_rows_say(page: ModuleType) -> None:
    readme = (FOLDER / "README.md").read_text()
    assert all(table in readme for table in page.tables(page.read(page.ROWS)).values())


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
