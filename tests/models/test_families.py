"""Families of networks: what docs/networks.md says of them, and that its rows are those of the script."""

from __future__ import annotations

import pytest

from tests.models.families import CHEAP, COLUMNS, FAMILIES, cells

OUTCOMES = {"equal", "no pair", "refused"}


@pytest.mark.parametrize(
    "name", [name if name in CHEAP else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_step_is_equal_or_refused_with_a_reason(name: str) -> None:
    found, reasons = cells(name)
    assert len(found) == len(COLUMNS) and set(found) <= OUTCOMES
    assert len(reasons) == found.count("refused") and not any("\n" in reason for reason in reasons)
    assert found.count("refused") < len(found) / 2
