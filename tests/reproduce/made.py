"""Stored evaluations with chosen outcomes, as if they had been measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from advsphere.evaluation import Evaluation, Row
from advsphere.evaluation.masking import signs
from advsphere.reproduce.results import StoredResult

OBJECTIVES = {"fastat": "FastAT", "freeat": "FreeAT", "pgd-at": "PGDAT", "standard": "Standard"}


def change(line: str) -> dict[str, Any]:
    """A change from "sphere.scale: 15.0 -> 5.0"."""
    path, values = line.split(": ")
    old, new = (yaml_value(value) for value in values.split(" -> "))
    return {"path": path, "old": old, "new": new}


def yaml_value(text: str) -> Any:
    return {"True": True, "False": False}.get(text, float(text) if "." in text else text)


def run_block(recipe: str, *, seed: int = 0, weight_decay: float = 5e-4, robust: float = 0.3,
              overrides: tuple[str, ...] = (), **other: Any) -> dict[str, Any]:  # fmt: skip
    kind = next(kind for kind in OBJECTIVES if f"-{kind}" in recipe)
    changed = [change(line) for line in overrides]
    changed += [] if weight_decay == 5e-4 else [{"path": "training.weight_decay", "old": 5e-4, "new": weight_decay}]
    changed += [] if seed == 0 else [{"path": "training.seed", "old": 0, "new": seed}]
    return {
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
        "validated": {"robust": robust, "epoch": 1},
    } | other  # fmt: skip


def stored(
    recipe: str,
    outcomes: dict[str, str],
    *,
    suite: str = "paper",
    eps: float = 8 / 255,
    settings: dict[str, Any] | None = None,
    **run: Any,
) -> StoredResult:
    """The evaluation of one run; outcomes: by attack, with "clean" first and "worst case" last."""
    block = run_block(recipe, **run)

    def row(name: str, answers: str) -> Row:
        return Row(name=name, outcomes=answers, settings=settings or {}, invalid=0, unreached=0, median=None,
                   seconds=1.0, forwards=0)  # fmt: skip

    (clean, *attacks, worst) = (row(*of_attack) for of_attack in outcomes.items())
    name = f"{recipe} {block['seed']} {block['weight_decay']}"
    evaluation = Evaluation(
        clean=replace(clean, settings={}),
        attacks=tuple(attacks),
        worst=replace(worst, settings={}, seconds=1.0 + len(attacks)),
        identity={
            "model": {"checksum": name, "scale": block["scale"] or 1.0},
            "data": {"checksum": "toys", "n": clean.n},
            "attacks": {row.name: row.settings for row in attacks},
            "threat": {"norm": "linf", "eps": eps},
            "suite": {"name": suite},
            "seed": 0,
        },
        environments=({"commit": "def"},),
        ledger=f"of {name}",
        findings=(),
        signs=signs(attacks, {}, block["scale"] or 1.0),
    )
    return StoredResult(kind="evaluation", run=block, evidence=evaluation.ledger, document=evaluation.to_dict())


def trained(recipe: str, **run: Any) -> StoredResult:
    """A training, of which nothing but the accuracy on held-out images is measured."""
    document = {"attack": "PGD-10", "threat": {"norm": "linf", "eps": 8 / 255}, "n": 100, "k": 30}
    return StoredResult(kind="training", run=run_block(recipe, **run), evidence="metrics", document=document)


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
