"""The rows as RobustBench keeps them: only what was measured, under its names."""

from __future__ import annotations

import json
from pathlib import Path

from advsphere.evaluation import WORST, Sign
from advsphere.report import report
from advsphere.report.robustbench import rows
from tests.report import made


def test_accuracies_are_text_in_percent_and_nothing_is_claimed_that_was_not_run() -> None:
    (found,) = rows(made.model("mine", made.evaluation(eps=8 / 255)))
    assert (found["clean_acc"], found["eps"], found["threat_model"]) == ("95.00", "8/255", "Linf")
    assert not {"autoattack_acc", "reported", "authors", "venue", "link", "architecture"} & found.keys()
    assert "200 test images" in found["footnote"] and "59.50" in found["footnote"] and "at most" in found["footnote"]
    assert found["advsphere"]["attacks"] == {"FGSM": "75.00", "PGD-20": "60.50"} and found["unreliable"] is False


def test_autoattack_counts_only_as_the_last_of_its_stages() -> None:
    staged = {"clean": 190, "AutoAttack: APGD-CE": 130, "AutoAttack: + APGD-T": 120, WORST: 120}
    assert rows(made.model("mine", made.evaluation(staged)))[0]["autoattack_acc"] == "60.00"
    one = {"clean": 190, "APGD-CE": 130, "AutoAttack": 118, WORST: 117}
    (found,) = rows(made.model("mine", made.evaluation(one)))
    assert found["autoattack_acc"] == found["reported"] == "59.00"
    short = {"clean": 190, "short AutoAttack: APGD-CE": 130, WORST: 130}
    assert "autoattack_acc" not in rows(made.model("mine", made.evaluation(short)))[0]


def test_what_the_run_knows_is_told_and_flags_are_too() -> None:
    signs = (Sign("one step beats many", "raised", "30 of 200", "try more restarts"),)
    training = {"model": {"name": "wrn-10-2", "pretrained": True}}
    (found,) = rows(made.model("mine", made.evaluation(signs=signs), training=training, data_name="CIFAR-10 (JPEG)"))
    assert (found["architecture"], found["additional_data"], found["dataset"]) == ("wrn-10-2", True, "CIFAR-10 (JPEG)")
    assert found["unreliable"] is True and "try more restarts" in found["advsphere"]["flags"][0]


def test_it_lies_beside_the_page(tmp_path: Path) -> None:
    report(made.pair(), tmp_path / "page.html")
    record = json.loads((tmp_path / "page.json").read_text())
    assert [one["name"] for one in record["rows"]] == ["PGD-AT", "PGD-AT+HE"]
