from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from advsphere.errors import UserError
from advsphere.stats import mcnemar, more_than, paired, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(k: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857, Table I, method 3."""
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_holds_the_truth_as_often_as_it_says() -> None:
    n = 200
    for p in (0.05, 0.3, 0.5, 0.9):
        chance = {k: math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)}
        for confidence in (0.95, 0.99):
            limits = {k: wilson(k, n, confidence) for k in chance}
            inside = sum(c for k, c in chance.items() if limits[k][0] <= p <= limits[k][1])
            assert inside == pytest.approx(confidence, abs=0.02)


def test_no_examples_allow_no_statement() -> None:
    with pytest.raises(UserError, match="at least one example"):
        wilson(0, 0)
    with pytest.raises(UserError, match="3 and 2"):
        paired([True] * 3, [True] * 2)


def columns(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    pairs = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_paired_gives_the_published_interval() -> None:
    """Cavo et al. 2012 as worked out in Fagerland, Lydersen, Laake 2017, chapter 8: -0.0621 (-0.1186 to -0.0046)."""
    result = paired(*columns(59, 6, 16, 80))
    assert (result.difference, result.low, result.high) == pytest.approx((-0.0621, -0.1186, -0.0046), abs=5e-5)
    assert (result.n, result.only_first, result.only_second) == (161, 6, 16)
    assert result.p_value == pytest.approx(0.0525, abs=5e-5)


def test_paired_holds_the_truth_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.4, 0.12, 0.08, 0.4])
    hits = 0
    for _ in range(1000):
        counts = torch.multinomial(shares, 300, replacement=True, generator=generator).bincount(minlength=4).tolist()
        result = paired(*columns(*counts))
        hits += result.low <= 0.04 <= result.high
    assert 0.93 <= hits / 1000 <= 0.98


def test_swapping_the_two_turns_the_difference_round() -> None:
    a, b = columns(40, 12, 3, 45)
    one, other = paired(a, b), paired(b, a)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.p_value == other.p_value


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (3, 9), (20, 21), (5, 60)])
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    tail = sum(Fraction(math.comb(b + c, i), 2 ** (b + c)) for i in range(min(b, c) + 1))
    assert mcnemar(b, c) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-12)


def test_mcnemar_stays_exact_for_many_examples() -> None:
    m, k = 2_000, 940
    tail = Fraction(sum(math.comb(m, i) for i in range(k + 1)), 2**m)
    assert mcnemar(k, m - k) == pytest.approx(float(2 * tail), rel=1e-10)
    assert 0 < mcnemar(49_000, 51_000) < 1e-9


def test_says_so_when_it_cannot_tell() -> None:
    same = paired(*columns(50, 0, 0, 50))
    assert same.cannot_tell and same.p_value == 1 and same.difference == 0 and same.low < 0 < same.high
    close = paired(*columns(300, 30, 25, 145))
    assert close.cannot_tell and "cannot tell" in str(close)
    clear = paired(*columns(300, 60, 20, 120))
    assert not clear.cannot_tell and str(clear).startswith("+8.0 points (+4.")
    # The interval alone would claim a difference here, the exact test does not.
    between = paired(*columns(59, 6, 16, 80))
    assert between.high < 0 and between.p_value > 0.05 and between.cannot_tell


@pytest.mark.parametrize(
    ("n", "share"), [(1, 0.02), (12, 0.002), (13, 0.002), (100, 0.01), (1000, 0.05), (50_000, 0.01)]
)
def test_more_than_a_share_by_the_exact_binomial(n: int, share: float) -> None:
    """It is said from the first count on that chance reaches in at most one of forty samples."""
    exact, p = Fraction(1, 40), Fraction(share).limit_denominator(1000)
    tail, probability, k = Fraction(1), (1 - p) ** n if n < 5000 else Fraction((1 - float(p)) ** n), 0
    while tail > exact:
        tail -= probability
        probability *= Fraction(n - k, k + 1) * p / (1 - p)
        if n >= 5000:
            tail, probability = Fraction(float(tail)), Fraction(float(probability))
        k += 1
    assert more_than(k, n, share) and not more_than(k - 1, n, share)
    assert not more_than(0, n, share)
