from __future__ import annotations

from functools import partial

import pytest
from torch import nn

from advsphere.attacks import Cosines, Guides, apgd, fgsm, pgd, restarts, square, surrogate
from advsphere.attacks.ensemble import expected
from advsphere.evaluation import SUITES, AttackSpec, SuiteContext
from advsphere.evaluation.specs import alike, bare, core, kind_of, loss_of
from advsphere.evaluation.suites import attacks_of
from advsphere.losses import at_scale, cross_entropy, dlr, log_odds, margin
from advsphere.threat import Norm, ThreatModel
from tests.evaluation.cases import THREAT, do_nothing, linear

PGD = partial(pgd, threat=THREAT, steps=20, step_size=0.025)


def case(norm: Norm = "linf") -> SuiteContext:
    known = linear()
    head = known.model[1]  # type: ignore[index]
    return SuiteContext(
        threat=ThreatModel(norm=norm, eps=0.1), scale=15.0, head=head, guides=Guides(known.images, known.labels)
    )


@pytest.mark.parametrize("name", SUITES)
def test_every_attack_of_every_suite_has_a_kind_and_a_loss(name: str) -> None:
    for spec in attacks_of(name, case()):
        kind = kind_of(spec.settings)
        assert kind is not None, spec.name
        assert (loss_of(spec.settings) is not None) >= (kind == "iterative"), spec.name
        assert (kind == "minimal-norm") >= spec.minimal


def test_kinds() -> None:
    kinds = {spec.name: kind_of(spec.settings) for name in ("table2", "table6") for spec in attacks_of(name, case())}
    assert kinds["FGSM"] == "one-step" and kinds["PGD-20 (s = 1)"] == kinds["MIM-20"] == kinds["FeaAtt."] == "iterative"
    assert kinds["DeepFool"] == kinds["C&W"] == kinds["AutoAttack: + FAB-T"] == "minimal-norm"
    assert kinds["RayS"] == kinds["AutoAttack: + Square"] == "black-box"
    assert kind_of(AttackSpec("one", partial(PGD, steps=1)).settings) == "one-step"
    assert kind_of(AttackSpec("own", do_nothing).settings) is None


def test_what_is_wrapped_around_an_attack_does_not_hide_it() -> None:
    ascent = partial(apgd, threat=THREAT, steps=5, loss=log_odds)
    plain = AttackSpec("a", ascent).settings
    for spec in (AttackSpec("b", restarts(ascent, 5), note="twice", after=("a",)), AttackSpec("c", ascent, 5)):
        assert core(spec.settings) == core(plain) and kind_of(spec.settings) == "iterative"
    mean = AttackSpec("d", expected(ascent, dlr, 3)).settings
    assert kind_of(mean) == "iterative" and loss_of(mean) == "DLR" and loss_of(plain) == "cross-entropy"
    assert kind_of(AttackSpec("e", restarts(partial(square, threat=THREAT), 2)).settings) == "black-box"
    # In l1 the stages of AutoAttack are restarts of attacks.
    assert all(kind_of(spec.settings) for spec in attacks_of("autoattack", case("l1")))


def test_cross_entropy_and_log_odds_are_the_same_attack_and_the_margin_is_another() -> None:
    settings = {
        loss: core(AttackSpec("a", partial(PGD, loss=loss)).settings) for loss in (log_odds, cross_entropy, margin)
    }
    assert alike(settings[log_odds], settings[cross_entropy]) and not alike(settings[log_odds], settings[margin])
    assert not alike(settings[log_odds], core(AttackSpec("a", partial(PGD, steps=21)).settings))


def test_losses_have_one_name_whatever_their_scale() -> None:
    def named(loss: object) -> str | None:
        return loss_of(AttackSpec("a", partial(PGD, loss=loss)).settings)

    assert named(log_odds) == named(at_scale(log_odds, 0.1)) == "cross-entropy"
    assert named(margin) == named(at_scale(margin, 0.1)) == "margin" and named(dlr) == "DLR"


def test_an_attack_at_scale_1_knows_its_twin() -> None:
    twin = core(AttackSpec("PGD", PGD).settings)
    assert bare(AttackSpec("PGD (s = 1)", partial(PGD, loss=at_scale(log_odds, 1 / 15))).settings, 15.0) == twin
    head = nn.Linear(9, 2)
    for view, found in [
        (Cosines(head, 1.0), twin),
        (Cosines(head, 64.0), None),
        (Cosines(head, 1.0, constant_norm=True), None),
    ]:
        assert bare(AttackSpec("a", partial(surrogate, ascent=PGD, view=view)).settings, 15.0) == found
    for other in (PGD, partial(PGD, loss=at_scale(log_odds, 1 / 10)), partial(fgsm, threat=THREAT)):
        assert bare(AttackSpec("a", other).settings, 15.0) is None
