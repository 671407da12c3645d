"""Stored results are checked as far as they can be without their evidence, and wholly with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from advsphere.files import content_checksum
from advsphere.reproduce import results
from advsphere.reproduce.check import check
from advsphere.reproduce.results import StoredResult
from tests.reproduce.made import PLAIN, SPHERE, stored

COMMITTED = sorted((Path(__file__).parents[2] / "results").glob("*.jsonl"))
FIRST = stored("toy-fastat", PLAIN)
SECOND = stored("toy-fastat-he", SPHERE)


def said(*found: StoredResult) -> str:
    return "; ".join(one.detail for one in check(found, []) if one.status == "WRONG")


def forged(result: StoredResult, **entries: Any) -> StoredResult:
    """A result with other entries in its document, and a checksum that fits."""
    document = {**result.document, **entries}
    return replace(result, document=document | {"checksum": content_checksum(document)})


def with_row(name: str, **entries: Any) -> StoredResult:
    rows = [row | entries if row["name"] == name else row for row in FIRST.document["attacks"]]
    return forged(FIRST, attacks=rows)


def with_outcomes(name: str, outcomes: str) -> StoredResult:
    """The outcomes of one attack, and all its numbers."""
    evaluation = FIRST.evaluation
    row = replace(evaluation.row(name), outcomes=outcomes)
    if name == "worst case":
        changed = replace(evaluation, worst=row)
    else:
        changed = replace(evaluation, attacks=tuple(row if one.name == name else one for one in evaluation.attacks))
    return replace(FIRST, document=changed.to_dict())


def test_the_committed_results_hold() -> None:
    assert said(*(one for file in COMMITTED for one in results.read(file))) == ""


def test_results_that_hold_have_no_evidence_here() -> None:
    assert [one.status for one in check([FIRST, SECOND], [])] == ["no evidence here"] * 2


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (with_row("PGD-50", k=50), "the outcomes of 'PGD-50' contradict its k"),
        (with_row("PGD-50", low=0.39), "the outcomes of 'PGD-50' contradict its low"),
        (with_row("PGD-50", unreached=60), "more images are invalid or not reached"),
        (with_row("PGD-50", settings={"steps": 500}), "the attacks are not those of its settings"),
        (with_outcomes("worst case", "1" * 40 + "0" * 60), "the worst case is not that of its attacks"),
        (with_outcomes("margin PGD-50", "0" * 100), "the worst case is not that of its attacks"),
        (with_outcomes("PGD-50", "1" * 90 + "0" * 10), "PGD-50 counts images that were misclassified before it"),
        (with_row("PGD-50", outcomes="1" * 40), "'PGD-50' has 40 outcomes, 'clean' has 100"),
        (forged(FIRST, strongest=None), "the strongest attack is another one"),
    ],
)
def test_rows_that_contradict_each_other_are_wrong(result: StoredResult, says: str) -> None:
    assert says in said(result)


def test_a_checkpoint_has_one_model_and_a_model_one_run() -> None:
    other = forged(FIRST, identity={**FIRST.document["identity"], "model": {"checksum": "other", "scale": 1.0}})
    assert said(FIRST, SECOND, replace(other, run=FIRST.run | {"seed": 1})) == ""
    assert "of different models" in said(FIRST, other)
    assert "another run has the same model" in said(FIRST, replace(FIRST, run=FIRST.run | {"seed": 1}))
    assert said(FIRST, replace(FIRST, run=FIRST.run | {"checkpoint": "last"})) == "", "the best may be the last"
