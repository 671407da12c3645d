"""Accuracy against eps: on a linear model every point is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advsphere.analysis import Curve, accuracy_against_eps, curve_figure
from advsphere.analysis.crafting import sample_positions
from advsphere.errors import UserError
from advsphere.evaluation import AttackSpec, SuiteContext, evaluate
from advsphere.evaluation.suites import attacks_of
from advsphere.stats import wilson
from advsphere.threat import ThreatModel
from tests.analysis import linear

THREAT = ThreatModel(norm="linf", eps=0.012)


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return linear.model()


def test_each_example_breaks_at_the_first_radius_beyond_its_distance(network: nn.Sequential) -> None:
    images = linear.images(network)
    x, y = images.batch(torch.arange(len(images)))
    distance = linear.smallest_linf(network, x, y)
    curve = accuracy_against_eps(network, images, threat=THREAT)
    assert curve.at == tuple(THREAT.eps * i / 4 for i in range(9))
    radii = torch.tensor(curve.at)
    assert (distance[:, None] - radii).abs().min() > 1e-5, "no example may lie on a radius"
    expected = (radii[None] < distance[:, None]).sum(1)
    assert curve.broken == tuple(expected.tolist())
    assert len({*curve.broken}) == len(curve.at) + 1, "the case should have examples for every radius, and survivors"
    assert curve.robust[0] == len(images) - 3


class Trap(nn.Module):
    """Misclassifies only what is just about 0.01 away from grey, and has no gradient that would lead there."""

    def forward(self, x: Tensor) -> Tensor:
        away = (x - 0.5).abs().flatten(1).amax(1)
        lead = 1.0 - 2.0 * ((away > 0.009) & (away < 0.011)) + 0 * away
        return torch.stack([lead, -lead], 1)


def test_what_fooled_at_a_smaller_radius_counts_at_larger_ones() -> None:
    x, y = torch.full((20, 1, 2, 2), 0.5), torch.zeros(20, dtype=torch.int64)
    alone = accuracy_against_eps(Trap(), x, y, threat=THREAT, eps=[0.3])
    assert alone.accuracy == (1.0, 1.0), "the attack at the large radius finds nothing by itself"
    curve = accuracy_against_eps(Trap(), x, y, threat=THREAT, eps=[0.0101, 0.3])
    assert 1.0 > curve.accuracy[1] == curve.accuracy[2]


def test_known_counts_and_intervals() -> None:
    curve = Curve(
        norm="linf", at=(0.0, 0.1, 0.2), broken=(0, 1, 1, 2, 3, 3, 3, 3), of=8, steps=20, seed=0, model="m", data="d"
    )
    assert curve.robust == (7, 5, 4)
    assert curve.accuracy == (7 / 8, 5 / 8, 4 / 8)
    assert curve.intervals == tuple(wilson(k, 8) for k in (7, 5, 4))


def test_it_agrees_with_an_evaluation_by_the_same_attack(network: nn.Sequential) -> None:
    images = linear.images(network)
    curve = accuracy_against_eps(network, images, threat=THREAT, eps=[THREAT.eps], seed=5)
    (pgd20,) = (spec for spec in attacks_of("quick", SuiteContext(threat=THREAT)) if spec.name == "PGD-20")
    row = evaluate(network, images, threat=THREAT, suite=[AttackSpec("PGD-20", pgd20.attack)], seed=5).row("PGD-20")
    assert [b > 1 for b in curve.broken] == [c == "1" for c in row.outcomes]
    identity = evaluate(network, images, threat=THREAT, suite=[]).identity
    assert (curve.model, curve.data) == (identity["model"]["checksum"], identity["data"]["checksum"])


def test_batches_make_no_difference_and_the_model_is_given_back_as_it_was(network: nn.Sequential) -> None:
    images = linear.images(network)
    network.train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    told: list[tuple[int, int]] = []
    small = accuracy_against_eps(network, images, threat=THREAT, batch_size=7, on_progress=lambda *p: told.append(p))
    assert small == accuracy_against_eps(network, images, threat=THREAT)
    assert network.training and all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert told[-1] == (72, 72) and [done for done, _ in told] == sorted({done for done, _ in told})


def test_a_sample_has_the_outcomes_that_its_images_have_among_all(network: nn.Sequential) -> None:
    images = linear.images(network)
    everything = accuracy_against_eps(network, images, threat=THREAT)
    some = accuracy_against_eps(network, images, threat=THREAT, most=9, batch_size=4)
    assert (some.n, some.of, everything.n) == (9, len(images), len(images)) and some.data == everything.data
    chosen = sample_positions(len(images), 9, seed=0).tolist()
    assert some.broken == tuple(everything.broken[i] for i in chosen)
    assert chosen == sorted({*chosen}) != list(range(9)), "in order, and not the first ones"


def test_radii_are_sorted_and_the_clean_images_are_always_there(network: nn.Sequential) -> None:
    images = linear.images(network)
    assert accuracy_against_eps(network, images, threat=THREAT, eps=[0.02, 0.01, 0.02]).at == (0.0, 0.01, 0.02)
    for radii in ([], [0.0], [-0.1, 0.1]):
        with pytest.raises(UserError, match="above 0"):
            accuracy_against_eps(network, images, threat=THREAT, eps=radii)


def test_a_saved_curve_comes_back_and_a_changed_one_is_refused(network: nn.Sequential, tmp_path: Path) -> None:
    curve = accuracy_against_eps(network, linear.images(network), threat=THREAT)
    path = tmp_path / "curve.json"
    curve.save(path)
    assert Curve.load(path) == curve
    content = json.loads(path.read_text())
    content["broken"][0] = 8
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="changed after"):
        Curve.load(path)
    path.write_text("{}")
    with pytest.raises(UserError):
        Curve.load(path)


def test_the_figure_draws_the_numbers(network: nn.Sequential) -> None:
    images = linear.images(network)
    curve = accuracy_against_eps(network, images, threat=THREAT)
    evaluation = evaluate(network, images, threat=THREAT, suite="quick")
    figure = curve_figure({"mine $": curve, "other": curve}, {"mine $": evaluation})
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if line.get_label() in ("mine $", "other")]
    assert len(drawn) == 2 and drawn[0].get_color() != drawn[1].get_color()
    assert drawn[0].get_marker() != drawn[1].get_marker()
    for line in drawn:
        assert tuple(line.get_xdata()) == curve.at
        assert list(line.get_ydata()) == pytest.approx([100 * a for a in curve.accuracy])
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "none" and len(line.get_xdata()) == 1]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in hollow] == [
        (THREAT.eps, pytest.approx(100 * evaluation.worst.accuracy))
    ]


def test_there_are_as_many_lines_as_models() -> None:
    curve = Curve(norm="l2", at=(0.0, 1.0), broken=(0, 1, 2), of=3, steps=20, seed=0, model="m", data="d")
    figure = curve_figure({f"model {i}": curve for i in range(8)})
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == 8
