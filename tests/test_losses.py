"""Each attack loss against its formula, computed naively in float64, and at the ends of its range."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from advsphere import losses
from advsphere.errors import UserError
from advsphere.losses import Loss, at_scale, cross_entropy, dlr, dlr_targeted, kl, log_odds, margin, smoothed

B, K = 12, 6
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])


def logits(dtype: torch.dtype = torch.float64, scale: float = 3.0) -> Tensor:
    return (scale * torch.randn(B, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)


def labels() -> Tensor:
    return torch.arange(B) % K


def pairs() -> Tensor:
    return torch.stack([labels(), (labels() + 1 + torch.arange(B) // K) % K], 1)


def probabilities() -> Tensor:
    return torch.randn(B, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)


def naive_log_odds(z: list[float], y: int) -> float:
    others = torch.tensor([v for j, v in enumerate(z) if j != y], dtype=torch.float64)
    return float(others.exp().sum().log() - z[y])


def naive_cross_entropy(z: list[float], y: int) -> float:
    e = torch.tensor(z, dtype=torch.float64).exp()
    return float(-(e[y] / e.sum()).log())


def naive_margin(z: list[float], y: int) -> float:
    return max(v for j, v in enumerate(z) if j != y) - z[y]


def naive_dlr(z: list[float], y: int) -> float:
    top = sorted(z, reverse=True)
    return -(z[y] - max(v for j, v in enumerate(z) if j != y)) / (top[0] - top[2])


def naive_dlr_targeted(z: list[float], pair: list[int]) -> float:
    top = sorted(z, reverse=True)
    return -(z[pair[0]] - z[pair[1]]) / (top[0] - 0.5 * (top[2] + top[3]))


def naive_kl(z: list[float], p: list[float]) -> float:
    q = torch.tensor(z, dtype=torch.float64).softmax(0)
    return sum(float(a * (torch.tensor(a).log() - b.log())) for a, b in zip(p, q, strict=True))


FORMULAS: dict[str, tuple[Callable[..., Tensor], Callable[..., float], Callable[[], Tensor]]] = {
    "log_odds": (log_odds, naive_log_odds, labels),
    "cross_entropy": (cross_entropy, naive_cross_entropy, labels),
    "margin": (margin, naive_margin, labels),
    "dlr": (dlr, naive_dlr, labels),
    "dlr_targeted": (dlr_targeted, naive_dlr_targeted, pairs),
    "kl": (kl, naive_kl, probabilities),
}
formulas = pytest.mark.parametrize(("loss", "naive", "target"), FORMULAS.values(), ids=FORMULAS.keys())


OTHERS = ("at_scale", "is_soft", "smoothed", "widen")


def test_every_loss_has_a_formula() -> None:
    ours = {name for name, value in vars(losses).items() if getattr(value, "__module__", "") == "advsphere.losses"}
    assert {name for name in ours if not name.startswith("_")} == {
        *FORMULAS,
        "at_scale",
        "is_soft",
        "smoothed",
        "widen",
    }


@formulas
@DTYPES
def test_equals_its_formula(
    loss: Callable[..., Tensor], naive: Callable[..., float], target: Callable[[], Tensor], dtype: torch.dtype
) -> None:
    """In float32 or wider whatever the logits come in; one value for each example."""
    z = logits(dtype)
    values = loss(z, target())
    expected = [naive(row, t) for row, t in zip(z.double().tolist(), target().tolist(), strict=True)]
    assert values.shape == (B,) and values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert values.tolist() == pytest.approx(expected, rel=1e-7 if dtype == torch.float64 else 2e-5, abs=1e-6)


@formulas
def test_examples_do_not_mix_and_the_gradient_is_right(
    loss: Callable[..., Tensor], naive: Callable[..., float], target: Callable[[], Tensor]
) -> None:
    z = logits().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: loss(z, target()), z)
    jacobian = torch.autograd.functional.jacobian(lambda z: loss(z, target()), z.detach())
    assert not jacobian[~torch.eye(B, dtype=torch.bool)].any()
    index = torch.tensor([5, 2])
    assert torch.equal(loss(z[index], target()[index]), loss(z, target())[index])


@formulas
@pytest.mark.parametrize("scale", [1.0, 1000.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_with_a_finite_gradient_at_any_scale(
    loss: Callable[..., Tensor], naive: Callable[..., float], target: Callable[[], Tensor], scale: float,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    z = logits(dtype, scale).requires_grad_(True)
    values = loss(z, target())
    values.sum().backward()
    assert values.isfinite().all() and z.grad is not None and z.grad.isfinite().all()


def test_log_odds_keeps_its_gradient_where_cross_entropy_loses_it() -> None:
    cosines = torch.tensor([[0.9, 0.1, -0.3], [0.5, 0.39, 0.2]])
    y = torch.tensor([0, 0])
    z = (1000 * cosines).requires_grad_(True)
    (softmax_grad,) = torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), z)
    assert not softmax_grad.any(), "not saturated, so that this would say nothing"
    (grad,) = torch.autograd.grad(log_odds(z, y).sum(), z)
    assert torch.allclose(grad, torch.tensor([[-1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]]))
    # Mildly confident, where both have one: the same direction.
    z = (10 * cosines).double().requires_grad_(True)
    (ours,) = torch.autograd.grad(log_odds(z, y).sum(), z)
    (theirs,) = torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), z)
    assert torch.allclose(F.normalize(ours), F.normalize(theirs), atol=1e-6)


@given(st.lists(st.floats(-300, 300), min_size=2, max_size=8), st.data())
def test_cross_entropy_is_softplus_of_log_odds(row: list[float], data: st.DataObject) -> None:
    z, y = torch.tensor([row], dtype=torch.float64), torch.tensor([data.draw(st.integers(0, len(row) - 1))])
    assert cross_entropy(z, y).item() == pytest.approx(F.cross_entropy(z, y).item(), rel=1e-8, abs=3e-9)
    assert cross_entropy(z, y).item() == pytest.approx(F.softplus(log_odds(z, y), threshold=1e9).item(), abs=3e-9)
    if len(row) == 2:
        assert log_odds(z, y).item() == pytest.approx(margin(z, y).item())


def test_cross_entropy_of_a_certain_and_of_a_hopeless_prediction() -> None:
    z = torch.tensor([[1000.0, 0.0, 0.0], [-1000.0, 0.0, 0.0]])
    assert cross_entropy(z, torch.tensor([0, 0])).tolist() == pytest.approx([0.0, 1000.0 + 0.6931472])


def test_margin_is_positive_exactly_where_the_label_is_not_predicted() -> None:
    z, y = logits(), labels()
    assert torch.equal(margin(z, y) > 0, z.argmax(1) != y)
    assert margin(torch.tensor([[2.0, 2.0, 1.0]]), torch.tensor([0])).item() == 0


@pytest.mark.parametrize(("loss", "target"), [(dlr, labels()), (dlr_targeted, pairs())])
def test_dlr_does_not_see_shift_and_scale(loss: Callable[..., Tensor], target: Tensor) -> None:
    z = logits()
    for changed in (z + 100, z * 1000, z * 1e-6, 7 * z - 3):
        assert torch.allclose(loss(changed, target), loss(z, target), rtol=1e-6)
    assert not torch.allclose(loss(-z, target), loss(z, target))


def test_dlr_of_a_right_prediction_is_at_most_one_below_zero() -> None:
    z = logits()
    assert ((dlr(z, z.argmax(1)) >= -1) & (dlr(z, z.argmax(1)) < 0)).all() and (dlr(z, z.argmin(1)) > 0).all()


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_dlr_of_equal_logits_is_finite(value: float) -> None:
    z = torch.full((2, K), value, requires_grad=True)
    (dlr(z, torch.tensor([0, 1])) + dlr_targeted(z, torch.tensor([[0, 1], [2, 3]]))).sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()


@pytest.mark.parametrize(("loss", "classes"), [(dlr, 2), (dlr_targeted, 3)])
def test_too_few_classes_for_dlr(loss: Callable[..., Tensor], classes: int) -> None:
    target = torch.zeros(4, dtype=torch.long) if loss is dlr else torch.zeros(4, 2, dtype=torch.long)
    with pytest.raises(UserError, match=f"at least {classes + 1} classes, the model has {classes}.*margin"):
        loss(torch.randn(4, classes, generator=torch.Generator().manual_seed(0)), target)
    assert loss(torch.eye(4, classes + 1), target).shape == (4,)


def test_kl_against_torch_distributions() -> None:
    expected = kl_divergence(Categorical(probs=probabilities()), Categorical(logits=logits()))
    assert torch.allclose(kl(logits(), probabilities()), expected)
    assert kl(logits(), logits().softmax(1)).abs().max() < 1e-12


def test_kl_where_a_probability_is_zero() -> None:
    """0 log 0 = 0, and the gradients with respect to both sides are numbers."""
    z = torch.tensor([[900.0, 0.0, -900.0]], requires_grad=True)
    clean = torch.tensor([[800.0, 790.0, -50.0]], requires_grad=True)
    p = clean.softmax(1)
    assert p[0, 2] == 0
    value = kl(z, p)
    value.sum().backward()
    double = clean.detach().double().requires_grad_(True)
    exact = (double.softmax(1) * (double.log_softmax(1) - z.detach().double().log_softmax(1))).sum()
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(exact, double)
    assert clean.grad is not None and torch.allclose(clean.grad.double(), gradient, atol=1e-4)
    assert z.grad is not None and z.grad.isfinite().all()


@pytest.mark.parametrize("loss", [log_odds, cross_entropy, margin])
def test_at_scale_is_the_loss_of_scaled_logits(loss: Callable[..., Tensor]) -> None:
    z, y = logits(), labels()
    assert torch.allclose(at_scale(loss, 1 / 15)(z, y), loss(z / 15, y))
    assert torch.allclose(at_scale(margin, 4.0)(z, y), 4 * margin(z, y))


def test_at_scale_widens_before_it_scales() -> None:
    """A low-precision logit times a factor keeps the digits it has."""
    z = torch.tensor([[100.5, 3.0, 1.0]], dtype=torch.bfloat16)
    assert at_scale(margin, 1 / 15)(z, torch.tensor([0])).item() == pytest.approx((3.0 - z[0, 0].item()) / 15, rel=1e-6)


@formulas
def test_an_empty_batch_has_no_values(
    loss: Callable[..., Tensor], naive: Callable[..., float], target: Callable[[], Tensor]
) -> None:
    assert loss(logits()[:0], target()[:0]).shape == (0,)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
def test_label_smoothing_is_torchs(share: float) -> None:
    found = smoothed(cross_entropy, share)(logits(), labels())
    expected = F.cross_entropy(logits(), labels(), reduction="none", label_smoothing=share)
    torch.testing.assert_close(found, expected)


def test_label_smoothing_keeps_another_loss_and_low_precision() -> None:
    found = smoothed(margin, 0.2)(logits(torch.bfloat16), labels())
    exact = logits(torch.bfloat16).double()
    expected = 0.8 * margin(exact, labels()) - 0.2 * exact.log_softmax(1).mean(1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected)


def test_soft_labels_are_the_mean_over_their_classes() -> None:
    """Known answers: a row with one class is that label's loss, and the loss is linear in the probabilities."""
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, other = torch.arange(6) % 5, torch.arange(6) % 4
    hard = F.one_hot(y, 5).double()
    mixed = 0.3 * hard + 0.7 * F.one_hot(other, 5)
    for loss in (cross_entropy, smoothed(cross_entropy, 0.1)):
        torch.testing.assert_close(loss(z, hard), loss(z, y))
        torch.testing.assert_close(loss(z, mixed), 0.3 * loss(z, y) + 0.7 * loss(z, other))
    expected = F.cross_entropy(z, mixed, reduction="none")
    torch.testing.assert_close(cross_entropy(z, mixed), expected)
    assert cross_entropy(1e4 * z, mixed).isfinite().all()
    entropy = -(mixed * mixed.clamp(min=1e-30).log()).sum(1)
    torch.testing.assert_close(kl(z, mixed), cross_entropy(z, mixed) - entropy)


@pytest.mark.parametrize("loss", [log_odds, margin, dlr])
@pytest.mark.parametrize("labels", [torch.full((2, 4), 0.25), torch.eye(4)[:2].long(), torch.zeros(2, 1).long()])
def test_losses_of_one_class_and_its_rivals_refuse_other_labels(loss: Loss, labels: Tensor) -> None:
    with pytest.raises(UserError, match=r"takes class numbers \(B,\), not .* use losses.cross_entropy for soft labels"):
        loss(torch.randn(2, 4), labels)


@pytest.mark.parametrize("loss", [log_odds, margin, cross_entropy])
def test_a_label_without_a_logit_is_named(loss: Loss) -> None:
    with pytest.raises(UserError, match="the labels go from 1 to 3, but there are 3 logits; number the classes from 0"):
        loss(torch.zeros(3, 3), torch.tensor([1, 2, 3]))
