"""Pages: every number from a row, the same bytes from the same rows, and those that are committed up to date."""

from __future__ import annotations

from pathlib import Path

from advsphere.cli import main
from advsphere.reproduce import pages, results
from advsphere.reproduce.tables import TABLES
from tests.reproduce.made import PLAIN, SPHERE, bits, stored

ROOT = Path(__file__).parents[2]
GIVEN = {Path("results/toys.jsonl"): [stored("small-fastat", PLAIN), stored("small-fastat-he", SPHERE)]}


def test_a_page_sets_each_cell_beside_the_papers_and_says_what_survives(tmp_path: Path) -> None:
    text, measured = pages.page(TABLES["table3"], GIVEN, tmp_path)
    assert measured and "## wrn-10-1 on toys, 100 test images, linf 8/255, weight decay 0.0005" in text
    plain, sphere, minus = (line for line in text.splitlines() if line.startswith(("| FastAT", "| *minus")))
    assert "40.0 (30.9-49.8)<br>paper 46.40: -6.4" in plain, "its PGD-50 is that at s = 1"
    assert "60.0 (50.2-69.1)<br>paper 52.55: +7.5" in sphere
    assert "*+20.0 (" in minus and "<br>*paper +6.15*" in minus
    assert "25 % of it" in text and "This holds for these checkpoints." in text
    assert "a processor, cpu, 1 thread" in text and "results/toys.jsonl" in text and "at commit abc" in text
    (figure,) = tmp_path.glob("*.svg")
    assert figure.name in text and "minus the plain objective" in figure.read_text()


def test_table_6_shows_autoattack_alone_too_without_a_number_of_the_papers_where_it_has_none(tmp_path: Path) -> None:
    attacks = ("clean", "AutoAttack: APGD-CE", "AutoAttack: + Square", "worst case")
    arms = [
        stored(name, {a: bits(k + more) for a, k in zip(attacks, (60, 40, 30, 30), strict=True)}, suite="autoattack")
        for name, more in (("tiny-imagenet-freeat", 0), ("tiny-imagenet-freeat-he", 5))
    ]
    text, measured = pages.page(TABLES["table6"], {Path("r.jsonl"): arms}, tmp_path)
    (section,) = text.split("\n## ")[1:]
    assert measured and "| FreeAT+HE |" in section and "65.0 (" in section and "paper" not in section
    assert "Under AutoAttack: APGD-CE the method's checkpoint" in section and list(tmp_path.glob("*.svg"))


def test_arms_that_may_not_be_compared_are_named(tmp_path: Path) -> None:
    both = [stored("small-fastat", PLAIN), stored("small-fastat-he", SPHERE, overrides=("x: 1 -> 2",))]
    text, _ = pages.page(TABLES["table3"], {Path("r.jsonl"): both}, tmp_path)
    assert "are not compared: x: 1 -> 2" in text and "*minus" not in text and not list(tmp_path.glob("*.svg"))


def test_the_same_rows_give_the_same_bytes_and_a_table_without_rows_says_so(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results --><!-- /results -->")
    for folder in (first, second):
        pages.write(GIVEN, folder, readme)
    assert "three objectives" in readme.read_text() and not (first / "together.svg").exists()
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert (
        "not measured yet" in (first / "README.md").read_text() and "Not measured" in (first / "table6.md").read_text()
    )


def test_the_committed_pages_are_those_of_the_committed_rows(tmp_path: Path) -> None:
    readme = tmp_path / "README of all.md"
    readme.write_text("<!-- results --><!-- /results -->")
    folder = tmp_path / "docs" / "results"
    assert main(["results", str(ROOT / "results"), "--pages", str(folder), "--into", str(readme)]) == 0
    assert readme.read_text() in (ROOT / "README.md").read_text(), "make pages"
    for page in folder.glob("*.md"):
        assert page.read_text() == (ROOT / "docs" / "results" / page.name).read_text(), "make pages"
    for figure in folder.glob("*.svg"):
        assert (ROOT / "docs" / "results" / figure.name).is_file(), "make pages"
    for file in (ROOT / "results").glob("*.jsonl"):
        for one in results.read(file):
            assert (ROOT / "results" / (one.picture or "")).exists()
