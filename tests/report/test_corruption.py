"""The section on corruptions: numbers that are known, and what it says where they are not comparable."""

from __future__ import annotations

from advsphere.report import page
from tests.report import made
from tests.report.parsed import Node, parse, texts


def tables(*records: object) -> list[Node]:
    models = [made.model(name, corruption=record) for name, record in zip("AB", records, strict=False)]
    return parse(page(models)).one("corruptions").all("table")


def test_every_accuracy_is_in_the_heat_map() -> None:
    (image,) = parse(page([made.model("A", corruption=made.corruption())])).one("corruptions").all("img")
    drawn = texts(image)
    for first in (60, 50, 40):  # fog, contrast, spatter
        row = [f"{first - 5 * i}.0" for i in range(5)] + [f"{first - 10}.0"]
        assert any(drawn[i : i + 6] == row for i in range(len(drawn)))
    assert {"fog", "contrast", "spatter"} <= set(drawn)


def test_means_and_paired_differences() -> None:
    first, second = tables(made.corruption(), made.corruption(20))[0].all("tbody")[0].all("tr")
    assert first.text.startswith("A 90.0") and "45.0" in first.text  # mCA: of fog and contrast, 50 and 40
    assert "55.0" in second.text and "+10.0" in second.text and "cannot tell" not in second.text
    same = tables(made.corruption(), made.corruption())[0].all("tr")[2].text
    assert "0.0" in same and "cannot tell" in same


def test_what_was_measured_on_is_said() -> None:
    caption = tables(made.corruption())[0].all("caption")[0].text
    assert "200 images" in caption and "2 of 15 corruptions (fog, contrast)" in caption
    assert "strengths of CIFAR-10-C, frost with noise textures" in caption


def test_records_of_other_images_are_not_compared() -> None:
    assert "not comparable" in tables(made.corruption(), made.corruption(data="e"))[0].text


def test_there_is_no_section_without_a_record() -> None:
    assert "common corruptions" not in page([made.model("A")])
