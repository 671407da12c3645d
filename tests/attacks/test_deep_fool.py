"""DeepFool: one step on a linear model, the paper's iteration on another, and what it spends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import deepfool
from advsphere.attacks.hyperplane import DUAL
from advsphere.classifier import fooled
from advsphere.errors import UserError
from advsphere.threat import Norm, ThreatModel
from tests.laws import conv_net, count_examples, images, linear_net

norms = pytest.mark.parametrize("norm", ["l2", "linf"])


def model_and_batch(n: int = 8, classes: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    """In float64, and nothing misclassified."""
    model, x = conv_net(classes=classes).double().eval(), images(n).double()
    with torch.no_grad():
        return model, x, model(x).argmax(1)


@norms
def test_one_step_to_the_nearest_of_several_boundaries_of_a_linear_model(norm: Norm) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 192, generator=generator).double()
    model, x = linear_net(weight), images(10, low=0.4, high=0.6).double()
    with torch.no_grad():
        logits = model(x)
    y, wide = logits.argmax(1), (-1e3, 1e3)
    values = logits.gather(1, y[:, None]) - logits
    steep = torch.linalg.vector_norm(weight - weight[y][:, None], DUAL[norm], dim=2)
    exact = (values / steep).masked_fill(nn.functional.one_hot(y, 5).bool(), torch.inf).amin(1)
    sizes = count_examples(model)
    x_adv = deepfool(model, x, y, norm=norm, bounds=wide)
    distance = ThreatModel(norm=norm, eps=0.0).distance(x_adv, x)
    assert fooled(model(x_adv), y).all() and torch.allclose(distance, 1.02 * (exact + 1e-4))
    assert sizes[:3] == [10, 10, 10]


def papers_iteration(
    model: nn.Module, x: Tensor, y: Tensor, norm: Norm, overshoot: float = 0.02, steps: int = 50
) -> tuple[Tensor, int]:
    """Algorithm 2 for one image, its projections in closed form and without a box; and how many steps it took."""
    total = torch.zeros_like(x)
    for step in range(steps):
        point = (x + (1 + overshoot) * total).requires_grad_(True)
        logits = model(point[None])[0]
        if logits.argmax() != y:
            return point.detach(), step
        options = []
        for j in range(len(logits)):
            if j != y:
                value = logits[j] - logits[y]
                (w,) = torch.autograd.grad(value, point, retain_graph=True)
                options.append((float(value.detach().abs() / w.norm(DUAL[norm])), w))
        length, w = min(options, key=lambda option: option[0])
        total = total + (length + 1e-4) * (w.sign() if norm == "linf" else w / w.norm())
    return (x + (1 + overshoot) * total).detach(), steps


@norms
def test_the_papers_iteration_where_no_pixel_meets_the_box(norm: Norm) -> None:
    model, x, y = model_and_batch()
    sizes = count_examples(model)
    x_adv = deepfool(model, x, y, norm=norm, bounds=(-50.0, 50.0))
    spent, taken = sum(sizes), 0
    for i in range(len(x)):
        point, steps = papers_iteration(model, x[i], y[i], norm)
        assert torch.allclose(x_adv[i], point, atol=1e-9)
        taken += steps
    assert taken > len(x), "some need several steps"
    assert len(x) + taken <= spent < len(x) + 2 * taken, "one forward for each point, and some again"


@norms
def test_fools_all_and_keeps_to_the_box(norm: Norm) -> None:
    model, x, y = model_and_batch(32)
    x_adv = deepfool(model, x, y, norm=norm)
    assert fooled(model(x_adv), y).all() and x_adv.min() >= 0 and x_adv.max() <= 1


def test_what_is_wrong_already_is_returned_as_it_is() -> None:
    model, x, y = model_and_batch()
    y[::2] = (y[::2] + 1) % 4
    sizes = count_examples(model)
    assert torch.equal(deepfool(model, x, y)[::2], x[::2])
    assert sizes[:2] == [8, 4]


def test_steps_that_do_not_suffice_return_the_clean_image() -> None:
    model, x, y = model_and_batch()
    assert torch.equal(deepfool(model, x, y, steps=0), x)
    flat = linear_net(torch.zeros(4, 192).double())
    assert torch.equal(deepfool(flat, x, torch.zeros_like(y)), x)


def test_a_verdict_at_one_eps_returns_only_what_is_within() -> None:
    model, x, y = model_and_batch(32)
    free = deepfool(model, x, y, norm="linf")
    distance = (free - x).abs().amax((1, 2, 3))
    eps = float(distance.median())
    judged = deepfool(model, x, y, norm="linf", eps=eps)
    within = (distance <= eps).view(-1, 1, 1, 1)
    assert torch.equal(judged, torch.where(within, free, x)) and 0 < within.sum() < 32


@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_any_number_of_classes(classes: int) -> None:
    model, x, y = model_and_batch(4, classes)
    assert fooled(model(deepfool(model, x, y)), y).all()


def test_settings_that_make_no_sense() -> None:
    model, x, y = model_and_batch(2)
    with pytest.raises(UserError, match="at least one"):
        deepfool(model, x, y, classes=1)
    with pytest.raises(UserError, match="norm"):
        deepfool(model, x, y, norm="l0")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="fab"):
        deepfool(model, x, y, norm="l1")
    with pytest.raises(UserError, match="radius"):
        deepfool(model, x, y, eps=-1.0)
