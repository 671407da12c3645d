from __future__ import annotations

import pytest

from advsphere.classifier import fooled
from advsphere.draws import Draws
from advsphere.errors import UserError
from advsphere.evaluation import SUITES, suite
from advsphere.threat import Norm, ThreatModel
from tests.evaluation.cases import THREAT, linear


def test_quick_has_the_columns_of_the_demo() -> None:
    specs = {spec.name: spec.settings for spec in suite("quick", THREAT, scale=15.0)}
    assert list(specs) == ["FGSM", "PGD-20", "PGD-100", "margin PGD-100"]
    assert [specs[name].get("steps") for name in specs] == [None, 20, 100, 100]
    assert [specs[name]["loss"] for name in specs] == ["log_odds", "log_odds", "log_odds", "margin"]
    for name in list(specs)[1:]:
        assert specs[name]["until_fooled"] and specs[name]["keep"] == "best" and specs[name]["start"] == "uniform"


def test_paper_attacks_bare_cosines_and_the_logits_as_they_are() -> None:
    bare, trained, margins = suite("paper", THREAT, scale=15.0)
    assert (bare.name, trained.name, margins.name) == ("PGD-50 (s = 1)", "PGD-50", "margin PGD-50")
    assert bare.settings["loss"] == {"name": "at_scale", "factor": 1 / 15, "loss": "log_odds"}
    assert trained.settings == bare.settings | {"loss": "log_odds"}
    assert margins.settings == bare.settings | {"loss": "margin"}


def test_paper_lists_once_what_is_the_same_for_a_plain_head() -> None:
    assert [spec.name for spec in suite("paper", THREAT)] == ["PGD-50", "margin PGD-50"]


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_attack_runs_and_keeps_to_its_ball(name: str, norm: Norm) -> None:
    threat = ThreatModel(norm=norm, eps=0.2)
    model, x, y = linear(classes=4)
    specs = suite(name, threat, scale=2.0, restarts=2)
    assert len({spec.name for spec in specs}) == len(specs)
    for spec in specs:
        x_adv = spec.run(model, x, y, draws=Draws.of(x))
        assert threat.contains(x_adv, x).all()
        assert int(fooled(model(x_adv), y).sum()) > int(fooled(model(x), y).sum())


def test_restarts_are_for_random_starts() -> None:
    specs = suite("quick", THREAT, restarts=10)
    assert [spec.restarts for spec in specs] == [1, 10, 10, 10]


def test_an_unknown_suite_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean 'quick'"):
        suite("quik", THREAT)
    with pytest.raises(UserError, match="choose one of quick, paper"):
        suite("everything", THREAT)
