"""Each example's own gradient, and the share that fifths of the examples have in all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from advsphere.analysis.claims import hard
from advsphere.analysis.crafting import Crafted
from advsphere.analysis.hard_examples import Hardness, hardness, hardness_figure
from advsphere.analysis.linear_head import HeadParts, split_head
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.threat import ThreatModel
from tests.analysis.bodies import plane, polar

N = 60
DEGREES = [2 + 50 * i / N for i in range(N)]  # towards 45 degrees and beyond: harder and harder


def arrows(lengths: list[float]) -> tuple[HeadParts, Crafted]:
    x, y = polar(DEGREES, lengths), torch.zeros(N, dtype=torch.int64)
    parts = split_head(plane(), ImageSet(x, y, ("x", "y"), "arrows"))
    return parts, Crafted(x=x, x_adv=x, y=y, threat=ThreatModel(norm="linf", eps=0.0))


SHORT_WHEN_HARD = [0.9 - 0.7 * i / N for i in range(N)]
LONG_WHEN_HARD = SHORT_WHEN_HARD[::-1]


def test_norms_are_those_of_calculus() -> None:
    """For z = A x the gradient is g z', with g = W'(p - y) without FN, and what FN leaves of it, times s / ||z||."""
    parts, crafted = arrows(SHORT_WHEN_HARD)
    found = hardness(parts, crafted)
    z = crafted.x.flatten(1).double()
    onehot = torch.tensor([1.0, 0.0]).double()
    without = ((z.softmax(1) - onehot).norm(dim=1)) * z.norm(dim=1)
    unit, s = torch.nn.functional.normalize(z, dim=1), parts.mean_norm
    g = (s * unit).softmax(1) - onehot
    tangent = g - (g * unit).sum(1, keepdim=True) * unit
    with_ = s * tangent.norm(dim=1)
    torch.testing.assert_close(found.without_fn, without, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.with_fn, with_, atol=1e-5, rtol=1e-4)


def test_shares_of_the_fifths_add_up_to_one() -> None:
    found = hardness(*arrows(SHORT_WHEN_HARD))
    for fn in (True, False):
        assert sum(found.share(q, fn=fn) for q in range(5)) == pytest.approx(1.0)
    assert torch.bincount(found.quintile).tolist() == [N // 5] * 5
    assert found.quintile.tolist() == [i * 5 // N for i in range(N)], "harder and harder, as they were built"


def test_short_hard_examples_gain_by_fn_and_long_ones_lose() -> None:
    seen = hard(hardness(*arrows(SHORT_WHEN_HARD)))
    assert seen.answer == "seen" and seen.evidence[0].low > 0
    opposite = hard(hardness(*arrows(LONG_WHEN_HARD)))
    assert opposite.answer == "not seen" and opposite.detail.startswith("The opposite")
    same = hard(Hardness(margin=torch.arange(20.0), norms=torch.ones(20), with_fn=torch.ones(20).double(),
                         without_fn=torch.ones(20).double()))  # fmt: skip
    assert same.answer == "not seen" and same.detail.startswith("The sample cannot tell")


def test_the_model_is_left_as_it_was_and_too_few_are_refused() -> None:
    parts, crafted = arrows(SHORT_WHEN_HARD)
    parts.model.train()
    hardness(parts, crafted.few(10))
    assert parts.model.training and all(p.grad is None for p in parts.model.parameters())
    with pytest.raises(UserError, match="at least 10"):
        hardness(parts, crafted.few(9))
    parts.model.requires_grad_(False)
    with pytest.raises(UserError, match="requires_grad"):
        hardness(parts, crafted)


def test_the_figure_draws_the_shares() -> None:
    found = hardness(*arrows(SHORT_WHEN_HARD))
    left, _ = hardness_figure({"arrows": found}).axes
    bars: Any = left.patches
    heights = [bar.get_height() for bar in bars]
    assert heights == pytest.approx([100 * found.share(q, fn=fn) for fn in (False, True) for q in range(5)])
