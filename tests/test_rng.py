"""Random numbers are addressed, and look random along every coordinate of the address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from advsphere.rng import Rng, derived_seed, permutation
from tests.laws import global_randomness_untouched

CHANCE = 1e-5
"""Below which a statistic is not put down to chance; about a hundred are computed here."""
INT64 = st.integers(-(2**63), 2**63 - 1)


def uniform(seed: int = 0, ids: Tensor | None = None, size: int = 1000, purpose: str = "test", **at: int) -> Tensor:
    return Rng(seed, torch.arange(1) if ids is None else ids, **at).uniform((size,), purpose)


def halves(size: int) -> Tensor:
    return Rng(0, torch.arange(1)).integers((size,), "test")[0]


def test_pinned_by_golden_values() -> None:
    """A change of the generator changes every published number: let it be on purpose."""
    rng = Rng(7, torch.tensor([0, 5, 2**40, -1]), restart=2, step=3)
    assert (rng.uniform((2,), "start") * 2**24).tolist() == GOLDEN
    assert permutation(8, seed=1, epoch=2).tolist() == GOLDEN_ORDER
    assert derived_seed(1, "init") == GOLDEN_SEED


GOLDEN = [[3206395.0, 8113345.0], [10540231.0, 15009811.0], [1380343.0, 3859071.0], [4640115.0, 8111367.0]]
GOLDEN_ORDER = [4, 3, 0, 2, 1, 6, 7, 5]
GOLDEN_SEED = 8428115116584716840


@given(seed=st.integers(), ids=st.lists(INT64, min_size=1, max_size=6), data=st.data())
def test_a_subset_of_the_batch_has_its_own_numbers(seed: int, ids: list[int], data: st.DataObject) -> None:
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=6)), dtype=torch.long)
    whole = Rng(seed, torch.tensor(ids), restart=1, step=4)
    for draw in (lambda d: d.uniform((3, 2), "a"), lambda d: d.normal((3, 2), "a")):
        assert torch.equal(draw(whole.take(index)), draw(whole)[index])
        alone = Rng(seed, torch.tensor(ids[:1]), restart=1, step=4)
        assert torch.equal(draw(alone), draw(whole)[:1])


def test_take_works_with_a_mask_and_keeps_the_rest_of_the_address() -> None:
    rng = Rng(3, torch.tensor([4, 9, 2]), restart=5, step=6)
    taken = rng.take(torch.tensor([True, False, True]))
    assert taken.ids.tolist() == [4, 2] and (taken.seed, taken.restart, taken.step) == (3, 5, 6)
    assert (rng.at(step=1).restart, rng.at(step=1).step, rng.at(restart=0).restart) == (5, 1, 0)


def test_ids_of_a_batch_without_any() -> None:
    assert Rng.of(torch.zeros(3, 1, 2, 2), seed=8).ids.tolist() == [0, 1, 2]
    assert Rng.of(torch.zeros(3, 1, 2, 2), seed=8).seed == 8


def test_each_coordinate_of_the_address_counts() -> None:
    """Also huge and negative seeds, and ids that differ only above 32 bits."""
    ids = torch.tensor([0, 1, 2**32, 2**32 + 1, 2**33, -1, -(2**32), 2**62, -(2**63)])
    rows = [*uniform(ids=ids, size=4)]
    rows += [uniform(seed=seed, size=4)[0] for seed in (1, -1, 2**32, 2**64, 2**64 + 1, -(2**200), 10**30)]
    rows += [uniform(size=4, restart=1)[0], uniform(size=4, step=1)[0], uniform(size=4, restart=1, step=1)[0]]
    rows += [uniform(size=4, purpose="")[0], uniform(size=4, purpose="tes")[0], uniform(size=4, purpose="test ")[0]]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    assert len({value for row in rows for value in row.tolist()}) == 4 * len(rows)


def test_a_longer_draw_begins_with_the_shorter_one_and_shape_is_only_a_view() -> None:
    assert torch.equal(uniform(size=10), uniform(size=1000)[:, :10])
    rng = Rng(0, torch.arange(2))
    assert torch.equal(rng.uniform((3, 4), "test"), rng.uniform((12,), "test").view(2, 3, 4))
    assert rng.uniform((), "test").shape == (2,) and rng.uniform((0,), "test").shape == (2, 0)
    assert Rng(0, torch.arange(0)).normal((3, 4), "test").shape == (0, 3, 4)


@pytest.mark.parametrize("kind", [np.int64, np.int32, torch.tensor])
def test_an_integer_of_another_library_is_the_same_seed(kind: type) -> None:
    assert torch.equal(uniform(seed=kind(5), restart=kind(2)), uniform(seed=5, restart=2))
    assert permutation(9, seed=kind(5), epoch=kind(1)).tolist() == permutation(9, seed=5, epoch=1).tolist()


def test_a_seed_that_is_no_integer_is_refused() -> None:
    with pytest.raises(TypeError):
        uniform(seed=0.5)  # type: ignore[arg-type]


def test_global_randomness_is_neither_read_nor_moved() -> None:
    with global_randomness_untouched():
        before = uniform(), Rng(0, torch.arange(3)).normal((4,), "x"), permutation(20, seed=1, epoch=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        after = uniform(), Rng(0, torch.arange(3)).normal((4,), "x"), permutation(20, seed=1, epoch=0)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_values_are_float32_in_the_open_interval() -> None:
    values = uniform(ids=torch.arange(2000), size=1000)
    assert values.dtype == torch.float32 and 0 < values.min() < 2e-6 and 1 - 2e-6 < values.max() < 1


STREAMS = {
    "elements of one example": lambda: uniform(size=200_000)[0],
    "halves of words": lambda: halves(200_000).add(uniform(size=200_000, purpose="low bits")[0]).div(65536),
    "ids in a row": lambda: uniform(ids=torch.arange(200_000), size=1)[:, 0],
    "ids far apart": lambda: uniform(ids=torch.arange(100_000) * 2**32 + 12345, size=2).flatten(),
    "seeds in a row": lambda: torch.cat([uniform(seed=seed, size=100)[0] for seed in range(1000)]),
    "restarts": lambda: torch.cat([uniform(restart=r, size=100)[0] for r in range(1000)]),
    "steps": lambda: torch.cat([uniform(step=s, size=100)[0] for s in range(1000)]),
    "purposes": lambda: torch.cat([uniform(purpose=str(p), size=100)[0] for p in range(1000)]),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
def test_uniform_without_memory(stream: Callable[[], Tensor]) -> None:
    values = stream().double().numpy()
    assert stats.kstest(values, "uniform").pvalue > CHANCE
    assert stats.chisquare(np.bincount((values * 256).astype(int), minlength=256)).pvalue > CHANCE
    low_bits = (values * 2**23).astype(np.int64) & 0xFF
    assert stats.chisquare(np.bincount(low_bits, minlength=256)).pvalue > CHANCE
    for lag in (1, 2, 100):
        pairs = (values[:-lag] * 16).astype(int) * 16 + (values[lag:] * 16).astype(int)
        assert stats.chisquare(np.bincount(pairs, minlength=256)).pvalue > CHANCE
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 5 / len(values) ** 0.5


HUNDRED, LONG = torch.arange(100), 200_000
PAIRS = {
    "id and the next": ({"ids": HUNDRED, "size": 2000}, {"ids": HUNDRED + 1, "size": 2000}),
    "id and 2^32 more": ({"ids": HUNDRED, "size": 2000}, {"ids": HUNDRED + 2**32, "size": 2000}),
    "id and its negative": ({"ids": HUNDRED + 1, "size": 2000}, {"ids": -HUNDRED - 1, "size": 2000}),
    "seed and the next": ({"size": LONG}, {"size": LONG, "seed": 1}),
    "seed and its negative": ({"size": LONG, "seed": 1}, {"size": LONG, "seed": -1}),
    "restart and the next": ({"size": LONG}, {"size": LONG, "restart": 1}),
    "restart and step": ({"size": LONG, "restart": 1}, {"size": LONG, "step": 1}),
    "purpose and another": ({"size": LONG}, {"size": LONG, "purpose": "radius"}),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_streams_are_independent(pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    a, b = (uniform(**address).flatten().double().numpy() for address in pair)
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / len(a) ** 0.5
    assert np.mean(a == b) < 1e-4
    cells = (a * 16).astype(int) * 16 + (b * 16).astype(int)
    assert stats.chisquare(np.bincount(cells, minlength=256)).pvalue > CHANCE


def test_example_and_element_do_not_mix() -> None:
    """Element i of example j and element j of example i are two numbers."""
    table = uniform(ids=torch.arange(400), size=400).double()
    a, b = table[*torch.triu_indices(400, 400, 1)], table.T[*torch.triu_indices(400, 400, 1)]
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / len(a) ** 0.5 and (a == b).double().mean() < 1e-4


def test_two_examples_never_share_their_numbers() -> None:
    """Streams that are shifts or permutations of each other would have many values in common."""
    values = (uniform(ids=torch.arange(60), size=3072).double() * 2**23).long()
    expected = 3072**2 / 2**23
    for i in range(0, 60, 7):
        for j in range(i + 1, 60, 11):
            assert len(np.intersect1d(values[i], values[j])) < 8 * expected + 8


def test_integers_are_the_halves_of_words_and_all_of_them_come_up() -> None:
    rng = Rng(0, torch.arange(150))
    values = rng.integers((100, 101), "test")
    assert values.dtype == torch.int32 and values.shape == (150, 100, 101)
    assert torch.equal(values.flatten(1)[:, :7], rng.integers((7,), "test"))
    assert len(values.unique()) == 65536 and values.min() == 0 and values.max() == 65535


@pytest.mark.parametrize("words", [1, 700, 2**40])
def test_how_many_words_are_mixed_together_makes_no_difference(words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(7)
    expected = uniform(ids=ids, size=300)
    monkeypatch.setattr("advsphere.rng._AT_ONCE", words)
    assert torch.equal(uniform(ids=ids, size=300), expected)


def test_normal_is_standard_normal() -> None:
    values = Rng(2, torch.arange(200)).normal((1000,), "noise")
    assert values.dtype == torch.float32 and 4 < values.abs().max() < 5.5
    assert stats.kstest(values.flatten().double().numpy(), "norm").pvalue > CHANCE


def test_permutations_are_orders_that_differ_by_seed_epoch_and_purpose() -> None:
    orders = [permutation(50, seed=s, epoch=e, purpose=p) for s in (0, 1) for e in (0, 1) for p in ("order", "split")]
    assert all(order.dtype == torch.int64 and order.sort().values.tolist() == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 8
    assert torch.equal(permutation(50, seed=1, epoch=1), permutation(50, seed=1, epoch=1))
    assert permutation(0, seed=0, epoch=0).tolist() == []
    first = [int(permutation(10, seed=0, epoch=epoch)[0]) for epoch in range(1000)]
    assert stats.chisquare(np.bincount(first, minlength=10)).pvalue > CHANCE


def test_derived_seeds_fit_any_library_and_keep_addresses_apart() -> None:
    seeds = [derived_seed(*address) for address in ((1, 2), (2, 1), (12,), ("1", 2), (1, "2"), ("12",), (-1, 2), ())]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("places", [slice(None), slice(1, 3), slice(None, None, 2)])
def test_the_parts_of_a_split_draw_together_the_numbers_of_their_ids(places: slice) -> None:
    """Also a part of a part, after another part has drawn, and after somebody changed what was drawn in place."""
    whole = Rng(3, torch.arange(9) * 7, step=2)
    first, second = whole.split([4, 5])
    for _ in range(2):
        first.uniform((2, 2), "a").zero_()
        second.take(places).uniform((2, 2), "a").zero_()
    for part, ids in ((first, whole.ids[:4]), (second, whole.ids[4:]), (second.take(places), whole.ids[4:][places])):
        alone = Rng(3, ids, step=2)
        assert torch.equal(part.uniform((2, 2), "a"), alone.uniform((2, 2), "a"))
        assert torch.equal(part.normal((3,), "b"), alone.normal((3,), "b"))
        assert torch.equal(part.integers((3,), "c"), alone.integers((3,), "c"))
        assert torch.equal(part.at(step=1).uniform((3,), "a"), alone.at(step=1).uniform((3,), "a"))
    mask = torch.tensor([True, False, True, False])
    assert torch.equal(first.take(mask).uniform((3,), "a"), whole.take(torch.tensor([0, 2])).uniform((3,), "a"))
