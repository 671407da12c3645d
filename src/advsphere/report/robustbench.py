"""A report's models as rows in the format of RobustBench's model_info."""

from __future__ import annotations

from typing import Any

from advsphere.evaluation.results import Evaluation
from advsphere.evaluation.rows import Row
from advsphere.report.collect import ModelReport
from advsphere.report.rendering import limits
from advsphere.threat import radius

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def rows(model: ModelReport) -> list[dict[str, Any]]:
    """RobustBench's fields for a model, one row for each seed; fields that were not measured are left out.

    Accuracies are text in percent with two decimals. autoattack_acc exists only if AutoAttack ran with its standard
    settings. The entry "advsphere" holds values for which RobustBench has no field.
    """
    return [_row(name, evaluation, model) for name, evaluation in model.checkpoints.items()]


def _row(name: str, evaluation: Evaluation, model: ModelReport) -> dict[str, Any]:
    identity = evaluation.identity
    trained: dict[str, Any] = dict(model.training.get("model", {}))
    # AutoAttack's verdict is its last stage.
    auto = next((row for row in reversed(evaluation.attacks) if row.name.startswith("AutoAttack")), None)
    if auto is not None and auto.unreached:  # a budget ended before its verdict
        auto = None
    known = {
        "name": name,
        "additional_data": trained.get("pretrained"),
        "number_forward_passes": 1,
        "dataset": model.data,
        "threat_model": _NORMS[identity["threat"]["norm"]],
        "architecture": trained.get("name"),
        "eps": radius(identity["threat"]["eps"]),
        "clean_acc": _percent(evaluation.clean),
        "reported": None if auto is None else _percent(auto),
        "autoattack_acc": None if auto is None else _percent(auto),
        "unreliable": bool(evaluation.flags or evaluation.raised),
        "footnote": (
            f"Measured on {evaluation.clean.n} test images, so not comparable with a leaderboard's whole test set. "
            f"Accuracy in the worst case over {sum(row.ran for row in evaluation.attacks)} attacks: at most "
            f"{_percent(evaluation.worst)} % (95 % interval {limits(evaluation.worst.interval, ' to ')})."
        ),
        "advsphere": {
            "n": evaluation.clean.n,
            "worst_case_acc": _percent(evaluation.worst),
            "attacks": {attack.name: _percent(attack) for attack in evaluation.attacks if attack.ran},
            "intervals": {
                attack.name: [round(100 * v, 2) for v in attack.interval] for attack in evaluation.rows if attack.ran
            },
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


def _percent(found: Row) -> str:
    return f"{100 * found.accuracy:.2f}"
