"""What we say that we learnt: no number without a row behind it, no command that can't be typed."""

from __future__ import annotations

import re
from pathlib import Path

from advsphere.cli import COMMANDS

DOCS = Path(__file__).parents[2] / "docs"
FINDINGS = (DOCS / "findings.md").read_text()


def test_every_measured_number_stands_on_a_page_that_is_made_from_rows() -> None:
    pages = "\n".join(page.read_text() for page in (DOCS / "results").glob("*.md"))
    said = " ".join(re.sub(r"`[^`]*`", "", FINDINGS).split())
    numbers = re.findall(r"[+-]?\d+\.\d+(?: \([+-]\d+\.\d+ to [+-]\d+\.\d+\))?", said)  # whole, with its interval
    assert all(number in pages for number in numbers), [number for number in numbers if number not in pages]


def test_every_link_leads_to_a_page_and_every_command_is_one_of_ours() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", FINDINGS):
        assert (DOCS / link).is_file(), link
    for command in re.findall(r"`advsphere (\w+)", FINDINGS):
        assert command in COMMANDS
