"""A network that resists one step and falls to many is called collapsed, and no other."""

from __future__ import annotations

from typing import Any

import pytest

from advsphere.evaluation import Row
from advsphere.evaluation.masking import overfitted


def row(called: str, k: int, n: int = 200, **settings: Any) -> Row:
    """The first k images are right."""
    return Row(
        name=called, outcomes="1" * k + "0" * (n - k), settings=settings, invalid=0, unreached=0, median=None,
        seconds=1, forwards=1,
    )  # fmt: skip


def judged(clean: int, fgsm: int, pgd: int, weak: int = 199) -> str | None:
    attacks = [
        row("FGSM", fgsm, name="fgsm"),
        row("PGD-20", min(weak, fgsm), name="pgd", steps=20),
        row("PGD-100", pgd, name="pgd", steps=100),
    ]
    return overfitted(row("clean", clean), attacks)


def test_what_falls_to_many_steps_alone_has_collapsed() -> None:
    said = judged(190, 144, 4)
    assert said is not None and said.startswith("collapsed: FGSM leaves 72.0% and PGD-100 2.0%")


@pytest.mark.parametrize(
    ("clean", "fgsm", "pgd"),
    [(170, 110, 90), (160, 90, 45), (190, 30, 0), (190, 90, 0), (190, 144, 40), (20, 8, 0), (0, 0, 0)],
    ids=[
        "robust",
        "robust at a large radius",
        "undefended",
        "undefended at a small radius",
        "partly",
        "chance",
        "none",
    ],
)
def test_others_have_not(clean: int, fgsm: int, pgd: int) -> None:
    assert judged(clean, fgsm, pgd) is None


def test_without_both_kinds_of_attacks_nothing_is_said() -> None:
    clean, fast, many = row("clean", 190), row("FGSM", 150, name="fgsm"), row("PGD", 2, name="pgd", steps=50)
    assert overfitted(clean, [fast]) is None and overfitted(clean, [many]) is None
    one = row("PGD-1", 150, name="pgd", steps=1)
    assert overfitted(clean, [one, many]) is not None
