"""Several seeds of a method on the command line: what `compare` and `report` make of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from advsphere.cli import main
from tests.report.parsed import parse

ATTACKS = ["--suite", "quick", "--steps", "2", "--n", "60"]


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three seeds with an adversary and three without, each arm as it is typed."""
    folder, arms = tmp_path_factory.mktemp("seeds"), []
    for recipe in ("digits-standard", "digits-fastat"):
        runs = [folder / f"{recipe}-{seed}" for seed in range(3)]
        for seed, run in enumerate(runs):
            assert main(["train", recipe, "--epochs", "2", "--seed", str(seed), "--out", str(run)]) == 0
        arms.append(",".join(map(str, runs)))
    return arms


def test_three_seeds_in_each_arm_speak_of_the_method(arms: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *arms, *ATTACKS]) == 0
    shown = capsys.readouterr().out
    assert "Conclusions hold for the method." in shown and shown.count("baseline: ") == 3
    (kept,) = Path(arms[1].split(",")[0]).glob("compared/comparison.json")
    record = json.loads(kept.read_text())
    assert record["seeds"] == [3, 3] and len(record["evidence"]["method"]) == 3
    capsys.readouterr()

    page = kept.parent / "report.html"
    assert main(["report", *arms, "--out", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "these methods" in shown
    tree = parse(page.read_text())
    assert tree.all("section")[0].attributes["id"] == "seeds" and "seeds 0, 1, 2" in tree.one("seeds").text
    lines = [node.text for node in tree.one("reproduce").all("code")]
    assert len([line for line in lines if line.startswith("advsphere train")]) == 6
    assert sum(line.count(",") == 4 for line in lines) == 2, "compare and report, with the seeds as they are typed"


def test_a_run_twice_is_not_two_seeds(arms: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    first, second = arms[0].split(",")[0], arms[1].split(",")[0]
    assert main(["compare", f"{first},{first}", second, *ATTACKS]) == 1
    assert "twice" in "".join(capfd.readouterr())
