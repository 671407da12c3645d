"""What we say that we learnt: each number is that of the cell to which it is bound, and each command can be typed.

After each part with numbers, a comment names their cells in order, a line for each row of a page:

    page | section | row | column; column, paper

The section is named by words that its title contains, and the row by words that are its cells, joined by " & ". The
difference of two methods is the row "X+HE minus X". "paper" stands for the paper's number in that cell. A line of
two parts is a page and a sentence of it that contains the number.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from advsphere.cli import COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FINDINGS = (DOCS / "findings.md").read_text()
MEASURED = (ROOT / "README.md").read_text().partition("## Measured results")[2].partition("<!-- results -->")[0]

INTERVAL = r"\([+-]?\d+(?:\.\d+)? to [+-]?\d+(?:\.\d+)?\)"
NUMBER = re.compile(rf"[+-]?\d+\.\d+(?: {INTERVAL})?|-?\d+ % {INTERVAL}")
SETTING = re.compile(r"`[^`]*`|\]\([^)]*\)|\b[sm] = [\d.]+|\d+e-\d+|^    .*$", re.MULTILINE)
COMMENT = re.compile(r"<!-- numbers\n(.*?)-->", re.DOTALL)


def bound(text: str) -> list[tuple[str, str]]:
    """Each number of a page and the binding beside it; "" for one that has none."""
    found: list[tuple[str, str]] = []
    *parts, last = COMMENT.split(text)
    for said, bindings in zip(parts[::2], parts[1::2], strict=True):
        cells = [f"{row}|{column}" for row, _, column in (line.rpartition("|") for line in bindings.splitlines())
                 for column in column.split(";")]  # fmt: skip
        numbers = NUMBER.findall(SETTING.sub("", said))
        assert len(numbers) == len(cells), (numbers, cells)
        found += zip(numbers, cells, strict=True)
    return found + [(number, "") for number in NUMBER.findall(SETTING.sub("", last))]


def rows(page: str, section: str) -> list[tuple[list[str], dict[str, str]]]:
    """The labels and the cells by column of each row of the one section whose title contains these words."""
    sections = [part for part in page.split("\n## ") if section in part.partition("\n")[0]]
    assert len(sections) == 1, (section, [part.partition("\n")[0] for part in sections])
    lines = [
        [plain(cell) for cell in line.strip("| ").split(" | ")] for line in sections[0].splitlines() if "| " in line
    ]
    heads, *others = lines
    found, method = [], ""
    for cells in others:
        labels = list(cells)
        if labels[0].startswith("minus "):
            labels[0] = f"{method} {labels[0]}"
        else:
            method = re.sub(r" \(weight decay .*\)", "", labels[0])
        found.append((labels, dict(zip(heads, cells, strict=False))))
    return found


def plain(cell: str) -> str:
    """A cell without emphasis and links."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell.replace("*", "")).strip()


def number_of(binding: str) -> str:
    """The number of the cell that a binding names."""
    where, *rest = (part.strip() for part in binding.split("|"))
    page = (DOCS / "results" / f"{where}.md").read_text()
    if len(rest) == 1:
        assert rest[0] in page, rest[0]
        return NUMBER.findall(rest[0])[-1]
    section, row, column = rest
    column, of_paper = column.removesuffix(", paper"), column.endswith(", paper")
    named = [cells for labels, cells in rows(page, section) if all(word in labels for word in row.split(" & "))]
    assert len(named) == 1, (binding, len(named))
    parts = named[0][column].split("<br>")
    (part,) = [part for part in parts if part.startswith("paper")] if of_paper else parts[:1]
    return NUMBER.findall(part)[0]


@pytest.mark.parametrize("text", [FINDINGS, MEASURED], ids=["findings", "README"])
def test_each_number_is_that_of_its_cell(text: str) -> None:
    numbers = bound(text)
    assert numbers
    for number, binding in numbers:
        assert binding, f"{number} has no binding"
        assert number_of(binding) == number, binding


def test_a_number_of_another_cell_is_found_out() -> None:
    """The same number stands elsewhere on the page, so that a search for it would be content."""
    swapped = FINDINGS.replace(
        "+4.3 (+2.5 to +6.1) and +0.9 (-0.3 to +2.1)", "+4.0 (+2.4 to +5.7) and +0.9 (-0.3 to +2.1)"
    )
    wrong = [number for number, binding in bound(swapped) if number_of(binding) != number]
    assert wrong == ["+4.0 (+2.4 to +5.7)"]


def test_every_link_leads_to_a_page_and_every_command_is_one_of_ours() -> None:
    for link in re.findall(r"\]\(([^)#:]+)", FINDINGS):
        assert (DOCS / link).is_file(), link
    for command in re.findall(r"`advsphere (\w+)", FINDINGS):
        assert command in COMMANDS
