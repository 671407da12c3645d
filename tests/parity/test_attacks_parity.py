"""FGSM, PGD and MIM against loops written from their papers, with plain softmax cross-entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.attacks import fgsm, mim, pgd
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from tests.laws import conv_net, images, labels

EPS, STEP, STEPS = 8 / 255, 2 / 255, 7
targets = pytest.mark.parametrize("targeted", [False, True])


def gradient(model: nn.Module, x: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """Of the cross-entropy, with its sign turned for a targeted attack."""
    x = x.clone().requires_grad_(True)
    loss = F.cross_entropy(model(x), y, reduction="sum")
    return torch.autograd.grad(-loss if targeted else loss, x)[0]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def batch(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    return conv_net().eval().to(request.param), images(10).to(request.param), labels(10)


Batch = tuple[nn.Module, Tensor, Tensor]


def same(ours: Tensor, theirs: Tensor) -> bool:
    """In float64 to rounding. In float32 the sign of a gradient entry near zero may differ: in one pixel of 1,000."""
    if ours.dtype == torch.float64:
        return torch.allclose(ours, theirs, atol=1e-9)
    return bool(((ours - theirs).abs() > 1e-5).float().mean() < 1e-3)


@targets
def test_fgsm(batch: Batch, targeted: bool) -> None:
    """Goodfellow et al. 2015: x + eps sign(grad)."""
    model, x, y = batch
    expected = torch.clamp(x + EPS * gradient(model, x, y, targeted).sign(), 0, 1)
    assert same(fgsm(model, x, y, threat=ThreatModel(norm="linf", eps=EPS), targeted=targeted), expected)


@targets
def test_pgd_linf(batch: Batch, targeted: bool) -> None:
    """Madry et al. 2018: a uniform start, then signed steps, each put back into ball and box."""
    model, x, y = batch
    rng = Rng(5, torch.arange(10))
    noise = (2 * rng.uniform(x.shape[1:], "start") - 1).to(x.dtype) * EPS
    expected = torch.clamp(x + noise, 0, 1)
    for _ in range(STEPS):
        expected = expected + STEP * gradient(model, expected, y, targeted).sign()
        expected = torch.clamp(torch.max(torch.min(expected, x + EPS), x - EPS), 0, 1)
    threat = ThreatModel(norm="linf", eps=EPS)
    assert same(pgd(model, x, y, threat=threat, steps=STEPS, step_size=STEP, targeted=targeted, rng=rng), expected)


@targets
def test_pgd_l2(batch: Batch, targeted: bool) -> None:
    """Steps along the gradient over its length; the perturbation is scaled back to the ball, then the box."""
    model, x, y = batch
    eps, step = 0.5, 0.15
    expected = x.clone()
    for _ in range(STEPS):
        grad = gradient(model, expected, y, targeted)
        for i in range(len(x)):
            delta = expected[i] + step * grad[i] / grad[i].norm() - x[i]
            expected[i] = torch.clamp(x[i] + delta * min(1.0, eps / delta.norm().item()), 0, 1)
    threat = ThreatModel(norm="l2", eps=eps)
    ours = pgd(model, x, y, threat=threat, steps=STEPS, step_size=step, start="clean", targeted=targeted)
    assert torch.allclose(ours, expected, atol=1e-9 if x.dtype == torch.float64 else 1e-4)


@targets
@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_mim_accumulates_gradients_over_their_l1_norm(batch: Batch, targeted: bool, decay: float) -> None:
    """Dong et al. 2018, eq. 6 and 7: g <- mu g + grad / ||grad||_1, then a step along its sign."""
    model, x, y = batch
    expected, g = x.clone(), torch.zeros_like(x)
    for _ in range(STEPS):
        grad = gradient(model, expected, y, targeted)
        g = decay * g + grad / grad.abs().sum((1, 2, 3), keepdim=True)
        expected = torch.clamp(torch.max(torch.min(expected + STEP * g.sign(), x + EPS), x - EPS), 0, 1)
    threat = ThreatModel(norm="linf", eps=EPS)
    assert same(mim(model, x, y, threat=threat, steps=STEPS, step_size=STEP, decay=decay, targeted=targeted), expected)


def test_mim_is_neither_accumulated_signs_nor_plain_pgd(batch: Batch) -> None:
    """Two common mistakes, and both give other images."""
    model, x, y = batch
    threat = ThreatModel(norm="linf", eps=EPS)
    ours = mim(model, x, y, threat=threat, steps=STEPS, step_size=STEP)
    wrong, g = x.clone(), torch.zeros_like(x)
    for _ in range(STEPS):
        g = g + gradient(model, wrong, y, False).sign()
        wrong = torch.clamp(torch.max(torch.min(wrong + STEP * g.sign(), x + EPS), x - EPS), 0, 1)
    assert not same(ours, wrong)
    assert not same(ours, pgd(model, x, y, threat=threat, steps=STEPS, step_size=STEP, start="clean"))
