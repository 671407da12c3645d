"""The geometry of the threat models against definitions, certificates of optimality and distributions."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from advsphere.errors import UserError
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from tests.laws import NORMS, global_randomness_untouched

norms = pytest.mark.parametrize("norm", NORMS)
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}
CENTRE = torch.full((1, 2, 3, 3), 0.5)


def shifted(length: float, norm: str) -> Tensor:
    """The centre of the box moved by a vector of this length that points the same way in each norm."""
    ramp = torch.linspace(-1, 1, 18).view(1, 2, 3, 3)
    return CENTRE + ramp * length / torch.linalg.vector_norm(ramp.flatten(), ORDER[norm])


@norms
def test_a_point_inside_or_on_the_ball_stays(norm: str) -> None:
    threat = ThreatModel(norm=norm, eps=0.3)
    for length in (0.0, 0.1, 0.3):
        x_adv = shifted(length, norm)
        assert torch.allclose(threat.project(x_adv, CENTRE), x_adv, atol=1e-7)


@norms
def test_a_point_outside_comes_to_the_sphere(norm: str) -> None:
    threat = ThreatModel(norm=norm, eps=0.3)
    x_adv = shifted(0.9, norm)
    result = threat.project(x_adv, CENTRE)
    assert threat.distance(result, CENTRE).item() == pytest.approx(0.3, rel=1e-5)
    if norm == "l2":  # along the ray
        assert torch.allclose(result - CENTRE, (x_adv - CENTRE) / 3, atol=1e-6)
    if norm == "linf":  # pixel by pixel
        assert torch.allclose(result, x_adv.clamp(0.2, 0.8))
    if norm == "l1":  # shrunk by the same amount everywhere, small ones to nothing
        fallen = ((x_adv - CENTRE).abs() - (result - CENTRE).abs()).flatten()
        kept = (result != CENTRE).flatten()
        assert 0 < kept.sum() < 18 and torch.allclose(
            fallen[kept], fallen[kept].max().expand(int(kept.sum())), atol=1e-6
        )
        assert (fallen[~kept] <= fallen[kept].min() + 1e-6).all()


@norms
def test_the_box_is_respected_beside_the_ball(norm: str) -> None:
    threat = ThreatModel(norm=norm, eps=5.0, bounds=(0.25, 0.75))
    result = threat.project(shifted(30.0, norm), CENTRE)
    assert result.min() == 0.25 and result.max() == 0.75 and threat.contains(result, CENTRE).all()


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """x in the box (some pixels at its bounds), any x_adv, and a radius."""
    size, seed = draw(st.integers(1, 40)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, size, 1, 1, generator=generator)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.2, x.round(), x)
    amplitude = draw(st.sampled_from([1e-3, 0.1, 1.0, 30.0]))
    x_adv = x + amplitude * torch.randn(x.shape, generator=generator)
    if draw(st.booleans()):  # ties
        x_adv = (x_adv * 4).round() / 4
    return x_adv, x, draw(st.one_of(st.just(0.0), st.floats(1e-3, 20.0)))


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(case=cases())
def test_projections_are_inside_and_idempotent(
    norm: str, dtype: torch.dtype, case: tuple[Tensor, Tensor, float]
) -> None:
    x_adv, x, eps = case[0].to(dtype), case[1].to(dtype), case[2]
    threat = ThreatModel(norm=norm, eps=eps)
    once = threat.project(x_adv, x)
    assert once.dtype == dtype and threat.contains(once, x).all()
    assert torch.allclose(threat.project(once, x), once, atol=2e-6 if dtype == torch.float32 else 1e-12)
    assert torch.allclose(threat.project(x, x), x, atol=1e-7)


@given(case=cases())
def test_linf_projects_to_the_nearest_point(case: tuple[Tensor, Tensor, float]) -> None:
    x_adv, x, eps = case
    expected = torch.stack([(x - eps).clamp(min=0), x_adv, (x + eps).clamp(max=1)]).median(0).values
    assert torch.allclose(ThreatModel(norm="linf", eps=eps).project(x_adv, x), expected, atol=1e-6)


@given(case=cases())
def test_l2_is_the_ball_first_and_then_the_box(case: tuple[Tensor, Tensor, float]) -> None:
    x_adv, x, eps = (case[0].double(), case[1].double(), case[2])
    for result, z, centre in zip(ThreatModel(norm="l2", eps=eps).project(x_adv, x), x_adv, x, strict=True):
        length = (z - centre).norm().item()
        in_ball = z if length <= eps else centre + (z - centre) / length * eps
        assert torch.allclose(result, in_ball.clamp(0, 1), atol=1e-9)


def best_in_l1_ball(slope: Tensor, x: Tensor, eps: float) -> float:
    """max slope . (c - x) over ball and box: spend the budget on the steepest pixels, each up to its bound."""
    room = torch.where(slope > 0, 1 - x, x)
    left, total = eps, 0.0
    for i in slope.abs().argsort(descending=True).tolist():
        step = min(left, room[i].item())
        total, left = total + step * slope[i].abs().item(), left - step
    return total


@given(case=cases())
def test_l1_projects_to_the_nearest_point_of_ball_and_box(case: tuple[Tensor, Tensor, float]) -> None:
    """p is nearest to v in a convex set exactly if no point c of the set has (v - p) . (c - p) > 0."""
    v, x, eps = case[0].double(), case[1].double(), case[2]
    p = ThreatModel(norm="l1", eps=eps).project(v, x)
    for v_i, p_i, x_i in zip(v.flatten(1), p.flatten(1), x.flatten(1), strict=True):
        slope = v_i - p_i
        assert best_in_l1_ball(slope, x_i, eps) <= (slope @ (p_i - x_i)).item() + 1e-9 * (1 + slope.abs().sum().item())


@given(case=cases())
def test_l1_agrees_with_bisection(case: tuple[Tensor, Tensor, float]) -> None:
    v, x, eps = case[0].double().flatten(1), case[1].double().flatten(1), case[2]
    u = v - x
    room = torch.where(u > 0, 1 - x, x)

    def shrunk(t: Tensor) -> Tensor:
        return torch.minimum((u.abs() - t).clamp(min=0), room)

    low, high = torch.zeros(len(x), 1).double(), u.abs().amax(1, keepdim=True)
    for _ in range(100):
        middle = (low + high) / 2
        too_long = shrunk(middle).sum(1, keepdim=True) > eps
        low, high = torch.where(too_long, middle, low), torch.where(too_long, high, middle)
    fits = shrunk(torch.zeros_like(low)).sum(1, keepdim=True) <= eps
    expected = x + u.sign() * shrunk(torch.where(fits, torch.zeros_like(high), high))
    result = ThreatModel(norm="l1", eps=eps).project(v[..., None, None], x[..., None, None])
    assert torch.allclose(result.flatten(1), expected, atol=1e-9)


@norms
@pytest.mark.parametrize("pixels", [192, 3072, 150528])
@pytest.mark.parametrize("amplitude", [0.01, 1.0, 100.0])
def test_large_float32_images_stay_in_the_ball(norm: str, pixels: int, amplitude: float) -> None:
    """Float32 sums over so many pixels are off by more than the tolerance of `contains`."""
    generator = torch.Generator().manual_seed(pixels)
    x = torch.rand(3, 3, 1, pixels // 3, generator=generator)
    x_adv = x + amplitude * torch.randn(x.shape, generator=generator)
    for eps in (0.0, 1e-3, 0.5, 12.0):
        threat = ThreatModel(norm=norm, eps=eps)
        assert threat.contains(threat.project(x_adv, x), x).all()
        assert threat.contains(threat.sample(x, Rng.of(x)), x).all()


@norms
def test_distance_is_the_norm_over_pixels_and_channels(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, x_adv = torch.rand(2, 5, 3, 4, 4, generator=generator).unbind()
    expected = [torch.linalg.vector_norm((a - b).flatten(), ORDER[norm]).item() for a, b in zip(x_adv, x, strict=True)]
    assert ThreatModel(norm=norm, eps=1.0).distance(x_adv, x).tolist() == pytest.approx(expected)


@norms
def test_contains_has_a_tolerance_for_rounding_alone(norm: str) -> None:
    eps = 0.2
    threat, x = ThreatModel(norm=norm, eps=eps), CENTRE.double()
    ray = (shifted(eps, norm).double() - x) / threat.distance(shifted(eps, norm).double(), x) * eps
    assert threat.contains(x + ray, x).all()
    assert threat.contains((x + ray).float(), x.float()).all()
    assert not threat.contains(x + ray * (1 + 1e-5), x).any()
    # The box has none: one step of float32 beyond it is outside.
    assert threat.contains(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3)).all()
    beyond = torch.ones(1, 2, 3, 3)
    beyond[0, 1, 2, 0] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert not threat.contains(beyond, torch.ones(1, 2, 3, 3)).any()


@norms
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_outside(norm: str, bad: float) -> None:
    x = CENTRE.repeat(2, 1, 1, 1)
    x_adv = x.clone()
    x_adv[1, 0, 1, 1] = bad
    assert ThreatModel(norm=norm, eps=100.0).contains(x_adv, x).tolist() == [True, False]


@norms
def test_judged_example_by_example(norm: str) -> None:
    threat = ThreatModel(norm=norm, eps=0.2)
    x_adv = torch.cat([shifted(length, norm) for length in (0.1, 0.3, 0.2, 0.21)])
    assert threat.contains(x_adv, CENTRE.expand(4, -1, -1, -1)).tolist() == [True, False, True, False]


@norms
@pytest.mark.parametrize("amplitude", [1.0, 1e-10, 1e-25, 1e-40, 1e30])
def test_an_ascent_step_has_length_one_whatever_the_gradient(norm: str, amplitude: float) -> None:
    generator = torch.Generator().manual_seed(0)
    grad = amplitude * torch.randn(4, 3, 12, 12, generator=generator)
    step = ThreatModel(norm=norm, eps=0.1).ascent(grad, torch.full_like(grad, 0.5))
    lengths = torch.linalg.vector_norm(step.flatten(1), ORDER[norm], dim=1)
    assert torch.allclose(lengths, torch.ones(4), atol=1e-5)
    assert ((step * grad) >= 0).all() and (step * grad).flatten(1).sum(1).min() >= 0


@norms
def test_a_zero_gradient_gives_a_zero_step(norm: str) -> None:
    grad = torch.zeros(2, 3, 4, 4)
    grad[1, 0, 0, 0] = 3.0
    step = ThreatModel(norm=norm, eps=0.1).ascent(grad, torch.full_like(grad, 0.5))
    assert not step[0].any() and step[1].any()


def test_l1_steps_go_to_the_largest_free_pixels() -> None:
    grad = torch.arange(1.0, 301.0).view(1, 3, 10, 10) * torch.tensor([1.0, -1.0]).repeat(150).view(1, 3, 10, 10)
    x = torch.full_like(grad, 0.5)
    threat = ThreatModel(norm="l1", eps=1.0)
    step = threat.ascent(grad, x).flatten()
    assert step.nonzero().flatten().tolist() == [297, 298, 299]
    assert step[297:].tolist() == pytest.approx([-1 / 3, 1 / 3, -1 / 3])
    x.view(-1)[299], x.view(-1)[298], x.view(-1)[297] = (
        0.0,
        1.0,
        1.0,
    )  # two stand where they are pushed to, one does not
    assert threat.ascent(grad, x).flatten().nonzero().flatten().tolist() == [295, 296, 297]


@norms
def test_samples_are_reproducible_and_inside(norm: str) -> None:
    x = torch.rand(50, 3, 4, 4, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    threat = ThreatModel(norm=norm, eps=2.0 if norm == "l1" else 0.4)
    with global_randomness_untouched():
        rng = Rng.of(x, seed=1)
        points = threat.sample(x, rng)
        assert torch.equal(points, threat.sample(x, rng)) and threat.contains(points, x).all()
        assert not torch.equal(points, threat.sample(x, rng.at(restart=1)))
        assert threat.sample(x.double(), rng).dtype == torch.float64
        index = torch.tensor([7, 3])
        assert torch.allclose(threat.sample(x[index], rng.take(index)), points[index], atol=1e-6)


@norms
def test_samples_fill_the_ball_uniformly(norm: str) -> None:
    """eps u^(1/d) from the centre; and the direction of each norm's sphere, by the law of one coordinate."""
    n, d, eps = 4000, 12, 0.2
    x = torch.full((n, 3, 2, 2), 0.5, dtype=torch.float64)
    threat = ThreatModel(norm=norm, eps=eps)
    delta = (threat.sample(x, Rng.of(x, seed=5)) - x).flatten(1)
    radius = torch.linalg.vector_norm(delta, ORDER[norm], dim=1)
    assert stats.kstest(((radius / eps) ** d).numpy(), "uniform").pvalue > 1e-3
    for i in (0, 7):
        coordinate = delta[:, i]
        law = {
            "linf": (coordinate / eps, stats.uniform(-1, 2)),
            "l2": ((coordinate / radius) ** 2, stats.beta(0.5, (d - 1) / 2)),
            "l1": (coordinate.abs() / radius, stats.beta(1, d - 1)),
        }[norm]
        assert stats.kstest(law[0].numpy(), law[1].cdf).pvalue > 1e-3
        assert stats.binomtest(int((coordinate > 0).sum()), n).pvalue > 1e-3
    assert abs(torch.corrcoef(delta.T) - torch.eye(d)).max() < 0.07
    if norm != "linf":
        assert abs(stats.spearmanr(radius.numpy(), delta[:, 0].numpy()).statistic) < 0.06


@norms
def test_a_radius_of_zero_allows_nothing(norm: str) -> None:
    threat, x = ThreatModel(norm=norm, eps=0.0), torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(threat.project(x + 0.3, x), x) and torch.equal(threat.sample(x, Rng.of(x)), x)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"norm": "l3"}, "l3"),
        ({"norm": "Linf"}, "linf"),
        ({"eps": -0.1}, "-0.1"),
        ({"eps": math.nan}, "nan"),
        ({"eps": math.inf}, "inf"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
        ({"bounds": (0.5, 0.5)}, "bounds"),
        ({"bounds": (0.0, math.nan)}, "bounds"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ThreatModel(**{"norm": "linf", "eps": 0.1} | wrong)


def test_a_threat_model_is_a_value() -> None:
    threat = ThreatModel(norm="l2", eps=0.5)
    assert threat == ThreatModel(norm="l2", eps=0.5) and hash(threat) == hash(ThreatModel(norm="l2", eps=0.5))
    with pytest.raises((FrozenInstanceError, AttributeError)):
        threat.eps = 1.0  # type: ignore[misc]
