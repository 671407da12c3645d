"""`advsphere compare` draws a sample for the attacks that prove, unless every attack has run on all images already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from advsphere.cli import main
from advsphere.cli.report import _evaluate
from advsphere.comparison.find import Finished, common
from advsphere.evaluation import Evaluation
from advsphere.evaluation.sampling import Bound

GIVEN = ["--suite", "adaptive", "--steps", "2", "--guides", "1", "--n", "100"]


def compared(runs: list[Path], *more: str) -> dict[str, object]:
    assert main(["compare", *map(str, runs), *GIVEN, "--pgd", "CE", *more]) == 0
    record: dict[str, object] = json.loads((runs[1] / "compared" / "comparison.json").read_text())
    return record


def evaluation(record: dict[str, object], arm: str) -> Evaluation:
    (evidence,) = record["evidence"][arm]  # type: ignore[index]
    found = Evaluation.load(Path(evidence["folder"]) / "evaluation.json")
    assert evidence["certainty"] == found.identity["suite"].get("certainty") and evidence["ledger"] == found.ledger
    return found


def shown_by_a_report(runs: list[Path]) -> list[Finished]:
    return common(runs, "adaptive")[0]


def test_a_comparison_has_a_certainty_by_default_and_takes_what_is_whole(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    usual = compared(runs, "--certainty", "usual")
    shown = " ".join(capsys.readouterr().out.split())
    arms = [evaluation(usual, arm) for arm in ("baseline", "method")]
    for one in arms:
        assert one.bound is not None and one.bound.certainty == 2.0 and 0 < one.bound.sampled < one.bound.survivors
        assert f"{100 * one.worst.accuracy - one.bound.points:.1f} to {100 * one.worst.accuracy:.1f}" in shown
    assert usual["sampled"] == ["features"] and "features" not in {gain["name"] for gain in usual["gains"]}  # type: ignore[attr-defined]
    assert f"at most {arms[0].bound.points:.2f} points more from the baseline" in shown  # type: ignore[union-attr]
    assert {type(one.evaluation.bound) for one in shown_by_a_report(runs)} == {Bound}
    assert "--certainty 2.0" in _evaluate(shown_by_a_report(runs)[0])

    paired = compared(runs)
    assert "features ran on all images that the other attacks left" in " ".join(capsys.readouterr().out.split())
    for arm in ("baseline", "method"):
        bound = evaluation(paired, arm).bound
        assert bound is not None and bound.certainty == 0.98 and bound.sampled == bound.survivors, "less than an image"
    every = compared(runs, "--certainty", "none")
    assert every["sampled"] == [] and "features" in {gain["name"] for gain in every["gains"]}  # type: ignore[attr-defined]
    same = ("share", "verdict", "sentence", "n_for_a_point", "pgd")
    assert {name: paired[name] for name in same} == {name: every[name] for name in same}
    assert paired["gains"][-1] == every["gains"][-1]  # type: ignore[index]
    capsys.readouterr()
    assert compared(runs)["evidence"] == every["evidence"]
    assert " ".join(capsys.readouterr().out.split()).count("so no sample is drawn") == 2
    assert [one.evaluation.bound for one in shown_by_a_report(runs)] == [None, None], "the stronger ones"

    for folder in (runs[0] / "evaluations").glob("*guides1"):
        (folder / "evaluation.json").unlink()
    mixed = compared(runs)
    assert [evaluation(mixed, arm).bound is None for arm in ("baseline", "method")] == [False, True]
    shown = " ".join(capsys.readouterr().out.split())
    assert "certainty: 0.98 points -> every attack on all images" in shown
    assert {one.evaluation.bound is None for one in shown_by_a_report(runs)} == {False, True}
