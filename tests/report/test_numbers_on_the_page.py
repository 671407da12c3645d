"""Every number on the page is the evaluation's: recomputed here from the outcomes, by the formulas."""

from __future__ import annotations

import dataclasses
import math

import pytest

from advsphere.evaluation import WORST, Evaluation, Sign, compare
from advsphere.evaluation.sampling import Bound
from advsphere.report import ModelReport, page
from advsphere.report import rendering as numbers
from advsphere.threat import radius
from tests.report import made
from tests.report.parsed import Node, parse

MINUS, DASH = "\u2212", "\u2013"


@pytest.fixture(scope="module")
def models() -> list[ModelReport]:
    better = {"clean": 190, "FGSM": 170, "PGD-20": 150, WORST: 120}
    second = made.model("second", made.evaluation(better, shift=3), curve=made.curve())
    return [made.model("first", curve=made.curve()), second]


@pytest.fixture(scope="module")
def tree(models: list[ModelReport]) -> Node:
    return parse(page(models))


def body(table: Node) -> dict[str, list[str]]:
    """The cells of each row, by the row's heading."""
    rows = [row for part in table.all("tbody") for row in part.all("tr")]
    return {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in rows}


def interval(k: int, n: int) -> str:
    """Wilson's 95 % interval, by its formula."""
    p, z = k / n, 1.959963984540054
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((p + z * z / (2 * n) + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return f"{100 * low:.1f}{DASH}{100 * high:.1f}"


def test_the_table_has_every_row_with_its_interval(models: list[ModelReport], tree: Node) -> None:
    shown = body(tree.one("accuracy").all("table")[0])
    assert list(shown) == ["clean", "FGSM", "PGD-20", WORST]
    for name, cells in shown.items():
        for cell, model in zip(cells[:2], models, strict=True):
            k = model.evaluation.row(name).outcomes.count("1")
            assert cell == f"{100 * k / made.N:.1f} {interval(k, made.N)}"


def test_an_attack_that_the_time_did_not_reach_has_no_numbers() -> None:
    whole = made.evaluation()
    late = dataclasses.replace(whole.row("PGD-20"), unreached=121, forwards=0, seconds=0.0)
    attacks = tuple(late if row.name == "PGD-20" else row for row in whole.attacks)
    tree = parse(page([made.model("first", dataclasses.replace(whole, attacks=attacks))]))
    assert body(tree.one("accuracy").all("table")[0])["PGD-20"] == ["not run"]
    assert body(tree.one("counts").all("table")[0])["PGD-20"] == ["", "", ""]


def test_the_differences_are_paired_and_say_when_they_can_t_tell(models: list[ModelReport], tree: Node) -> None:
    shown = body(tree.one("accuracy").all("table")[0])
    told = set()
    for name, cells in shown.items():
        a, b = (model.evaluation.row(name).outcomes for model in models)
        points = 100 * (b.count("1") - a.count("1")) / made.N
        expected = "0.0" if points == 0 else f"{points:+.1f}".replace("-", MINUS)
        assert cells[2].split()[0] == expected
        found = compare(models[1].evaluation, models[0].evaluation, name)
        assert f"{100 * found.low:+.1f} to {100 * found.high:+.1f}".replace("-", MINUS) in cells[2]
        assert ("cannot tell" in cells[2]) == found.cannot_tell
        told.add(found.cannot_tell)
    assert told == {True, False}, "the case should hold both kinds of rows"


def test_the_curve_s_numbers_are_in_a_table_and_never_rise(models: list[ModelReport], tree: Node) -> None:
    shown = body(tree.one("curves").all("table")[0])
    assert list(shown) == [radius(eps) for eps in (0.0, 0.1, 0.2, 0.3)]
    for k, cells in zip((200, 150, 100, 50), shown.values(), strict=True):
        assert cells == [f"{100 * k / made.N:.1f} {interval(k, made.N)}"] * 2
    assert "never rises" in tree.one("curves").text and "upper bound" in tree.one("curves").text


def test_counts_and_costs(models: list[ModelReport], tree: Node) -> None:
    cost, discordant = (body(table) for table in tree.one("counts").all("table"))
    assert cost["PGD-20"] == ["121", "4,321", "1.2", "150", "4,321", "1.2"]
    a, b = (model.evaluation.row("PGD-20").outcomes for model in models)
    only_b = sum(v == "1" and u == "0" for u, v in zip(a, b, strict=True))
    only_a = sum(u == "1" and v == "0" for u, v in zip(a, b, strict=True))
    assert discordant["PGD-20"][:2] == [str(only_b), str(only_a)]
    m, smaller = only_a + only_b, min(only_a, only_b)
    exact = min(1.0, 2 * sum(math.comb(m, i) for i in range(smaller + 1)) / 2**m)
    assert discordant["PGD-20"][2] == ("< 0.001" if exact < 0.001 else f"{exact:.2g}")


def test_an_attack_that_only_one_model_has_is_said_to_be_not_run() -> None:
    wide = {"clean": 190, "FGSM": 170, "PGD-50 (s = 1)": 160, "PGD-20": 150, WORST: 150}
    tree = parse(page([made.model("a"), made.model("b", made.evaluation(wide))]))
    shown = body(tree.one("accuracy").all("table")[0])
    assert list(shown)[-1] == WORST
    assert shown["PGD-50 (s = 1)"][0] == shown["PGD-50 (s = 1)"][2] == "not run"
    assert shown["PGD-50 (s = 1)"][1].startswith("80.0")


def test_provenance_settings_and_commands_are_all_there(models: list[ModelReport]) -> None:
    tree = parse(page(made.pair(), commands=made.COMMANDS))
    facts = tree.one("provenance").text
    for value in ("m" * 64, "d" * 64, "f" * 64, "seed 17", "batch_size 250", "a processor", "torch 2.11.0"):
        assert value in facts
    attacks = tree.one("attacks").text
    assert "name pgd, steps 20, step_size 0.05, restarts 1, until_fooled yes, decay none" in attacks
    assert "0 to 9 for 10 outputs" in tree.one("checks").text
    assert "advsphere verify runs/a" in tree.one("reproduce").text


def test_what_differs_in_training_stands_apart_from_what_is_the_same() -> None:
    section = parse(page(made.pair())).one("training")
    differ, same = section.all("dl")
    assert "sphere PGD-AT none PGD-AT+HE scale 15, margin 0.2" in differ.text
    assert "plain-he" in differ.text and "epochs" not in differ.text
    assert same.text == "training epochs 20, seed 0"


def test_a_plain_head_s_row_stands_for_the_one_at_s_1() -> None:
    """A plain network has no scale to take away, so what PGD-50 left is what PGD-50 (s = 1) would have left."""
    plain = made.evaluation({"clean": 190, "PGD-50": 120, WORST: 119})
    identity = plain.identity | {"model": plain.identity["model"] | {"scale": 1.0}}
    sphere = made.evaluation({"clean": 190, "PGD-50 (s = 1)": 150, "PGD-50": 125, WORST: 122})
    models = [made.model("plain", dataclasses.replace(plain, identity=identity)), made.model("sphere", sphere)]
    tree = parse(page(models))
    shown = body(tree.one("accuracy").all("table")[0])
    assert list(shown) == ["clean", "PGD-50 (s = 1)", "PGD-50", WORST]
    assert shown["PGD-50 (s = 1)"][0] == shown["PGD-50"][0] and shown["PGD-50 (s = 1)"][0].startswith("60.0")
    assert shown["PGD-50 (s = 1)"][2].startswith("+15.0") and shown["PGD-50"][2].startswith("+2.5")
    assert "gain under PGD-50 (s = 1)" in tree.all("header")[0].text


def test_flags_are_shown_and_announced(models: list[ModelReport]) -> None:
    quiet = parse(page(models))
    assert quiet.one("flags").text.startswith("Flags None") and "flag" not in quiet.all("header")[0].all("ul")[0].text
    noted = made.evaluation(findings=(made.Finding("gradient", "noted", "no gradient reaches the images"),))
    loud = parse(page([made.model("masked", noted), made.model("other")]))
    assert "masked: no gradient reaches the images" in loud.one("flags").text
    assert "One flag was raised" in loud.all("header")[0].text


def test_signs_of_masking_stand_with_the_flags(models: list[ModelReport]) -> None:
    quiet = parse(page(models)).one("flags").text
    assert "looked for and not found: one step beats many; not judged by these attacks: weak at s = 1." in quiet
    sign = Sign("vanishing gradients", "raised", "on 93 of 100 images there is none", "try --suite autoattack")
    loud = parse(page([made.model("masked", made.evaluation(signs=(sign,))), made.model("other")]))
    shown = "masked: sign of gradient masking, vanishing gradients: on 93 of 100 images there is none What to do: try"
    assert shown in loud.one("flags").text and "None" not in loud.one("flags").text
    assert "One flag was raised" in loud.all("header")[0].text


def test_the_strongest_attack_is_named(models: list[ModelReport]) -> None:
    text = parse(page(models)).one("accuracy").text
    for model in models:
        assert f"Strongest attack on {model.name}: {model.evaluation.strongest}." in text


@pytest.mark.parametrize(
    ("share", "text"), [(0.046, "+4.6"), (-0.046, "-4.6"), (0.0004, "0.0"), (-0.0004, "0.0"), (0.0006, "+0.1")]
)
def test_points_have_a_sign_unless_they_are_zero(share: float, text: str) -> None:
    assert numbers.points(share) == text


def test_the_evaluation_says_upper_bound_wherever_it_shows_robust_accuracy(tree: Node) -> None:
    for section in ("accuracy", "curves"):
        assert "an upper bound of robust accuracy" in tree.one(section).text
    assert "at most" in tree.all("header")[0].text and "upper bound" in tree.all("header")[0].text


def test_rows_keep_the_order_in_which_the_attacks_ran() -> None:
    given: Evaluation = made.evaluation({"clean": 9, "z": 5, "a": 4, WORST: 4})
    assert list(body(parse(page([made.model("m", given)])).one("accuracy"))) == ["clean", "z", "a", WORST]


def test_attacks_on_a_sample_count_in_the_worst_case_whose_interval_holds_for_all_images() -> None:
    counts = {"clean": 190, "PGD-20": 121, "Square": 119, WORST: 119}
    drawn = {"certainty": 5, "survivors": 121, "sampled": 30, "fell": 2, "n": made.N, "confidence": 0.95}
    whole, known = made.evaluation(counts), Bound(**drawn, most=40, looks=((30, 2),))
    proof = made.row("Square", made.outcomes(119, shift=7), {"proof": True})
    plain = made.evaluation(counts, shift=7, model="o" * 64)
    other = dataclasses.replace(plain, attacks=(plain.attacks[0], proof), bound=known)
    tree = parse(page([made.model("a", whole), made.model("b", other)]))
    shown, discordant = body(tree.one("accuracy").all("table")[0]), body(tree.one("counts").all("table")[1])
    assert shown["Square"][1:] == ["on a sample"] * 2 and shown["Square"][0].startswith("59.5")
    assert discordant["Square"] == [""] * 3 and "holds whatever it would take" in tree.one("accuracy").text
    found, as_it_is = compare(other, whole), compare(plain, whole)
    assert found.low < as_it_is.low and found.high == as_it_is.high
    assert f"{100 * found.low:+.1f} to {100 * found.high:+.1f}".replace("-", MINUS) in shown[WORST][2]
    assert "a sample of the images left open" in tree.all("header")[0].text
