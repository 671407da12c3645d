"""What the further sections say is what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from advsphere.report import page
from tests.report import made
from tests.report.parsed import Node, parse, texts

MINUS, DASH = "\u2212", "\u2013"


@pytest.fixture(scope="module")
def tree() -> Node:
    return parse(page(made.pair()))


def cells(table: Node) -> dict[str, list[str]]:
    rows = table.all("tbody")[0].all("tr")
    return {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in rows}


def test_classes_are_counted_and_the_weakest_is_named(tree: Node) -> None:
    section, models = tree.one("classes"), made.pair()
    shown = cells(section.all("table")[0])
    for name, found in shown.items():
        ones = [next(one for one in model.classes if one.name == name) for model in models]
        assert found[0] == str(ones[0].n)
        expected = [f"{100 * k / one.n:.1f}" for one in ones for k in (one.clean, one.worst)]
        assert [text.split()[0] for text in found[1:]] == expected
        assert all(DASH in text for text in found[1:])
    least = min(models[0].classes, key=lambda one: one.worst / one.n)
    assert f"Lowest worst-case accuracy of PGD-AT: {least.name}" in section.text
    assert set(shown) == {"cat", "dog", "fish & chips"}


def test_every_pair_of_attacks_is_counted(tree: Node) -> None:
    section = tree.one("agreement")
    # FGSM leaves the first 150 of the 190, PGD-20 the first 121: PGD-20 also fools what FGSM fools, and 29 more.
    plain, _ = (texts(image) for image in section.all("img"))
    numbers = [text for text in plain if text.isdigit()]
    assert numbers[-6:] == ["40", "0", "0", "29", "69", "29"]
    assert "Fooled by one attack alone: PGD-20 29." in str(section.all("img")[0].attributes["alt"])
    assert "Of 190 correctly classified images" in section.text


def test_margins_and_angles_come_with_their_quartiles(tree: Node) -> None:
    shown = cells(tree.one("angles").all("table")[0])
    assert list(shown) == [f"{n}, {part}" for n in ("PGD-AT", "PGD-AT+HE") for part in ("clean", "under attack")]
    clean, attacked = shown["PGD-AT, clean"], shown["PGD-AT, under attack"]
    margins = sorted(i % 50 - 20 for i in range(made.N))
    quarters = [margins[round(q * (made.N - 1))] for q in (0.25, 0.5, 0.75)]
    low, middle, high = (f"{v:.1f}".replace("-", MINUS) for v in quarters)
    assert clean[:2] == [f"{middle} {low} to {high}", "40.0"] and attacked[1] == "70.0"
    assert "PGD-10" in tree.one("angles").text


def test_gradient_ratios_are_of_the_layers_that_have_a_gradient(tree: Node) -> None:
    section = tree.one("gradients")
    assert cells(section.all("table")[0])["PGD-AT"] == ["1.50", "1.75", "2.00", "2"]
    assert len(section.all("figure")) == 2


def test_what_is_not_known_has_no_section() -> None:
    ids = {section.attributes["id"] for section in parse(page([made.model("alone")])).all("section")}
    assert not ids & {"classes", "angles", "gradients", "curves", "pictures", "reproduce"}
    assert {"accuracy", "agreement", "flags", "provenance"} <= ids


def test_warnings_stand_with_the_verdict_and_the_images_have_the_name_they_were_given() -> None:
    models = [replace(model, data_name="digits (JPEG)") for model in made.pair()]
    html = page(models, warnings=["The epochs differ."])
    header = parse(html).all("header")[0]
    assert "The epochs differ." in header.text and "digits (JPEG), 200 images" in header.text
    assert "200 images of digits (JPEG)" in parse(html).one("accuracy").text
