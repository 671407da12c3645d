from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest

from advsphere.attacks import Guides, pgd
from advsphere.classifier import fooled, split
from advsphere.errors import UserError
from advsphere.evaluation import SUITES, AttackSpec, Effort, SuiteContext, evaluate, suite
from advsphere.evaluation.cascades import arranged
from advsphere.evaluation.suites import attacks_of, find_suite, rank_of
from advsphere.rng import Rng
from advsphere.threat import Norm, ThreatModel
from tests.evaluation.cases import THREAT, Known, linear


def test_quick_has_the_columns_of_the_demo() -> None:
    specs = {spec.name: spec.settings for spec in attacks_of("quick", SuiteContext(threat=THREAT, scale=15.0))}
    assert list(specs) == ["FGSM", "PGD-20", "PGD-100", "margin PGD-100"]
    assert [specs[name].get("steps") for name in specs] == [None, 20, 100, 100]
    assert [specs[name]["loss"] for name in specs] == ["log_odds", "log_odds", "log_odds", "margin"]
    for name in list(specs)[1:]:
        assert specs[name]["until_fooled"] and specs[name]["keep"] == "best" and specs[name]["start"] == "uniform"


def test_paper_attacks_bare_cosines_and_the_logits_as_they_are() -> None:
    bare, trained, margins = attacks_of("paper", SuiteContext(threat=THREAT, scale=15.0))
    assert (bare.name, trained.name, margins.name) == ("PGD-50 (s = 1)", "PGD-50", "margin PGD-50")
    assert bare.settings["loss"] == {"name": "at_scale", "factor": 1 / 15, "loss": "log_odds"}
    assert trained.settings == bare.settings | {"loss": "log_odds"}
    assert margins.settings == bare.settings | {"loss": "margin"}


def test_paper_lists_once_what_is_the_same_for_a_plain_head() -> None:
    assert [spec.name for spec in attacks_of("paper", SuiteContext(threat=THREAT))] == ["PGD-50", "margin PGD-50"]


def case_for(known: Known, norm: Norm = "linf", **effort: int) -> SuiteContext:
    head = split(known.model).head
    guides = Guides(known.images, known.labels)
    threat = ThreatModel(norm=norm, eps=0.2)
    return SuiteContext(threat=threat, scale=2.0, head=head, guides=guides, effort=Effort(**effort))


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_attack_runs_and_keeps_to_its_ball(name: str, norm: Norm) -> None:
    known = linear(20, classes=4, wrong=2)
    model, x, y = known
    case = case_for(known, norm, restarts=2, steps=10, guides=3)
    if (name, norm) in [("table2", "l1"), ("table6", "l1"), ("table6", "l2")]:
        with pytest.raises(UserError, match=f"does not support {norm}"):
            evaluate(model, x, y, threat=case.threat, suite=name)
        return
    specs = attacks_of(name, case)
    assert len({spec.name for spec in specs}) == len(specs)
    for spec in specs:
        assert json.dumps(spec.settings)
        x_adv = spec.run(model, x, y, rng=Rng.of(x))
        assert spec.minimal or case.threat.contains(x_adv, x).all()
        assert int(fooled(model(x_adv), y).sum()) > int(fooled(model(x), y).sum()), spec.name


def test_table2_has_the_columns_of_the_paper() -> None:
    known = linear(classes=4)
    case = case_for(known)
    specs = {spec.name: spec for spec in attacks_of("table2", case)}
    columns = {"FGSM", "MIM-20", "PGD-20", "DeepFool", "FAB", "PGD-500", "C&W", "FeaAtt."}
    assert {name.removesuffix(" (s = 1)") for name in specs} == columns
    for name in ("FGSM", "MIM-20", "PGD-20", "PGD-500"):
        assert specs[f"{name} (s = 1)"].settings["loss"]["factor"] == 0.5
    assert specs["PGD-500"].settings["step_size"] == pytest.approx(0.2 * 0.003 / 0.031)
    assert {name for name, spec in specs.items() if spec.minimal} == {"DeepFool", "FAB", "C&W"}
    feature = specs["FeaAtt."].settings
    assert (feature["tries"], feature["steps"], feature["step_size"]) == (100, 100, 1 / 255)
    uncertain = {name for name, spec in specs.items() if spec.note}
    assert columns - {name.removesuffix(" (s = 1)") for name in uncertain} == {"PGD-20", "PGD-500"}
    assert len(attacks_of("table2", replace(case, scale=1.0))) == len(columns)


def test_table4_takes_steps_of_a_255th_in_the_ball_around_the_clean_image() -> None:
    threat = ThreatModel(norm="linf", eps=4 / 255)
    specs = {spec.name: spec.settings for spec in attacks_of("table4", SuiteContext(threat=threat, scale=10.0))}
    assert list(specs) == ["PGD-10 (s = 1)", "PGD-10", "PGD-50 (s = 1)", "PGD-50"]
    for name, settings in specs.items():
        assert settings["steps"] == int(name[4:6]) and settings["start"] == "uniform"
        assert settings["step_size"] == 1 / 255 and settings["threat"]["eps"] == 4 / 255
        bare = {"name": "at_scale", "factor": 0.1, "loss": "log_odds"}
        assert settings["loss"] == (bare if "s = 1" in name else "log_odds")


def test_autoattack_is_the_published_one_and_each_stage_sees_what_is_left() -> None:
    specs = attacks_of("autoattack", SuiteContext(threat=THREAT))
    names = ["AutoAttack: APGD-CE", "AutoAttack: + APGD-T", "AutoAttack: + FAB-T", "AutoAttack: + Square"]
    assert [spec.name for spec in specs] == names
    assert [list(spec.after) for spec in specs] == [names[:i] for i in range(4)]
    first, targeted, boundary, black_box = (spec.settings for spec in specs)
    assert first["steps"] == targeted["steps"] == boundary["steps"] == 100
    assert targeted["targets"] == boundary["targets"] == 9 and black_box["queries"] == 5000
    assert all(
        "short" in spec.name for spec in attacks_of("autoattack", SuiteContext(threat=THREAT, effort=Effort(steps=10)))
    )


def test_a_cascade_begins_with_a_short_look_at_everything() -> None:
    specs = arranged(attacks_of("quick", SuiteContext(threat=THREAT)), THREAT, anytime=True)
    names = [spec.name for spec in specs]
    assert names == ["first look: margin PGD-10", "FGSM", "PGD-20", "PGD-100", "margin PGD-100"]
    assert [list(spec.after) for spec in specs] == [names[:i] for i in range(5)]
    assert specs[0].settings["steps"] == 10 and specs[0].settings["loss"] == "margin"


def test_what_looks_at_features_needs_a_head() -> None:
    for name in ("table2", "adaptive"):
        with pytest.raises(UserError, match="--head"):
            attacks_of(name, SuiteContext(threat=THREAT))


def test_steps_replace_the_suite_s_own_and_what_becomes_equal_is_listed_once() -> None:
    assert [spec.name for spec in attacks_of("quick", SuiteContext(threat=THREAT, effort=Effort(steps=7)))] == [
        "FGSM",
        "PGD-7",
        "margin PGD-7",
    ]


@pytest.mark.parametrize("effort", [{"restarts": 0}, {"steps": 0}, {"guides": -1}])
def test_an_effort_of_nothing_is_refused(effort: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(effort))):
        Effort(**effort)


def test_restarts_are_for_random_starts() -> None:
    specs = attacks_of("quick", SuiteContext(threat=THREAT, effort=Effort(restarts=10)))
    assert [spec.restarts for spec in specs] == [1, 10, 10, 10]


def test_an_unknown_suite_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean 'quick'"):
        attacks_of("quik", SuiteContext(threat=THREAT))
    with pytest.raises(UserError, match="choose one of quick, paper, table2"):
        attacks_of("everything", SuiteContext(threat=THREAT))


def user_suite(context: SuiteContext) -> list[AttackSpec]:
    return [AttackSpec("mine", partial(pgd, threat=context.threat, steps=context.steps(3), step_size=0.01))]


def no_suite(context: SuiteContext) -> list[str]:
    return ["PGD"]


def test_a_user_defined_suite_is_found_by_its_name() -> None:
    name = f"{__name__}:user_suite"
    assert find_suite(name)[0] == {"name": name, "rank": 0}
    assert [spec.name for spec in attacks_of(name, SuiteContext(threat=THREAT))] == ["mine"]
    try:
        suite(rank=55)(user_suite)
        record = find_suite(name)[0]
        assert record == {"name": name, "rank": 55} and name in SUITES and "user_suite" not in SUITES
        known = [rank_of({"name": each}) for each in ("quick", "paper", "autoattack", "survival")]
        assert known == sorted(known) and known[1] < rank_of(record) < known[2] and rank_of({"name": "own"}) == 0
        assert rank_of({"name": "not.installed:here", "rank": 7}) == 7
    finally:
        SUITES.pop(name)
    result = evaluate(*linear(), threat=THREAT, suite=name)
    assert result.identity["suite"]["name"] == name and result.attacks[0].name == "mine"
    for wrong, says in (
        (f"{__name__}:nothing", "nothing"),
        (f"{__name__}:no_suite", "must return a list of AttackSpec"),
        ("tests.x:y", "tests.x"),
    ):
        with pytest.raises(UserError, match=says):
            evaluate(*linear(), threat=THREAT, suite=wrong)
