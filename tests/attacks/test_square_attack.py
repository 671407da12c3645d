"""The Square attack: its windows, its budget, what it spends and what it needs of a model."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import square
from advsphere.attacks.square_attack import _bump
from advsphere.classifier import fooled, frozen
from advsphere.errors import UserError
from advsphere.losses import log_odds, margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from tests.laws import NORMS, RADII, conv_net, count_examples, images, labels, linear_net

norms = pytest.mark.parametrize("norm", NORMS)
LINF = ThreatModel(norm="linf", eps=0.05)


class Deaf:
    """A model that never changes its mind, and remembers what it was shown: nothing is ever kept but the start."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return torch.tensor([1.0, 0.0]).expand(len(x), 2)


def shown(norm: str, *, queries: int, n: int = 3, size: int = 20, **options: float) -> tuple[Tensor, Tensor]:
    """Grey images, and all candidates (queries, n, 3, size, size) as perturbations."""
    model, x = Deaf(), images(n, size=size, low=0.45, high=0.55).double()
    eps = {"linf": 0.05, "l2": 0.5, "l1": 3.0}[norm]
    square(
        model, x, torch.zeros(n, dtype=torch.long), threat=ThreatModel(norm=norm, eps=eps), queries=queries, **options
    )
    return x, torch.stack(model.seen) - x


def extent(changed: Tensor) -> tuple[int, int, int, int]:
    """(top, left, height, width) of what is True in (H, W)."""
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    top, left = int(rows[0]), int(columns[0])
    return top, left, int(rows[-1]) - top + 1, int(columns[-1]) - left + 1


def test_linf_starts_with_stripes_and_then_colours_windows() -> None:
    _, delta = shown("linf", queries=200)
    assert torch.allclose(delta.abs(), torch.full_like(delta, 0.05))
    start = delta[0]
    assert torch.equal(start.sign(), start.sign()[:, :, :1].expand_as(start)) and start.mean().abs() < 0.02
    assert not torch.equal(start[0].sign(), start[1].sign())
    for candidate in delta[1:]:
        for one, first in zip(candidate, start, strict=True):
            changed = (one.sign() != first.sign()).any(0)
            if changed.any():
                top, left, height, width = extent(changed)
                inside = one[:, top : top + height, left : left + width]
                assert (inside.sign() == inside.sign()[:, :1, :1]).all()


def test_windows_shrink_as_published_and_reach_every_pixel() -> None:
    """The bounding boxes of the changes over the rescaled schedule: 0.8 of the area, halved at each of its steps."""
    _, delta = shown("linf", queries=1000, n=4)
    largest = [0, 0, 0]
    touched = torch.zeros(3, 20, 20, dtype=torch.bool)
    places = set()
    for i, candidate in enumerate(delta[1:]):
        phase = 0 if i * 10 <= 10 else 1 if i * 10 <= 2000 else 2
        for one, first in zip(candidate, delta[0], strict=True):
            changed = (one.sign() != first.sign()).any(0)
            if changed.any():
                top, left, height, width = extent(changed)
                largest[phase] = max(largest[phase], height, width)
                touched |= changed
                places.add((i, top, left))
    expected = [round((0.8 * 400 / half) ** 0.5) for half in (1, 2, 64)]
    assert [abs(a - b) <= 1 for a, b in zip(largest, expected, strict=True)] == [True] * 3
    assert touched.all(), "the last row and column too"
    assert len(places) > 2000, "not one window for all of the batch"


def test_the_schedule_can_be_stretched_and_p_sets_its_beginning() -> None:
    def height(**options: float) -> int:
        _, delta = shown("linf", queries=60, n=8, **options)
        changed = [(a.sign() != b.sign()).any(0) for a, b in zip(delta[-1], delta[0], strict=True)]
        return max(extent(one)[2] for one in changed if one.any())

    assert height() <= 2 and 6 <= height(horizon=10_000) <= 9 and 17 <= height(horizon=10**6) <= 18
    assert height(horizon=10**6, p=0.05) <= 4


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_l2_and_l1_spend_their_whole_budget_and_change_two_windows(norm: str) -> None:
    _, delta = shown(norm, queries=80)
    order, eps = (2, 0.5) if norm == "l2" else (1, 3.0 * (1 - 1e-5))
    assert torch.allclose(delta.flatten(2).norm(order, dim=2), torch.tensor(eps).double())
    if norm == "l2":
        # One in every 25 of the small late windows: most of the start stays as it is.
        same = torch.isclose(delta[-1], delta[0], atol=1e-12).double().mean((1, 2, 3))
        assert (same > 1 - 2.2 * 9 / 400).all() and (same < 1).all()


def test_a_second_window_gives_its_budget_to_the_first() -> None:
    _, delta = shown("l2", queries=80, n=8)
    for one, first in zip(delta[-1], delta[0], strict=True):
        gain = one.norm(dim=0) - first.norm(dim=0)
        emptied = (one.norm(dim=0) < 1e-9) & (first.norm(dim=0) > 1e-9)
        assert gain.max() > 0.01
        assert not emptied.any() or extent(emptied)[2] <= 3


def test_the_bump() -> None:
    for order in (1, 2):
        for side in (1, 2, 3, 7):
            assert float(
                torch.linalg.vector_norm(_bump(side, order, torch.float64, torch.device("cpu")).flatten(), order)
            ) == pytest.approx(1)
    four = _bump(4, 2, torch.float64, torch.device("cpu"))
    assert torch.allclose(four[:2], -four[2:]) and torch.allclose(four[:, 1], four[:, 3])
    # Rows of a half of 2 x 4 around its centre (1, 2): 1 + 1/4 + 1/9 at it, 1/4 + 1/9 beside it, 1/9 two away.
    rows = torch.tensor([[1 / 9, 13 / 36, 13 / 36, 13 / 36], [1 / 9, 13 / 36, 49 / 36, 13 / 36]]).double()
    assert torch.allclose(four[:2], rows / rows.norm() / 2**0.5)


def test_reaches_the_optimum_on_a_small_linear_model() -> None:
    d = torch.randn(16, generator=torch.Generator().manual_seed(0))
    model, eps = linear_net(torch.stack([-d / 2, d / 2]), torch.tensor([500.0, -500.0])), 0.1
    x = 0.4 + 0.2 * torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(5, dtype=torch.long)
    x_adv = square(model, x, y, threat=ThreatModel(norm="linf", eps=eps), queries=600)
    rise = margin(model(x_adv), y) - margin(model(x), y)
    assert torch.allclose(rise, (eps * d.abs().sum()).expand(5), rtol=1e-3)


@norms
def test_needs_no_gradient_not_even_a_torch_model(norm: str) -> None:
    weight = np.random.default_rng(0).standard_normal((192, 4))

    def model(x: Tensor) -> Tensor:
        steps = np.floor(x.numpy().reshape(len(x), -1) * 255) / 255  # also piecewise constant
        return torch.from_numpy(steps @ weight).float()

    x = images(8)
    y = model(x).argmax(1)
    threat = ThreatModel(norm=norm, eps=6 * RADII[norm])
    x_adv = square(model, x, y, threat=threat, queries=200)
    assert threat.contains(x_adv, x).all() and fooled(model(x_adv), y).float().mean() >= 0.5


class Stepped(nn.Module):
    """A network behind pixels of 8 bits, made by NumPy: it has no gradient. dress: what it makes of its logits."""

    def __init__(self, dress: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.network, self.dress = conv_net(), dress

    def forward(self, x: Tensor) -> object:
        stepped = torch.from_numpy(np.round(x.numpy() * 255) / 255).to(x.dtype)
        return self.dress(self.network(stepped))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(
    "dress", [lambda z: z, lambda z: (z, "aux"), lambda z: {"loss": None, "logits": z}, lambda z: Namespace(logits=z)]
)
def test_frozen_networks_without_gradients_of_any_output(dress: Callable[[Tensor], object], dtype: torch.dtype) -> None:
    x, threat = images(16), ThreatModel(norm="linf", eps=3 * RADII["linf"])
    with frozen(Stepped(lambda z: z)) as plain:
        y = plain(x).argmax(1)
        usual = square(plain, x, y, threat=threat, queries=200)
    with frozen(Stepped(dress), dtype=dtype, fold=True) as view:
        x_adv = square(view, x, y, threat=threat, queries=200)
        hit = fooled(view(x_adv), y)
    assert hit.float().mean() >= 0.5 and threat.contains(x_adv, x).all()
    assert torch.allclose(x_adv, usual) or dtype is not None


@norms
def test_at_most_the_queries_and_none_after_a_success(norm: str) -> None:
    model, x = conv_net().eval(), images(12)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    sizes = count_examples(model)
    x_adv = square(model, x, y, threat=ThreatModel(norm=norm, eps=RADII[norm]), queries=100)
    assert len(sizes) <= 100 and sizes[0] == 12 and all(a >= b for a, b in pairwise(sizes)) and sizes[-1] < 12
    hit = fooled(model(x_adv), y)
    assert hit[0] and int((~hit).sum()) == (sizes[-2] if len(sizes) == 101 else int((~hit).sum()))
    seen = sum(sizes) - 12  # what judging the result forwarded
    assert seen >= 100 * int((~hit).sum()) and seen < 1200


def test_the_loss_never_falls_and_a_longer_search_goes_on_where_a_shorter_one_ended() -> None:
    model, x = conv_net().eval(), images(6)
    y, before = model(x).argmax(1), torch.full((6,), -torch.inf)
    for queries in (1, 2, 10, 65, 130):
        value = margin(model(square(model, x, y, threat=LINF, queries=queries, horizon=500)), y).detach()
        assert ((value >= before) | (before > 0)).all()
        before = value


def test_targeted_descends_and_another_loss_may_lead() -> None:
    model, x = conv_net().eval(), images(8)
    target = (model(x).argmax(1) + 1) % 4
    threat = ThreatModel(norm="linf", eps=0.15)
    for loss in (margin, log_odds):
        x_adv = square(model, x, target, threat=threat, queries=300, loss=loss, targeted=True)
        assert (model(x_adv).argmax(1) == target).float().mean() >= 0.5


@norms
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 2), (3, 4, 9), (2, 11, 5), (1, 28, 28)])
def test_images_of_any_shape(norm: str, shape: tuple[int, int, int]) -> None:
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    model = linear_net(torch.randn(2, x[0].numel(), generator=torch.Generator().manual_seed(1)))
    threat = ThreatModel(norm=norm, eps=0.3)
    x_adv = square(model, x, labels(3, classes=2), threat=threat, queries=30, rng=Rng.of(x))
    assert x_adv.isfinite().all() and threat.contains(x_adv, x).all()


def test_what_it_can_not_work_with_is_refused() -> None:
    with pytest.raises(UserError, match="images"):
        square(linear_net(torch.ones(2, 4)), torch.rand(2, 4), labels(2), threat=LINF)
    for options in ({"queries": 0}, {"p": 0.0}, {"p": 1.5}):
        with pytest.raises(UserError, match="queries must be at least 1"):
            square(conv_net(), images(2), labels(2), threat=LINF, **options)
