"""Stored results: kept once, read strictly, and tables whose every number follows from the outcomes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from advsphere.corruption import CORRUPTIONS
from advsphere.errors import UserError
from advsphere.evaluation.sampling import Bound
from advsphere.reproduce import results
from advsphere.reproduce.cells import pairs
from advsphere.reproduce.groups import groups
from advsphere.reproduce.listing import listing
from advsphere.reproduce.results import StoredResult
from advsphere.reproduce.sections import TITLES
from advsphere.reproduce.tables import TABLES
from advsphere.stats import paired, wilson
from tests.corruption.test_evaluate import of_errors
from tests.reproduce.made import PLAIN as PLAIN_ARM
from tests.reproduce.made import SPHERE as SPHERE_ARM
from tests.reproduce.made import run_block, stored

COMMITTED = sorted((Path(__file__).parents[2] / "results").glob("*.jsonl"))
PLAIN = stored("toy-fastat", {"clean": "1111111110", "PGD-50": "1110000000", "worst case": "1110000000"})
HE = stored(
    "toy-fastat-he",
    {
        "clean": "1111111110",
        "PGD-50 (s = 1)": "1111111100",
        "PGD-50": "1100000000",
        "worst case": "1100000000",
    },
)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_follows_from_the_outcomes() -> None:
    heading, _, columns, _, plain, he, difference = listing([PLAIN, HE]).splitlines()
    assert heading.startswith("toys, 10 test images, linf 8/255") and "upper bound" in heading
    assert cells(columns) == ["recipe", "epochs", "clean", "PGD-50 (s = 1)", "PGD-50", "worst case"]
    low, high = wilson(3, 10)
    shown = f"30.0 ({100 * low:.1f}-{100 * high:.1f})"
    assert cells(plain)[3:] == [shown] * 3, "a plain head is attacked at s = 1 by PGD-50 itself"
    assert [cell.split(" ")[0] for cell in cells(he)[2:]] == ["90.0", "80.0", "20.0", "20.0"]
    assert [cell.split(" ")[0] for cell in cells(difference)[2:]] == ["*+0.0", "*+50.0", "*-10.0", "*-10.0"]
    assert all(", cannot tell" in cell for cell in cells(difference)[2:]), "ten images tell little"
    found = paired([True] * 8 + [False] * 2, [True] * 3 + [False] * 7)
    assert f"({100 * found.low:+.1f} to {100 * found.high:+.1f})" in cells(difference)[3]


def test_seeds_and_overrides_are_told_apart_and_paired_with_their_own() -> None:
    other = [replace(one, run=one.run | {"seed": 1, "overrides": [{"path": "training.seed", "old": 0, "new": 1}]})
             for one in (PLAIN, HE)]  # fmt: skip
    lines = listing([PLAIN, HE, other[1]]).splitlines()
    assert sum(line.startswith("| *difference*") for line in lines) == 1
    assert any(line.startswith("| `toy-fastat-he`, training.seed = 1 |") for line in lines)
    assert listing([PLAIN, HE, *other]).count("*difference*") == 2


def test_the_worst_case_of_a_sample_is_no_more_than_that() -> None:
    """Of the three images that resist, one was tried by the attack on a sample. So any may fall, and it has no row."""
    found = PLAIN.evaluation
    proof = replace(found.attacks[0], name="Square", settings={"proof": True})
    drawn = Bound(certainty=20, survivors=3, sampled=1, fell=0, most=2, n=10, confidence=0.95, looks=((1, 0),))
    plain = replace(PLAIN)
    vars(plain)["evaluation"] = replace(found, attacks=(*found.attacks, proof), bound=drawn)
    before, after = (
        [dict(zip(cells(lines[2]), cells(line), strict=True)) for line in lines[-3:]]
        for lines in (listing([one, HE]).splitlines() for one in (PLAIN, plain))
    )
    assert [row.pop("Square") for row in after] == ["on a sample", "", ""]
    worst = [[row.pop("worst case") for row in rows] for rows in (before, after)]
    assert before == after and worst[0][:2] == worst[1][:2] and worst[0][2] != worst[1][2], "only its interval is wider"
    arms = stored("small-fastat", PLAIN_ARM), stored("small-fastat-he", SPHERE_ARM)
    vars(arms[0])["evaluation"] = replace(arms[0].evaluation, attacks=(*arms[0].evaluation.attacks, proof))
    found_pairs, (refused,) = pairs(groups(arms, TABLES["table3"], suite="paper")[0], TABLES["table3"])
    assert found_pairs == [] and "ran on a sample" in refused


def test_other_images_and_other_checkpoints_are_other_tables() -> None:
    other = [replace(PLAIN, run=PLAIN.run | {"checkpoint": "last"}), replace(HE, run=HE.run | {"data": "others"}),
             stored("toy-fastat", {"clean": "1", "worst case": "1"}, suite="quick")]  # fmt: skip
    text = listing([PLAIN, *other])
    assert text.count("| recipe |") == 4 and "difference*" not in text


def test_a_measurement_is_stored_once_and_read_back_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    results.add(file, [PLAIN])
    again = stored("toy-fastat", {"clean": "0000000000", "worst case": "0000000000"})
    results.add(file, [again, HE])
    assert results.read(file) == [again, HE]
    assert results.read(file)[1].evaluation == HE.evaluation


@pytest.mark.parametrize("line", ["no json", "[]", '{"recipe": "toy"}'])
def test_a_line_that_is_no_result_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    results.add(file, [PLAIN])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UserError, match="line 2"):
        results.read(file)


def test_a_checksum_holds_for_the_run_beside_the_measurement(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    results.add(file, [PLAIN])
    line = json.loads(file.read_text())
    line["run"]["epochs"] = 1000
    file.write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="line 1 was changed"):
        results.read(file)
    del line["checksum"]  # as earlier versions wrote it
    file.write_text(json.dumps(line) + "\n")
    assert results.read(file)[0].run["epochs"] == 1000


@pytest.mark.parametrize("change", [{"k": 10}, {"outcomes": "1111111111"}])
def test_a_line_that_was_changed_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    results.add(file, [PLAIN])
    line = json.loads(file.read_text())
    line["document"]["clean"] |= change
    file.write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="line 1 was changed"):
        results.read(file)


def test_a_page_without_a_place_is_refused() -> None:
    assert results.replace_between("a<!-- results -->b<!-- /results -->c", "T").startswith("a<!-- results -->\nT\n")
    with pytest.raises(UserError, match="/results"):
        results.replace_between("nothing here", "T")


def test_the_committed_evaluations_are_whole() -> None:
    evaluations = [one for file in COMMITTED for one in results.read(file) if one.kind == "evaluation"]
    assert len(evaluations) >= 102
    for one in evaluations:
        found = one.evaluation
        assert one.evidence == found.ledger and found.environments[0]["commit"] and one.run["trained"]["commit"]
        assert found.to_dict() == one.document, "every derived number is that of the outcomes"
        columns = zip(*(row.outcomes for row in found.rows[:-1]), strict=True)
        assert found.worst.outcomes == "".join("1" if set(column) == {"1"} else "0" for column in columns)


def corrupted(recipe: str, errors: dict[str, float], n: int = 50) -> StoredResult:
    record = of_errors(errors, n)
    source = {**record.identity["corruptions"], "kind": "generated", "table": "CIFAR-10-C"}
    record = replace(record, identity={**record.identity, "corruptions": source})
    return StoredResult(kind="corruptions", run=run_block(recipe), evidence="", document=record.to_dict())


def test_the_columns_are_the_papers() -> None:
    assert (TITLES["defocus_blur"], TITLES["contrast"], TITLES["jpeg_compression"]) == ("Defocus", "Contra", "JPEG")
    assert list(TITLES) == list(CORRUPTIONS)


def test_a_pair_under_corruptions_gets_its_paired_difference() -> None:
    pair = [
        corrupted("mine-fastat", {"fog": 0.4, "saturate": 0.2}),
        corrupted("mine-fastat-he", {"fog": 0.3, "saturate": 0.2}),
    ]
    head, _, titles, _, first, second, difference = listing(pair).splitlines()
    assert "toys, 50 test images" in head and "over 1 corruptions" in head
    assert titles == "| method | seed | epochs | clean | mCA | Fog | saturate |"
    assert first.startswith("| `mine-fastat` | 0 | 5 | 100.0 | 60.0 (") and first.endswith("| 60.0 | 80.0 |")
    assert second.startswith("| `mine-fastat-he` | 0 | 5 | 100.0 | 70.0 (")
    assert difference.startswith(
        "| *minus `mine-fastat`* | 0 |  | *+0.0* | *+10.00 (+0.80 to +19.04)*"
    ) and difference.endswith("*+10.0* | *+0.0* |")


def test_other_images_and_corruptions_are_another_table() -> None:
    tables = listing([corrupted("a-fastat", {"fog": 0.4}), corrupted("a-fastat-he", {"frost": 0.1})]).split("\n\n")
    assert ["| method" in part for part in tables] == [False, True, False, True]
    assert "| Fog |" in tables[1] and "| Frost |" in tables[3] and "*less" not in "".join(tables)
