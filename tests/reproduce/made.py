"""Rows with chosen outcomes, as if they had been measured."""

from __future__ import annotations

from typing import Any

from advsphere.reproduce.results import Row
from advsphere.stats import wilson

OBJECTIVES = {"fastat": "FastAT", "freeat": "FreeAT", "pgd-at": "PGDAT", "standard": "Standard"}


def rows(
    recipe: str,
    outcomes: dict[str, str],
    *,
    seed: int = 0,
    weight_decay: float = 5e-4,
    suite: str = "paper",
    robust: float = 0.3,
    overrides: tuple[str, ...] = (),
    **other: Any,
) -> list[Row]:
    """A row for each attack of one run; outcomes: by attack, with "clean" and "worst case"."""
    kind = next(kind for kind in OBJECTIVES if f"-{kind}" in recipe)
    changed = [*overrides]
    changed += [] if weight_decay == 5e-4 else [f"training.weight_decay: 0.0005 -> {weight_decay}"]
    changed += [] if seed == 0 else [f"training.seed: 0 -> {seed}"]
    shared = {
        "recipe": recipe,
        "overrides": changed,
        "network": "wrn-10-1",
        "objective": OBJECTIVES[kind],
        "scale": 15.0 if "-he" in recipe else None,
        "margin": 0.2 if "-he" in recipe else None,
        "weight_decay": weight_decay,
        "epochs": 5,
        "seed": seed,
        "checkpoint": "best",
        "data": "toys",
        "trained": {"seconds": 60.0, "processor": "a processor", "device": "cpu", "threads": 1, "torch": "2",
                    "commit": "abc"},
        "validated": {"robust": robust},
        "suite": suite,
        "threat": "linf 8/255",
        "evaluated": {"ledger": f"of {recipe} {seed} {weight_decay}", "model": f"{recipe} {seed} {weight_decay}",
                      "data": "toys", "commit": "def"},
        "attack_seconds": 1.0,
        "settings": {},
        "median": None,
    }  # fmt: skip
    made = []
    for attack, answers in outcomes.items():
        k, n = answers.count("1"), len(answers)
        numbers = {"k": k, "n": n, "accuracy": k / n, "interval": list(wilson(k, n)), "outcomes": answers}
        made.append(shared | numbers | {"attack": attack} | other)
    return made


def bits(right: int, n: int = 100) -> str:
    """The first `right` of n images resist."""
    return "1" * right + "0" * (n - right)


PLAIN = {"clean": bits(80), "PGD-50": bits(40), "margin PGD-50": bits(36), "worst case": bits(36)}
SPHERE = {
    "clean": bits(82),
    "PGD-50 (s = 1)": bits(60),
    "PGD-50": bits(44),
    "margin PGD-50": bits(41),
    "worst case": bits(41),
}
"""It gains 20 points under PGD-50 on bare cosines, 5 in the worst case."""
