from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from advsphere.attacks import Guides, auto_attack, restarts
from advsphere.evaluation import SUITES, AttackSpec, Effort, SuiteContext
from advsphere.evaluation.specs import in_words
from advsphere.evaluation.suites import attacks_of
from advsphere.threat import ThreatModel
from tests.evaluation.cases import pgd_spec

THREAT = ThreatModel(norm="linf", eps=8 / 255)


def words(spec: AttackSpec) -> str:
    return in_words(spec.settings, "linf")


def test_settings_are_said_as_people_say_them() -> None:
    spec = pgd_spec(threat=THREAT, steps=20, keep="best")
    said = "pgd, steps 20, keep best, loss log_odds, start uniform, step size 2/255, until fooled"
    assert words(spec) == said
    assert (
        words(AttackSpec("x", spec.attack, 3, after=("y",), note="as in z"))
        == f"{said}, 3 restarts, only on images that resisted earlier attacks (as in z)"
    )
    assert words(AttackSpec("x", restarts(spec.attack, 5))) == f"{said}, 5 restarts"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "cw", "norm": "l2", "steps": 100, "minimal": True}, "cw, in l2, steps 100, minimal"),
        ({"name": "fab", "norm": "linf", "eps": 0.1, "starts": 1}, "fab, starts 1"),
        (
            {"loss": {"name": "at_scale", "factor": 0.1, "loss": "margin"}, "name": "a"},
            "a, loss (at_scale, factor 0.1, loss margin)",
        ),
        ({"name": "mine", "eagerness": 0.5, "odd": True, "even": False, "none": None}, "mine, eagerness 0.5, odd"),
        ({"name": "mine", "step_size": 1 / 255}, "mine, step size 1/255"),
    ],
)
def test_particular_settings(settings: dict[str, Any], said: str) -> None:
    assert in_words(settings, "linf") == said


@pytest.mark.parametrize("name", SUITES)
def test_every_attack_of_every_suite_has_words_for_all_that_matters(name: str) -> None:
    guides = Guides(torch.rand(5, 1, 2, 2), torch.arange(5))
    case = SuiteContext(threat=THREAT, scale=15.0, head=nn.Linear(3, 5), guides=guides, effort=Effort(restarts=2))
    for spec in attacks_of(name, case):
        said = words(spec)
        assert 10 < len(said) < 220 and not {"{", "checksum", "None"} & set(said.replace(",", " ").split())
        settings = spec.settings
        for key in ("steps", "queries", "targets", "tries"):
            assert key not in settings or f"{key} {settings[key]}" in said
        assert ("2 restarts" in said) == (spec.restarts == 2)


def test_the_parts_of_an_attack_made_of_others() -> None:
    said = words(AttackSpec("rand", auto_attack(THREAT, "rand", passes=7)))
    assert said.count("passes 7") == 2 and ", then " in said
