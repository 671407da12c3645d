"""A row as RobustBench's model_info keeps them; what was not measured, or is not known, is left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from advsphere.evaluation import Row
from advsphere.report.collect import ModelReport
from advsphere.report.rendering import limits
from advsphere.threat import radius

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def rows(model: ModelReport, data_name: str | None = None) -> list[dict[str, Any]]:
    """One row, or one for each seed. Arguments as in `row`."""
    every = model.checkpoints.items()
    return [
        row(replace(model, name=name, evaluation=found, curve=None, spread=None), data_name) for name, found in every
    ]


def row(model: ModelReport, data_name: str | None = None) -> dict[str, Any]:
    """The fields of RobustBench under its names, accuracies in percent as text with two decimals; the entry "advsphere"
    holds what those have no place for. data_name: as in `report`.

    autoattack_acc is there only if AutoAttack ran, at its standard settings; authors and venue are not ours to know.
    """
    evaluation, identity = model.evaluation, model.evaluation.identity
    trained: dict[str, Any] = dict(model.training.get("model", {}))
    auto = _auto_attack(model)
    known = {
        "name": model.name,
        "additional_data": trained.get("pretrained"),
        "number_forward_passes": 1,
        "dataset": data_name or identity["data"]["name"],
        "threat_model": _NORMS[identity["threat"]["norm"]],
        "architecture": trained.get("name"),
        "eps": radius(identity["threat"]["eps"]),
        "clean_acc": _percent(evaluation.clean),
        "reported": None if auto is None else _percent(auto),
        "autoattack_acc": None if auto is None else _percent(auto),
        "unreliable": bool(evaluation.flags or evaluation.raised),
        "footnote": (
            f"Measured on {evaluation.clean.n} test images, so not comparable with a leaderboard's whole set. "
            f"In the worst case over {len(evaluation.attacks)} attacks at most {_percent(evaluation.worst)} % is left "
            f"(95 % interval {limits(evaluation.worst.interval, ' to ')})."
        ),
        "advsphere": {
            "n": evaluation.clean.n,
            "worst_case_acc": _percent(evaluation.worst),
            "attacks": {attack.name: _percent(attack) for attack in evaluation.attacks},
            "intervals": {attack.name: [round(100 * v, 2) for v in attack.interval] for attack in evaluation.rows},
            "suite": identity["suite"]["name"],
            "flags": [*evaluation.flags, *map(str, evaluation.raised)],
            "checksums": {
                "model": identity["model"]["checksum"],
                "data": identity["data"]["checksum"],
                "ledger": evaluation.ledger,
            },
        },
    }
    return {key: value for key, value in known.items() if value is not None}


def _auto_attack(model: ModelReport) -> Row | None:
    """The row that is AutoAttack's verdict: its last stage, after all the others."""
    named = [row for row in model.evaluation.attacks if row.name.startswith("AutoAttack")]
    return named[-1] if named else None


def _percent(found: Row) -> str:
    return f"{100 * found.accuracy:.2f}"
