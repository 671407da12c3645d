from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import Guides, fgsm, pgd, restarts, worst_case
from advsphere.errors import UserError
from advsphere.evaluation import AttackSpec
from advsphere.identity import describe, unknowns
from advsphere.losses import at_scale, log_odds, margin
from advsphere.threat import ThreatModel
from tests.evaluation.cases import THREAT, linear

BALL = {"norm": "linf", "eps": 0.1, "bounds": [0.0, 1.0]}


def test_a_record_holds_every_setting_also_the_defaults() -> None:
    spec = AttackSpec("PGD", partial(pgd, threat=THREAT, steps=7, step_size=0.01), restarts=3)
    assert spec.settings == {
        "name": "pgd",
        "threat": BALL,
        "steps": 7,
        "step_size": 0.01,
        "loss": "log_odds",
        "start": "uniform",
        "decay": None,
        "targeted": False,
        "until_fooled": False,
        "keep": "last",
        "restarts": 3,
    }
    assert json.loads(json.dumps(spec.settings)) == spec.settings


def test_what_was_made_by_a_function_is_told_by_what_it_was_made_from() -> None:
    assert describe(at_scale(margin, 0.1)) == {"name": "at_scale", "factor": 0.1, "loss": "margin"}
    assert describe(at_scale(margin, 0.1)) != describe(at_scale(margin, 0.2)) != describe(at_scale(log_odds, 0.2))
    whole = describe(worst_case([partial(fgsm, threat=THREAT)]))
    assert whole == {
        "name": "worst_case",
        "attacks": [{"name": "fgsm", "threat": BALL, "loss": "log_odds", "targeted": False}],
    }
    assert describe(restarts(partial(fgsm, threat=THREAT), 2))["attacks"][1]["r"] == 1


@pytest.mark.parametrize("setting", [lambda z, y: z, object()])
def test_what_can_not_be_recorded_is_said_to_be_unknown(setting: object) -> None:
    assert len([*unknowns(describe(partial(pgd, loss=setting)))]) == 1
    assert not [*unknowns(describe(partial(pgd, threat=THREAT)))]


def test_tensors_and_modules_are_told_by_their_values() -> None:
    zeros, layer = torch.zeros(2, 3), nn.Linear(2, 2)
    assert describe(zeros)["shape"] == [2, 3] and describe(zeros) == describe(torch.zeros(2, 3))
    assert describe(zeros) != describe(torch.ones(2, 3)) and json.dumps(describe(Guides(zeros, torch.arange(2))))
    before = describe(layer)
    assert before["module"] == "Linear"
    with torch.no_grad():
        layer.bias.add_(1)
    assert describe(layer) != before


def test_an_attack_that_can_not_be_called_is_refused_where_it_is_named() -> None:
    with pytest.raises(UserError, match=r"mine can't be called .*: missing a .* 'threat'; bind its other"):
        AttackSpec("mine", pgd)
    with pytest.raises(UserError, match="unexpected keyword argument 'rng'"):
        AttackSpec("mine", lambda model, x, y: x)


def test_restarts_count_runs() -> None:
    with pytest.raises(UserError, match="at least 1"):
        AttackSpec("PGD", partial(fgsm, threat=THREAT), restarts=0)
    known, seen = linear(), []

    def note(model: nn.Module, x: Tensor, y: Tensor, /, *, rng: object = None) -> Tensor:
        seen.append((rng.restart, len(x)))  # type: ignore[attr-defined]
        return x

    AttackSpec("note", note, restarts=3).run(known.model, known.images[1:5], known.model(known.images[1:5]).argmax(1))
    assert seen == [(0, 4), (1, 4), (2, 4)]


def test_a_threat_is_recorded_exactly() -> None:
    eps = 8 / 255
    record = json.loads(json.dumps(describe(ThreatModel(norm="l2", eps=eps))))
    assert record["eps"] == eps
