"""AutoAttack: that it is the published ensemble, with any number of classes, and the mean gradient of `expected`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import apgd, apgd_targeted, auto_attack, expected, fab_targeted, pgd, square
from advsphere.attacks.ensemble import dlr_or_margin
from advsphere.classifier import fooled, input_gradient
from advsphere.errors import UserError
from advsphere.evaluation.specs import AttackSpec
from advsphere.losses import dlr, log_odds, margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from tests.laws import NORMS, RADII, conv_net, images, labels

LINF = ThreatModel(norm="linf", eps=0.02)


def members(threat: ThreatModel, version: str) -> list[tuple[Any, ...]]:
    """(name, restarts, loss, targets or starts) of each member, as the ledger would record it."""

    def row(member: dict[str, Any]) -> tuple[Any, ...]:
        if member["name"] == "worst_case":  # that is, of restarts
            inner = member["attacks"][0]["attack"]
            return (inner["name"], len(member["attacks"]), inner["loss"], None)
        if member["name"] == "expected":
            return (member["attack"]["name"], member["passes"], member["loss"], "mean")
        return (member["name"], 1, member.get("loss"), member.get("targets") or member.get("starts"))

    attacks = AttackSpec("AA", auto_attack(threat, version)).settings["attacks"]
    for member in attacks:
        inner = member.get("attack", member.get("attacks", [member])[0])
        assert inner.get("steps", 100) == 100 and inner.get("queries", 5000) == 5000
        assert inner.get("horizon", 10_000) == 10_000
    return [row(member) for member in attacks]


def test_the_published_ensembles() -> None:
    standard = [
        ("apgd", 1, "log_odds", None),
        ("apgd_targeted", 1, None, 9),
        ("fab_targeted", 1, None, 9),
        ("square", 1, "margin", None),
    ]
    assert members(LINF, "standard") == standard
    assert members(ThreatModel(norm="l2", eps=0.5), "standard") == standard
    sparse = members(ThreatModel(norm="l1", eps=12.0), "standard")
    assert [row[:2] for row in sparse] == [("apgd", 5), ("apgd_targeted", 1), ("fab_targeted", 1), ("square", 1)]
    assert sparse[1][3] == 5
    assert members(LINF, "plus") == [
        ("apgd", 5, "log_odds", None),
        ("apgd", 5, "dlr_or_margin", None),
        ("fab", 1, None, 5),
        ("square", 1, "margin", None),
        ("apgd_targeted", 1, None, 9),
        ("fab_targeted", 1, None, 9),
    ]
    assert members(LINF, "rand") == [("apgd", 20, "log_odds", "mean"), ("apgd", 20, "dlr_or_margin", "mean")]


def test_another_version_is_refused() -> None:
    with pytest.raises(UserError, match="version is 'fast'; give one of 'standard', 'plus', 'rand'"):
        auto_attack(LINF, "fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 40])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_any_number_of_classes(classes: int, version: str) -> None:
    model, x = conv_net(classes=classes).eval(), images(5)
    with torch.no_grad():
        y = model(x).argmax(1)
    x_adv = auto_attack(LINF, version, steps=4, queries=10, passes=2)(model, x, y, rng=Rng.of(x))
    assert LINF.contains(x_adv, x).all() and fooled(model(x_adv), y).any()


@pytest.mark.parametrize("norm", NORMS)
def test_fools_whatever_one_of_its_members_fools(norm: str) -> None:
    model, x, threat = conv_net().eval(), images(16), ThreatModel(norm=norm, eps=RADII[norm])
    with torch.no_grad():
        y = model(x).argmax(1)
    ball = {"norm": norm, "bounds": threat.bounds, "eps": threat.eps}
    alone = [
        partial(apgd, threat=threat, steps=8, multi_eps=norm == "l1"),
        partial(apgd_targeted, threat=threat, steps=8, multi_eps=norm == "l1", targets=9),
        partial(fab_targeted, **ball, steps=8, targets=9),
        partial(square, threat=threat, queries=40, horizon=80),
    ]
    rng = Rng.of(x)
    fallen = torch.stack([fooled(model(attack(model, x, y, rng=rng)), y) for attack in alone]).any(0)
    x_adv = auto_attack(threat, steps=8, queries=40)(model, x, y, rng=rng)
    assert threat.contains(x_adv, x).all() and 2 < fallen.sum() < 16
    assert (fallen <= fooled(model(x_adv), y)).all()


def test_two_classes_take_the_margin_for_the_ratio() -> None:
    logits = torch.tensor([[1.0, 3.0], [2.0, -1.0]])
    assert torch.equal(dlr_or_margin(logits, labels(2)), margin(logits, labels(2)))
    logits = torch.tensor([[1.0, 3.0, 0.0], [2.0, -1.0, 1.0]])
    assert torch.equal(dlr_or_margin(logits, labels(2)), dlr(logits, labels(2)))


class Turns(nn.Module):
    """A 'random' model: one of several networks, in turn."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(conv_net(seed=s).eval().double() for s in range(n))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.nets[(self.calls - 1) % len(self.nets)](x)


@pytest.mark.parametrize("loss", [log_odds, dlr])
def test_expected_is_the_mean_loss_and_the_mean_gradient(loss: Any) -> None:
    x, y, model = images(4).double(), labels(4), Turns(3)
    each = [input_gradient(net, x, y, loss) for net in model.nets]
    seen = []

    def attack(model: Any, x: Tensor, y: Tensor, /, *, loss: Any, rng: Any = None) -> Tensor:
        seen.append(input_gradient(model, x, y, loss))
        return x

    expected(attack, loss, 3)(model, x, y)
    logits, values, grad = seen[0]
    assert torch.equal(logits, each[0][0]) and model.calls == 3
    assert torch.allclose(values, torch.stack([one[1] for one in each]).mean(0))
    assert torch.allclose(grad, torch.stack([one[2] for one in each]).mean(0))


def test_expected_of_a_model_that_is_not_random_changes_nothing() -> None:
    x, y, model = images(6).double(), labels(6), conv_net().eval().double()
    attack = partial(pgd, threat=LINF, steps=3, step_size=0.005, until_fooled=True)
    assert torch.allclose(expected(attack, log_odds, 4)(model, x, y), attack(model, x, y), atol=1e-9)
    with pytest.raises(UserError, match="passes is 1 or more"):
        expected(attack, log_odds, 0)
