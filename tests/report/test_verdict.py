"""What is said of two models follows from the interval of the paired difference, and from nothing else."""

from __future__ import annotations

import pytest

from advsphere.comparison.gain import measure_gains
from advsphere.evaluation import WORST, Evaluation, compare
from advsphere.report import ModelReport
from advsphere.report.verdict import cautions, conclusions
from tests.report import made


def with_worst(name: str, column: str) -> ModelReport:
    base: Evaluation = made.evaluation()
    worst = made.row(WORST, column)
    return made.model(name, made.evaluation(worst=worst, attacks=base.attacks))


ODD = made.outcomes(100)
CASES = {
    "the same outcomes": (ODD, ODD, None),
    "as many, but others": (ODD, made.outcomes(100, shift=7), None),
    "two more": (ODD, made.outcomes(102), None),
    "twenty more": (ODD, made.outcomes(120), "second"),
    "twenty fewer": (made.outcomes(120), ODD, "first"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_better_one_is_named_only_where_the_sample_can_tell(case: str) -> None:
    a, b, better = CASES[case]
    models = [with_worst("first", a), with_worst("second", b)]
    (conclusion,) = conclusions(models)
    difference = compare(models[1].evaluation, models[0].evaluation)
    assert ("cannot tell" in conclusion.headline) == (better is None) == difference.cannot_tell
    if better:
        assert conclusion.headline.startswith(f"The robust accuracy of the {better} checkpoint is 10.0 points higher")
    assert (
        f"from {100 * difference.low:+.1f} to {100 * difference.high:+.1f}".replace("+0.0", "0.0") in conclusion.detail
    )


def test_an_interval_beside_zero_is_not_enough_when_the_exact_test_disagrees() -> None:
    """Five against none: Newcombe's interval stays above 0, McNemar's p is 0.0625."""
    models = [with_worst("first", made.outcomes(100)), with_worst("second", made.outcomes(105))]
    difference = compare(models[1].evaluation, models[0].evaluation)
    assert difference.low > 0 and difference.p_value > 0.05
    (conclusion,) = conclusions(models)
    assert "cannot tell" in conclusion.headline and "0.062" in conclusion.detail


def test_each_model_is_compared_with_the_first() -> None:
    models = [with_worst(name, made.outcomes(k)) for name, k in (("a", 100), ("b", 101), ("c", 150))]
    found = conclusions(models)
    assert "cannot tell the b checkpoint from the a checkpoint" in found[0].headline
    assert "c checkpoint" in found[1].headline and "cannot tell" not in found[1].headline


def test_two_checkpoints_are_never_the_method() -> None:
    models = made.pair()
    said = " ".join([*cautions(models), *(f"{v.headline} {v.detail}" for v in conclusions(models))])
    assert "these two checkpoints" in said and "three seeds" in said and "upper bound" in said


def gained(pgd: int, worst: int) -> list[ModelReport]:
    """Against 100 of 200 under both: so many under PGD-20 and in the worst case, the same images and more."""
    return [
        made.model(name, made.evaluation({"clean": 200, "PGD-20": p, WORST: w}))
        for name, p, w in (("base", 100, 100), ("method", pgd, worst))
    ]


@pytest.mark.parametrize(
    ("pgd", "worst", "ends"),
    [
        (140, 140, "case more than half of the gain of the method checkpoint over the base checkpoint survives."),
        (140, 115, "case some of the gain of the method checkpoint over the base checkpoint survives."),
        (140, 101, "case less than half of the gain of the method checkpoint over the base checkpoint survives."),
        (101, 101, "cannot tell the method checkpoint from the base checkpoint."),
        (101, 130, "method checkpoint is 15.0 points higher than that of the base checkpoint."),
        (60, 60, "base checkpoint is 20.0 points higher than that of the method checkpoint."),
        (100, 60, "base checkpoint is 20.0 points higher than that of the method checkpoint."),
    ],
)
def test_the_headline_is_about_the_gain_that_survives_where_there_is_one(pgd: int, worst: int, ends: str) -> None:
    models = gained(pgd, worst)
    (conclusion,) = conclusions(models)
    assert conclusion.headline.endswith(ends)
    gain, left, share = conclusion.numbers
    assert gain.label == "gain under PGD-20" and left.label == "gain in the worst case"
    found = measure_gains([models[0].evaluation], [models[1].evaluation])
    assert (share.value == "") == (found.share is None)
    assert (share.interval == "there is no gain") == (found.verdict == "no gain") == (pgd < 100)
    if found.share:
        assert share.value == f"{100 * found.share[0]:.0f}"
        assert share.interval == "{:.0f} to {:.0f}".format(*(100 * part for part in found.share[1:]))


def test_without_an_attack_in_common_there_is_no_gain_to_speak_of() -> None:
    models = [
        made.model(name, made.evaluation({"clean": 200, attack: 120, WORST: 110}))
        for name, attack in (("a", "FGSM"), ("b", "Square"))
    ]
    (conclusion,) = conclusions(models)
    assert conclusion.numbers == () and "cannot tell" in conclusion.headline
