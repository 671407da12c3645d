"""What a page says of methods that were trained from several seeds."""

from __future__ import annotations

import pytest

from advsphere.comparison.gain import measure_gains
from advsphere.errors import UserError
from advsphere.evaluation import WORST
from advsphere.report import ModelReport, page
from advsphere.report.robustbench import rows
from advsphere.report.verdict import cautions, conclusions
from tests.report import made
from tests.report.parsed import parse


def arm(name: str, pgd: list[int], worst: list[int]) -> ModelReport:
    """A seed for each number of images left under PGD-20, and in the worst case."""
    found = [
        made.evaluation({"clean": 190, "PGD-20": p, WORST: w}, shift=i, model=f"{name}{i}".ljust(64, "m"))
        for i, (p, w) in enumerate(zip(pgd, worst, strict=True))
    ]
    seeds = [(i + 4, evaluation) for i, evaluation in enumerate(found)] if len(found) > 1 else []
    return made.model(name, found[0], seeds=seeds)


THREE = [arm("base", [100, 102, 101], [99, 100, 98]), arm("method", [150, 152, 151], [147, 150, 149])]


def test_three_seeds_speak_of_the_method() -> None:
    (conclusion,) = conclusions(THREE)
    assert conclusion.headline == "In the worst case more than half of the gain of method over base survives."
    said = " ".join([*cautions(THREE), conclusion.detail])
    assert "these methods" in said and "three seeds" in said and "checkpoints" not in said
    found = measure_gains(*([found for _, found in model.seeds] for model in THREE))
    assert conclusion.numbers[1].value == f"{100 * found.gain(WORST).difference:+.1f}"
    assert "3 and 3 seeds" in conclusion.detail and "74.3 %" in conclusion.detail and "49.5 %" in conclusion.detail, (
        "means, not the first seed's"
    )


def test_two_seeds_speak_of_these_checkpoints() -> None:
    two = [arm("base", [100, 102], [99, 100]), arm("method", [150, 152], [147, 150])]
    (conclusion,) = conclusions(two)
    assert (
        conclusion.headline
        == "In the worst case more than half of the gain of the method checkpoints over the base checkpoints survives."
    )
    assert "images only" in conclusion.detail and "these four checkpoints" in " ".join(cautions(two))


def test_seeds_that_differ_as_much_as_the_methods_leave_it_open() -> None:
    wide = [arm("base", [60, 100, 140], [60, 100, 140]), arm("method", [80, 120, 160], [80, 120, 160])]
    (conclusion,) = conclusions(wide)
    assert conclusion.headline == "The sample cannot tell method from base."
    alone = [made.model(model.name, model.evaluation) for model in wide]
    assert "cannot tell" not in conclusions(alone)[0].headline, "the first seeds alone would have told"


def test_the_page_shows_every_seed() -> None:
    tree = parse(page(THREE))
    first = tree.all("section")[0]
    assert first.attributes["id"] == "seeds"
    text = first.text
    assert "seeds 4, 5, 6" in text
    for model in THREE:
        for _, found in model.seeds:
            assert f"{100 * found.worst.accuracy:.1f}" in text
    worst = next(row for row in first.all("tr") if "worst case" in row.text)
    assert "49.5" in worst.text and "74.3" in worst.text and "+24.8" in worst.text
    assert "ledger of seed 5" in tree.one("provenance").text
    assert [row["name"] for row in rows(THREE[0])] == ["base, seed 4", "base, seed 5", "base, seed 6"]


def test_the_same_checkpoint_again_is_no_other_seed() -> None:
    again = made.evaluation()
    with pytest.raises(UserError, match="twice"):
        measure_gains([again, again], [again])
    with pytest.raises(UserError, match="same checkpoint"):
        made.model("base", again, seeds=[(0, again), (1, again)])


def test_how_well_few_seeds_cover_a_method_is_said_of_a_comparison_alone() -> None:
    two = [arm("base", [100, 102], [99, 100]), arm("method", [150, 152], [147, 150])]
    assert "20 to 93 % of simulated cases" in " ".join(cautions(two))
    assert not any("simulated" in said for models in (THREE, THREE[:1]) for said in cautions(models))
