"""Claims 3 and 4, and the rules for the answers. Claims 1 and 2: test_feature_normalization, test_hard_examples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from advsphere.analysis.angles import Angles
from advsphere.analysis.balance import Balance, balance_figure
from advsphere.analysis.claims import balanced, margins
from advsphere.errors import UserError

K, N = 4, 200
LABELS = torch.arange(N) % K
CLASSES = tuple("abcd")


def balance(predictions: Tensor, lengths: Tensor | None = None) -> Balance:
    return Balance(
        classes=CLASSES, labels=LABELS, predictions=predictions, lengths=torch.ones(K) if lengths is None else lengths
    )


EVEN = balance((LABELS + 1 + torch.arange(N) // K % (K - 1)) % K)
ONE_SIDED = balance(torch.where(LABELS == 0, 1, 0))


def test_the_imbalance_of_known_predictions() -> None:
    ones = torch.ones(1, N, dtype=torch.float64)
    assert EVEN.rates(ones)[0].tolist() == pytest.approx([1 / 3] * K, abs=0.01)
    assert EVEN.value == pytest.approx(0.0, abs=0.03)
    assert ONE_SIDED.rates(ones)[0].tolist() == pytest.approx([1.0, 1 / 3, 0.0, 0.0])
    assert ONE_SIDED.value == pytest.approx(torch.tensor([1, 1 / 3, 0, 0]).std(correction=0).item() * 3)


def test_a_class_with_fewer_images_is_not_taken_for_imbalance() -> None:
    """Rates are over the images that could be taken for the class."""
    labels = torch.tensor([0] * 90 + [1] * 30)
    found = Balance(classes=("a", "b"), labels=labels, predictions=1 - labels, lengths=torch.ones(2))
    assert found.value == pytest.approx(0.0)


def test_wn_alleviates_the_imbalance_or_not() -> None:
    assert balanced(ONE_SIDED, EVEN).answer == "seen"
    opposite = balanced(EVEN, ONE_SIDED)
    assert opposite.answer == "not seen" and opposite.detail.startswith("The opposite")
    same = balanced(EVEN, EVEN)
    assert same.answer == "not seen" and same.evidence[0].clear == 0
    assert balanced(ONE_SIDED, EVEN).evidence[0].value == pytest.approx(ONE_SIDED.value - EVEN.value)


def test_without_a_baseline_or_enough_images_it_is_not_tested() -> None:
    assert balanced(None, EVEN).answer == "not tested"
    right = balance(LABELS.clone())
    assert not right.enough and balanced(right, EVEN).answer == "not tested"
    with pytest.raises(UserError, match="different images"):
        balanced(EVEN, replace(EVEN, labels=LABELS.flip(0)))


def test_the_balance_figure_names_the_classes() -> None:
    left, right = balance_figure({"one": ONE_SIDED, "two": EVEN}).axes
    assert [t.get_text() for t in left.get_xticklabels()] == ["a", "b", "c", "d"], "from the most often to the least"
    assert left.lines[0].get_ydata().tolist() == pytest.approx([100, 100 / 3, 0, 0])
    assert len(right.collections) == 2


def angles(margin: Tensor) -> Angles:
    """Images of which each is that many degrees nearer to its class than to all others."""
    values = torch.full((N, K), 60.0, dtype=torch.float64).scatter(1, LABELS[:, None], 60 - margin[:, None].double())
    return Angles(classes=CLASSES, labels=LABELS, predictions=LABELS, angles=values, norms=torch.ones(N), mean_norm=1.0)


def test_am_increases_the_margin_or_not() -> None:
    spread = torch.linspace(-10, 10, N)
    near, far = (angles(5 + spread), angles(spread)), (angles(9 + spread), angles(3 + spread))
    seen = margins(near, far)
    assert seen.answer == "seen"
    assert [e.value for e in seen.evidence] == pytest.approx([4.0, 3.0])
    assert margins(far, near).detail.startswith("The opposite")
    noise = angles(spread.flip(0))
    same = margins((noise, noise), (angles(spread), angles(spread)))
    assert same.answer == "not seen" and "cannot tell" in same.detail
    partly = margins(near, (far[0], near[1]))
    assert partly.answer == "not seen" and "only in some" in partly.detail
    assert margins(None, near).answer == "not tested"
