"""Constructed pairs of which it is known how much of the gain survives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_ind

from advsphere.comparison.gain import measure_gains
from advsphere.errors import UserError
from advsphere.evaluation import WORST, Evaluation
from advsphere.stats import paired
from tests.report import made

N = 1000


def evaluation(columns: dict[str, str], *, scale: float = 1.0) -> Evaluation:
    """An evaluation with these outcomes; the last is the worst case."""
    rows = [made.row(name, column) for name, column in columns.items()]
    before = made.evaluation()
    identity = {**before.identity, "model": {"type": "Known", "checksum": str(columns), "scale": scale}}
    return replace(before, clean=rows[0], attacks=tuple(rows[1:-1]), worst=rows[-1], identity=identity)


def column(share: float, *, seed: int = 0) -> str:
    """Each example robust with this probability; columns of one seed are nested, as those of one network are."""
    return "".join("1" if u < share else "0" for u in np.random.default_rng(seed).random(N))


def arm(clean: float, pgd: float, worst: float, *, seed: int = 0, scale: float = 1.0) -> Evaluation:
    columns = {name: column(p, seed=seed) for name, p in [("clean", clean), ("PGD-50", pgd), (WORST, worst)]}
    if scale != 1.0:
        columns = {"clean": columns["clean"], "PGD-50 (s = 1)": columns["PGD-50"], **columns}
    return evaluation(columns, scale=scale)


BASE = (0.8, 0.5, 0.45)


@pytest.mark.parametrize(
    ("method", "verdict"),
    [
        ((0.8, 0.6, 0.55), "more than half survives"),
        ((0.8, 0.6, 0.50), "some survives"),
        ((0.8, 0.6, 0.48), "some survives, less than half"),
        ((0.8, 0.6, 0.45), "less than half survives"),
        ((0.8, 0.6, 0.43), "turns into a loss"),
        ((0.8, 0.505, 0.455), "cannot tell"),
        ((0.8, 0.4, 0.35), "no gain"),
    ],
)
def test_verdicts_of_two_checkpoints(method: tuple[float, float, float], verdict: str) -> None:
    found = measure_gains([arm(*BASE)], [arm(*method, seed=0)])
    assert found.verdict == verdict
    before, after = found.gain("PGD-50"), found.gain(WORST)
    expected = paired([c == "1" for c in column(method[2])], [c == "1" for c in column(0.45)])
    assert (after.low, after.high, after.p_value) == (expected.low, expected.high, expected.p_value)
    if verdict in ("cannot tell", "no gain"):
        assert found.share is None
    else:
        share, low, high = found.share  # type: ignore[misc]
        assert share == pytest.approx(after.difference / before.difference) and low <= share <= high
    assert not found.of_the_method and "checkpoint" in found.sentence


def test_independent_networks_leave_more_open() -> None:
    """The same accuracies on other examples: the pairing, and not the accuracies alone, decides."""
    nested = measure_gains([arm(*BASE)], [arm(0.8, 0.6, 0.485)])
    rolled = {row.name: row.outcomes[500:] + row.outcomes[:500] for row in arm(0.8, 0.6, 0.485).rows}
    apart = measure_gains([arm(*BASE)], [evaluation(rolled)])
    assert nested.verdict == "some survives, less than half" and apart.verdict == "cannot tell"
    assert apart.n_for_a_point > nested.n_for_a_point > N
    half = (apart.gain(WORST).high - apart.gain(WORST).low) / 2
    assert apart.n_for_a_point == pytest.approx(N * (half / 0.01) ** 2, rel=0.02)


def test_the_share_s_interval_covers_the_truth() -> None:
    """A share of one half, over many drawn sets of images; independent networks, so that all columns vary."""
    covered = 0
    for trial in range(100):
        base, method = arm(0.9, 0.3, 0.2, seed=2 * trial), arm(0.9, 0.7, 0.4, seed=2 * trial + 1)
        found = measure_gains([base], [method])
        assert found.share is not None
        covered += found.share[1] <= 0.5 <= found.share[2]
    assert covered >= 89  # 95 are expected; fewer have a probability below 1 %


def test_a_bounded_head_is_judged_at_s_1_against_the_plain_head_s_own() -> None:
    found = measure_gains([arm(*BASE)], [arm(0.8, 0.6, 0.45, scale=15.0)])
    assert found.pgd == "PGD-50 (s = 1)"
    assert [g.name for g in found.gains] == ["clean", "PGD-50 (s = 1)", "PGD-50", WORST]
    assert found.gain("PGD-50 (s = 1)").baseline == found.gain("PGD-50").baseline
    assert measure_gains([arm(*BASE)], [arm(0.8, 0.6, 0.45, scale=15.0)], pgd="PGD-50").pgd == "PGD-50"


def test_three_seeds_speak_of_the_method_and_two_do_not() -> None:
    def seeds(share: float, first: int, count: int) -> list[Evaluation]:
        return [arm(0.8, share, share - 0.05, seed=first + i) for i in range(count)]

    one, two, three = (measure_gains(seeds(0.5, 0, 2 + (count == 3)), seeds(0.6, 10, count)) for count in (1, 2, 3))
    assert one.sentence.startswith("Under PGD-50 the method's checkpoint gains +")
    assert not two.of_the_method and two.sentence.startswith("Under PGD-50 the method's checkpoints gain +")
    assert three.of_the_method and three.sentence.startswith("Under PGD-50 the method gains +")
    assert (three.gain(WORST).high - three.gain(WORST).low) > (two.gain(WORST).high - two.gain(WORST).low)


@pytest.mark.parametrize(
    ("seeds", "who"),
    [(1, "the method's checkpoint differs"), (2, "the method's checkpoints differ"), (3, "the method differs")],
)
def test_what_is_no_gain_differs_and_its_verb_agrees(seeds: int, who: str) -> None:
    base, same, less = (
        [arm(*shares, seed=i) for i in range(seeds)] for shares in (BASE, (0.81, 0.5, 0.45), (0.8, 0.4, 0.35))
    )
    assert measure_gains(base, same).sentence.startswith(f"Under PGD-50 {who} by ")
    lost = measure_gains(base, less).sentence
    assert lost.startswith(f"Under PGD-50 {who} by -") and "there is no gain to survive" in lost


def test_with_many_images_the_spread_of_seeds_is_welch_s_test() -> None:
    """With hardly any variance over images, Satterthwaite's degrees of freedom are Welch's."""

    def many(share: float) -> Evaluation:
        """Every image as robust as every other: no spread over images, all of it over seeds."""
        k = round(share * 20_000)
        return evaluation({"clean": "1" * 20_000, "PGD-1": "1" * k + "0" * (20_000 - k), WORST: "1" * 20_000})

    a, b = [0.500, 0.510, 0.520], [0.530, 0.545, 0.548]
    gain = measure_gains([many(s) for s in a], [many(s) for s in b]).gain("PGD-1")
    exact = ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert gain.low == pytest.approx(exact.low, abs=0.002) and gain.high == pytest.approx(exact.high, abs=0.002)


def test_holm_corrects_for_the_number_of_attacks() -> None:
    base, method = (
        evaluation({"clean": column(0.8), **{f"PGD-{i}": column(p, seed=i) for i in range(3)}, WORST: column(0.4)})
        for p in (0.5, 0.51)
    )
    found = measure_gains([base], [method])
    assert all(found.gain(name).adjusted == found.gain(name).p_value for name in ("clean", found.pgd, WORST))
    attacks = [g for g in found.gains if g.name not in ("clean", found.pgd, WORST)]
    assert len(attacks) == 2
    p = sorted(g.p_value for g in attacks)
    adjusted = sorted(g.adjusted for g in attacks)
    expected = np.minimum(1, np.maximum.accumulate([(len(p) - i) * v for i, v in enumerate(p)]))
    assert adjusted == pytest.approx(expected.tolist())


def test_what_can_t_be_compared_is_refused() -> None:
    other = arm(*BASE)
    elsewhere = replace(other, identity={**other.identity, "data": {"checksum": "other"}})
    with pytest.raises(UserError, match="data"):
        measure_gains([other], [elsewhere])
    with pytest.raises(UserError, match="have a row 'PGD-7'"):
        measure_gains([other], [other], pgd="PGD-7")
    bare = evaluation({"clean": column(0.8), "Square": column(0.5), WORST: column(0.5)})
    with pytest.raises(UserError, match="none of these rows is a PGD attack"):
        measure_gains([bare], [bare])


def test_a_gain_that_only_the_number_of_attacks_leaves_open_is_said_to_be_so() -> None:
    """Clear of 0 alone, and not among the four attacks that were not chosen. The chosen one is tested alone."""
    found = [
        evaluation({"clean": "1" * 200, **{f"PGD-{i}": "1" * k + "0" * (200 - k) for i in range(5)}, WORST: "0" * 200})
        for k in (100, 107)
    ]
    survived = measure_gains(found[:1], found[1:])
    chosen, other = (survived.gain(name) for name in ("PGD-0", "PGD-1"))
    assert chosen.low == other.low > 0 and chosen.adjusted < 0.05 < other.adjusted
    assert chosen.clear and not other.clear and survived.verdict == "less than half survives"
