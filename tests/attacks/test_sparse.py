"""sigma-zero: exact counts on linear models, and the laws of attacks for l0, which has no `ThreatModel`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import fmn, sigma_zero
from advsphere.classifier import fooled
from advsphere.errors import UserError
from advsphere.rng import Rng
from tests.laws import (
    assert_same_state,
    conv_net,
    count_examples,
    global_randomness_untouched,
    images,
    linear_net,
    mixed,
    state_of,
)


def model_and_batch(n: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    """In float64, and nothing misclassified."""
    model, x = conv_net().double().eval(), images(n).double()
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def changed(x_adv: Tensor, x: Tensor) -> Tensor:
    return (x_adv != x).flatten(1).sum(1)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 0.3)])
def test_the_fewest_values_of_a_linear_model(bounds: tuple[float, float]) -> None:
    """Each value can raise the margin by its slope times its way to the bound, so the largest of these decide."""
    d = torch.randn(192, generator=torch.Generator().manual_seed(0)).double()
    x, y = images(12, low=bounds[0], high=bounds[1]).double(), torch.zeros(12, dtype=torch.long)
    gains = torch.maximum(d * (bounds[1] - x.flatten(1)), d * (bounds[0] - x.flatten(1)))
    needed = gains.topk(6).values.sum(1).mean()
    model = linear_net(torch.stack([0 * d, d]), torch.tensor([0.0, -float((x.flatten(1) @ d).max() + needed)]).double())
    short = -model(x)[:, 1].detach()
    exact = (gains.sort(1, descending=True).values.cumsum(1) < short[:, None]).sum(1) + 1
    x_adv = sigma_zero(model, x, y, bounds=bounds, steps=200)
    assert fooled(model(x_adv), y).all()
    extra = changed(x_adv, x) - exact
    assert (extra >= 0).all() and (extra <= 0.1 * exact + 1).all() and extra.float().mean() <= 0.5


def test_fewer_than_a_dense_attack_and_inside_the_box() -> None:
    model, x, y = model_and_batch()
    x[0], x[1] = 0.0, 1.0
    with torch.no_grad():
        y = model(x).argmax(1)
    x_adv = sigma_zero(model, x, y, steps=100)
    assert fooled(model(x_adv), y).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    assert changed(x_adv, x).max() < 40 < changed(fmn(model, x, y, norm="l2", steps=20), x).median()


def test_batch_mates_and_the_seed_do_not_matter() -> None:
    model, x, y = model_and_batch()
    y[1] = (y[1] + 1) % 4
    whole = sigma_zero(model, x, y, steps=30, eps=2)
    hit = fooled(model(whole), y)
    assert 2 < hit.sum() < 8, "the example is only telling where some fall and some resist"
    for index in (torch.tensor([3]), torch.tensor([7, 2, 5, 0, 1, 3, 6, 4]), torch.tensor([6, 1, 3])):
        part = sigma_zero(model, x[index], y[index], steps=30, eps=2, rng=Rng.of(x[index], seed=5))
        assert torch.allclose(part, whole[index], atol=1e-9)


def test_further_starts_are_random_and_only_help() -> None:
    model, x, y = model_and_batch(16)
    y[2] = (y[2] + 1) % 4
    one, rng, sizes = changed(sigma_zero(model, x, y, steps=30), x), Rng.of(x, seed=1), count_examples(model)
    x_adv = sigma_zero(model, x, y, steps=30, starts=3, rng=rng)
    assert sizes[0] == 16 and sizes[-1] < 16 and len(sizes) == 90
    assert fooled(model(x_adv), y).all() and x_adv.min() >= 0 and x_adv.max() <= 1 and torch.equal(x_adv[2], x[2])
    several = changed(x_adv, x)
    assert (several <= one).all() and (several < one).any()
    index = torch.tensor([9, 2, 0, 5])
    part = sigma_zero(model, x[index], y[index], steps=30, starts=3, rng=rng.take(index))
    assert torch.allclose(part, x_adv[index], atol=1e-9)
    assert not torch.equal(sigma_zero(model, x, y, steps=30, starts=3), x_adv)


def test_eps_is_a_number_of_values() -> None:
    model, x, y = model_and_batch(16)
    fewest = changed(sigma_zero(model, x, y, steps=60), x)
    eps = int(fewest.median())
    sizes = count_examples(model)
    x_adv = sigma_zero(model, x, y, steps=60, eps=eps)
    spent = sum(sizes)
    hit = fooled(model(x_adv), y)
    assert torch.equal(hit, fewest <= eps) and torch.equal(x_adv[~hit], x[~hit]) and changed(x_adv, x).max() <= eps
    assert spent < 16 * 60
    assert torch.equal(sigma_zero(model, x, y, steps=60, eps=0), x)


def test_nothing_is_touched() -> None:
    model, x, y = mixed(conv_net(dropout=0.5)), images(4).requires_grad_(True), torch.arange(4)
    before, x_before = state_of(model), x.detach().clone()
    with global_randomness_untouched():
        x_adv = sigma_zero(model, x, y, steps=5)
    assert_same_state(before, state_of(model))
    assert torch.equal(x, x_before) and x.grad is None and not x_adv.requires_grad and x_adv.dtype == x.dtype


@pytest.mark.parametrize("size", [0, 1])
def test_batches_of_none_and_one(size: int) -> None:
    x = images(size)
    assert sigma_zero(conv_net().eval(), x, torch.zeros(size, dtype=torch.long), steps=5).shape == (size, 3, 8, 8)


def test_a_step_costs_one_forward_and_what_one_value_fools_is_done() -> None:
    model, x, y = model_and_batch()
    y[::2] = (y[::2] + 1) % 4
    sizes = count_examples(model)
    assert torch.equal(sigma_zero(model, x, y, steps=5)[::2], x[::2])
    assert sizes[:2] == [8, 4] and len(sizes) == 5
    one = torch.zeros(2, 192)
    one[1, 0] = 100.0
    easy = linear_net(one, torch.tensor([99.0, 0.0]))
    sizes = count_examples(easy)
    x = torch.full((3, 3, 8, 8), 0.5)
    assert (changed(sigma_zero(easy, x, torch.zeros(3, dtype=torch.long)), x) == 1).all() and len(sizes) < 10


def test_settings_that_make_no_sense() -> None:
    model, x, y = model_and_batch(2)
    for wrong in ({"steps": 0}, {"starts": 0}, {"step_size": 0.0}, {"sigma": 0.0}, {"threshold": 1.5}, {"eps": -1}):
        with pytest.raises(UserError, match="at least"):
            sigma_zero(model, x, y, **wrong)  # type: ignore[arg-type]
