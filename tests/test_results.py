"""Rows of results: kept once, read strictly, and tables whose every number follows from the outcomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from advsphere.errors import UserError
from advsphere.reproduce import results
from advsphere.reproduce.results import Row
from advsphere.stats import paired, wilson

COMMITTED = Path(__file__).parents[1] / "results" / "cifar10-small.jsonl"


def row(recipe: str, attack: str, outcomes: str, **other: Any) -> Row:
    k, n = outcomes.count("1"), len(outcomes)
    shared = {"overrides": [], "epochs": 3, "seed": 0, "checkpoint": "best", "data": "toys", "threat": "linf 8/255"}
    shared["suite"] = "paper"
    scale = 15.0 if recipe.endswith("-he") else None
    own = {"recipe": recipe, "attack": attack, "outcomes": outcomes, "k": k, "n": n, "accuracy": k / n, "scale": scale}
    return shared | own | other


PLAIN = [row("toy", "clean", "1111111110"), row("toy", "PGD-50", "1110000000")]
HE = [
    row("toy-he", "clean", "1111111110"),
    row("toy-he", "PGD-50 (s = 1)", "1111111100"),
    row("toy-he", "PGD-50", "1100000000"),
]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_follows_from_the_outcomes() -> None:
    heading, _, columns, _, plain, he, difference = results.markdown([*PLAIN, *HE]).splitlines()
    assert heading.startswith("toys, 10 test images, linf 8/255") and "upper bound" in heading
    assert cells(columns) == ["recipe", "epochs", "clean", "PGD-50 (s = 1)", "PGD-50"]
    low, high = wilson(3, 10)
    shown = f"30.0 ({100 * low:.1f}-{100 * high:.1f})"
    assert cells(plain)[3:] == [shown, shown], "a plain head is attacked at s = 1 by PGD-50 itself"
    assert [cell.split(" ")[0] for cell in cells(he)[2:]] == ["90.0", "80.0", "20.0"]
    assert [cell.split(" ")[0] for cell in cells(difference)[2:]] == ["*+0.0", "*+50.0", "*-10.0"]
    assert [", cannot tell" in cell for cell in cells(difference)[2:]] == [True, True, True], "ten images tell little"


def test_a_difference_is_paired_and_the_method_comes_first() -> None:
    found = results.difference([*PLAIN, *HE], "toy", "toy-he", "PGD-50 (s = 1)")
    assert found == paired([True] * 8 + [False] * 2, [True] * 3 + [False] * 7)
    with pytest.raises(UserError, match="margin"):
        results.difference([*PLAIN, *HE], "toy", "toy-he", "margin")


def test_an_hyperspherical_model_without_the_row_has_an_empty_cell() -> None:
    *_, he, difference = results.markdown([*PLAIN, HE[0]]).splitlines()
    assert cells(he)[3] == "" and cells(difference)[3] == ""


def test_other_images_and_other_checkpoints_are_other_tables() -> None:
    other = [r | {"checkpoint": "last"} for r in PLAIN] + [r | {"data": "other toys"} for r in HE]
    other += [r | {"suite": "quick"} for r in PLAIN]
    text = results.markdown([*PLAIN, *other])
    assert text.count("| recipe |") == 4 and "difference*" not in text


def test_a_measurement_is_kept_once(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    results.add(file, PLAIN)
    results.add(file, [row("toy", "clean", "0000000000"), *HE])
    rows = results.read(file)
    assert [r["attack"] for r in rows] == ["clean", "PGD-50", "clean", "PGD-50 (s = 1)", "PGD-50"]
    assert rows[0]["k"] == 0


def test_other_evidence_replaces_a_measurement_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    results.add(file, [*PLAIN, *HE])
    results.add(file, [PLAIN[0] | {"evaluated": {"ledger": "another"}}])
    assert [(r["recipe"], r["attack"]) for r in results.read(file)] == [
        *((r["recipe"], r["attack"]) for r in HE),
        ("toy", "clean"),
    ]


@pytest.mark.parametrize("line", ["no json", "[]", '{"recipe": "toy"}'])
def test_a_line_that_is_no_row_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(PLAIN[0]) + "\n" + line + "\n")
    with pytest.raises(UserError, match="line 2"):
        results.read(file)


def test_a_page_without_a_place_is_refused() -> None:
    assert results.replace_between("a<!-- results -->b<!-- /results -->c", "T").startswith("a<!-- results -->\nT\n")
    with pytest.raises(UserError, match="/results"):
        results.replace_between("nothing here", "T")


def test_the_committed_rows_are_whole() -> None:
    rows = [r for r in results.read(COMMITTED) if r["suite"] != "inside"]
    assert {r["recipe"] for r in rows} >= {"cifar10-small-fastat", "cifar10-small-fastat-he"}
    for r in rows:
        assert r["k"] == r["outcomes"].count("1") and r["n"] == len(r["outcomes"])
        assert r["accuracy"] == r["k"] / r["n"] and tuple(r["interval"]) == wilson(r["k"], r["n"])
        assert r["trained"]["commit"] and r["evaluated"]["commit"] and r["evaluated"]["ledger"]
    for name in {(r["recipe"], r["checkpoint"], r["suite"]) for r in rows}:
        own = {r["attack"]: r["outcomes"] for r in rows if (r["recipe"], r["checkpoint"], r["suite"]) == name}
        worst = own.pop("worst case")
        assert worst == "".join("1" if set(column) == {"1"} else "0" for column in zip(*own.values(), strict=True))
