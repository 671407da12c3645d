"""Examples leave the batch at once on a CPU and every few steps elsewhere. The images must not depend on it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import active, apgd_targeted, fab_targeted, worst_case
from advsphere.attacks.active import Active, put, targets_at_once
from advsphere.attacks.combine import prepared
from advsphere.classifier import fooled
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from tests.laws import ATTACKS, NORMS, RADII, count_examples, images


class ByRow(nn.Module):
    """A linear layer whose rows have the same bits in any batch. A matrix product chooses its order by the batch."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.weight).sum(2)


def two_layers(classes: int = 4) -> nn.Sequential:
    draw = torch.Generator().manual_seed(3)
    first, second = (torch.randn(*shape, generator=draw).double() for shape in ((8, 192), (classes, 8)))
    first -= first.mean(1, keepdim=True)  # no class is preferred on grey
    return nn.Sequential(nn.Flatten(), ByRow(first / 4), nn.Tanh(), ByRow(second)).eval()


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the CPU as a device on which every read is a wait."""
    monkeypatch.setattr(active, "FREE_READS", frozenset())


NOTHING = ThreatModel(norm="linf", eps=1e-9)
"""Nothing is fooled inside it."""

COMBINED = {"surrogate", "auto_attack", "expected", "restarts", "worst_case"}
"""They run the other attacks. The view of a surrogate multiplies matrices."""


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", sorted(ATTACKS.keys() - COMBINED))
def test_no_image_depends_on_when_examples_leave_the_batch(
    name: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ATTACKS[name]
    if norm not in row.norms:
        pytest.skip(f"this attack has no {norm}")
    model, x = two_layers(), images(12).double()
    attack = row.make(ThreatModel(norm=norm, eps=RADII[norm]))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[3] = (y[3] + 1) % 4
    at_once = attack(model, x, y, rng=Rng.of(x))
    assert 1 < fooled(model(at_once), y).sum() < 12
    monkeypatch.setattr(active, "FREE_READS", frozenset())
    assert torch.equal(attack(model, x, y, rng=Rng.of(x)), at_once)


def test_rows_leave_together(waiting: None) -> None:
    rows = Active(torch.arange(4), every=2)
    assert rows.drop(torch.tensor([False, True, False, False])) is None and len(rows) == 4
    kept = rows.drop(torch.tensor([True, False, False, False]))
    assert kept is not None and kept.tolist() == rows.index.tolist() == [2, 3] and rows.open.all()
    assert rows.drop(torch.zeros(2, dtype=torch.bool)) is None
    assert rows.drop(torch.zeros(2, dtype=torch.bool)) is None, "nothing leaves"
    assert Active(torch.arange(4)).every == active.EVERY


def test_put_stores_what_the_mask_holds_and_nothing_else() -> None:
    store, expected = torch.zeros(4, 2), torch.tensor([[0.0, 0.0], [5.0, 6.0], [0.0, 0.0], [1.0, 2.0]])
    values, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([True, False, True])
    put(store, torch.tensor([3, 0, 1]), mask, values)
    assert torch.equal(store, expected)


def test_put_without_reading(waiting: None) -> None:
    test_put_stores_what_the_mask_holds_and_nothing_else()


def test_on_a_cpu_nothing_is_forwarded_after_its_success() -> None:
    model, x = two_layers(), images(12).double()
    sizes = count_examples(model)
    with torch.no_grad():
        y = model(x).argmax(1)
    ATTACKS["pgd (best, until fooled)"].make(ThreatModel(norm="linf", eps=0.05))(model, x, y)
    assert sizes[1] == 12 > sizes[-1] and sizes[1:] == sorted(sizes[1:], reverse=True)


def test_the_first_target_comes_alone_and_the_others_as_many_as_there_is_room_for() -> None:
    done = torch.zeros(20, dtype=torch.bool)
    tried = targets_at_once(9, 48, done)
    assert next(tried)[0] == range(1)
    done[:8] = True  # 12 are left, and 4 targets of each make 48
    ranks, index = next(tried)
    assert ranks == range(1, 5) and index.tolist() == [*range(8, 20)]
    done[:15] = True
    assert next(tried)[0] == range(5, 9) and not [*tried]
    assert [ranks for ranks, _ in targets_at_once(3, 0, done)] == [range(1), range(1, 2), range(2, 3)]
    assert not [*targets_at_once(3, 48, done | True)]


SMALL, SPARSE = ThreatModel(norm="linf", eps=RADII["linf"]), ThreatModel(norm="l1", eps=RADII["l1"])
TARGETED = {
    "apgd": partial(apgd_targeted, threat=SMALL, steps=4, targets=5),
    "apgd in three radii": partial(apgd_targeted, threat=SPARSE, steps=4, targets=5, multi_eps=True),
    "fab": partial(fab_targeted, norm="linf", eps=RADII["linf"], steps=4, targets=5),
    "fab from two points": partial(fab_targeted, norm="l2", eps=RADII["l2"], steps=2, targets=5, starts=2),
}


@pytest.mark.parametrize("name", TARGETED)
def test_targets_side_by_side_give_the_images_that_one_after_the_other_gives(name: str) -> None:
    model, x = two_layers(10), images(16).double()
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % 10
    for restart in (0, 1):
        rng = Rng.of(x).at(restart=restart)
        alone, beside = (
            TARGETED[name](replace(prepared(model, x, target=y), room=room), x, y, rng=rng) for room in (0, 64)
        )
        assert torch.equal(alone, beside) and 5 < fooled(model(alone), y).sum() < 14


@pytest.mark.parametrize("name", ["apgd", "fab"])
def test_few_images_of_a_batch_take_few_calls(name: str) -> None:
    """As many passes as alone: for each target of an image one at each of 5 steps and one at the end."""
    model, x = two_layers(10), images(64).double()
    with torch.no_grad():
        y = model(x).argmax(1)
    y[8:] = (y[8:] + 1) % 10
    sizes = count_examples(model)
    nothing: dict[str, Any] = {"threat": NOTHING} if name == "apgd" else {"eps": 0.0}
    TARGETED[name](model, x, y, **nothing, steps=5, targets=9)
    assert sizes[:13] == [64] + 6 * [8] + 6 * [64] and {*sizes[13:]} <= {8}


def test_a_later_attack_has_the_room_of_the_first() -> None:
    model, x = two_layers(10), images(64).double()
    with torch.no_grad():
        y = model(x).argmax(1)
    y[8:] = (y[8:] + 1) % 10
    sizes = count_examples(model)
    worst_case([partial(apgd_targeted, threat=NOTHING, steps=1)])(model, x, y)
    assert sizes == [64, 8] + 2 * [8] + 2 * [64] + [8]
