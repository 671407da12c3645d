"""Table 7: FN on the attack's path, judged by the untouched network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from advsphere.analysis.claims import effective
from advsphere.analysis.feature_normalization import FewSteps, few_steps, few_steps_figure
from advsphere.analysis.linear_head import split_head
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.losses import cross_entropy, log_odds
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from tests.analysis import linear
from tests.analysis.bodies import Spiral, dark, spiral, with_head

THREAT = ThreatModel(norm="linf", eps=0.2)


def attacked(pull: float, n: int = 40) -> FewSteps:
    images = dark(n)
    parts = split_head(spiral(pull), images)
    return few_steps(parts, images, threat=THREAT, step_size=0.2, factors=(0.5, 1.0, 2.0), start="clean")


def test_where_the_norm_misleads_fn_finds_the_way() -> None:
    """Darker pixels have features so much shorter that the plain loss rises that way, away from the boundary."""
    found = attacked(pull=9.0)
    for k in (1, 2):
        assert found.attack(k, fn=False).accuracy == 1.0 and found.attack(k, fn=True).accuracy == 0.0
    claim = effective(found)
    assert claim.answer == "seen" and len(claim.evidence) == 2


def test_where_the_norm_is_constant_fn_is_the_plain_attack() -> None:
    found = attacked(pull=0.0)
    for k in found.steps:
        for factor in found.factors:
            on, off = (found.attack(k, fn=fn, factor=factor).resisted for fn in (True, False))
            assert on == off and sum(on) == 0
    claim = effective(found)
    assert claim.answer == "not seen" and "cannot tell" in claim.detail


def test_the_opposite_is_named() -> None:
    found = attacked(pull=9.0)
    swapped = replace(found, attacks=tuple(replace(cell, fn=not cell.fn) for cell in found.attacks))
    claim = effective(swapped)
    assert claim.answer == "not seen" and claim.detail.startswith("The opposite")
    first = tuple(replace(c, resisted=(True,) * 40) if c.steps == 1 else c for c in found.attacks)
    partly = effective(replace(found, attacks=first))
    assert partly.answer == "not seen" and "only in some" in partly.detail


def test_without_fn_at_scale_one_it_is_pgd_on_the_network() -> None:
    from advsphere.attacks import pgd

    network = linear.model(4)
    images = linear.images(network)
    found = few_steps(split_head(network, images), images, threat=ThreatModel(norm="linf", eps=0.02),
                      step_size=0.01, steps=(2,), seed=4, batch_size=13)  # fmt: skip
    x, y = images.batch(torch.arange(len(images)))
    x_adv = pgd(network, x, y, threat=ThreatModel(norm="linf", eps=0.02), steps=2, step_size=0.01,
                rng=Rng(4, torch.arange(len(images))))  # fmt: skip
    assert list(found.attack(2, fn=False).resisted) == (network(x_adv).argmax(1) == y).tolist()


def test_table_7_has_the_papers_attacks_and_the_inferred_radius() -> None:
    images = dark(20)
    found = few_steps(split_head(spiral(2.0), images), images)
    assert (found.threat.eps, found.step_size, found.steps) == (0.031, 0.003, (1, 2))
    assert len(found.attacks) == 2 * 2 * len(found.factors) and found.mean_norm > 0
    assert found == few_steps(split_head(spiral(2.0), images), images)


def test_cross_entropy_stands_still_where_it_saturates_and_log_odds_do_not() -> None:
    images, model = dark(10), spiral(0.0)
    with torch.no_grad():
        model[1].weight.mul_(2000)
    parts = split_head(model, images)
    settings = {"threat": THREAT, "step_size": 0.2, "steps": (1,), "factors": (1.0,), "start": "clean"}
    for loss, left in ((cross_entropy, 1.0), (log_odds, 0.0)):
        found = few_steps(parts, images, loss=loss, **settings)
        assert [found.attack(1, fn=fn).accuracy for fn in (True, False)] == [left, left]


def test_lookup_and_mistakes() -> None:
    found = attacked(pull=1.0, n=8)
    assert found.strongest(2, fn=True).accuracy == min(
        found.attack(2, fn=True, factor=f).accuracy for f in found.factors
    )
    with pytest.raises(KeyError):
        found.attack(3, fn=True)
    images = dark(8)
    with pytest.raises(UserError, match="factor 1"):
        few_steps(split_head(spiral(1.0), images), images, factors=(0.5, 2.0))


def test_the_figure_draws_accuracies_and_differences() -> None:
    found = attacked(pull=9.0, n=10)
    left, right = few_steps_figure({"spiral": found}).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert drawn["PGD-1 with FN"] == [100 * found.attack(1, fn=True, factor=f).accuracy for f in found.factors]
    containers: list[Any] = right.containers
    assert [list(c.lines[0].get_ydata()) for c in containers] == [
        [100 * found.gain(k, factor=f).difference for f in found.factors] for k in (1, 2)
    ]


def test_the_spiral_is_what_it_says() -> None:
    model = with_head(Spiral(9.0), torch.eye(2))
    images = ImageSet(torch.tensor([0.2, 0.8]).view(2, 1, 1, 1), torch.tensor([0, 1]), ("dark", "bright"))
    assert model(images.pixels).argmax(1).tolist() == [0, 1]
