"""From models of which the truth is known to the verdict: everything between is the real suite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advsphere.comparison.gain import measure_gains
from advsphere.evaluation import Effort, Evaluation, evaluate
from advsphere.threat import ThreatModel

N = 100
THREAT = ThreatModel(norm="linf", eps=0.05)
QUICK = Effort(steps=10, guides=2)


class Louder(nn.Module):
    """The same predictions, from logits so large that softmax cross-entropy has no gradient in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 1e5 * self.model(x)
        return logits


def linear(open_side: float) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model of images whose last pixel is always grey: what it weighs there (`open_side`) tells nothing of the
    class, and opens a door to the attacker.
    """
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 16, 4)).eval()
    images = torch.rand(N, 1, 4, 4, generator=generator)
    images[:, 0, 3, 3] = 0.5
    with torch.no_grad():
        weight = torch.randn(4, 16, generator=generator)
        weight[:, 15] = 0.0
        # Centred, so that all classes occur among these images.
        bias = -(images.flatten(1) @ weight.T).mean(0)
        model[1].weight.copy_(weight)
        model[1].bias.copy_(bias)
        labels = model(images).argmax(1)
        sides = open_side * torch.tensor([1.0, -1.0, 2.0, -2.0])
        model[1].weight[:, 15] = sides
        model[1].bias.copy_(bias - 0.5 * sides)
    return model, images, labels


def judged(model: nn.Module, images: Tensor, labels: Tensor) -> Evaluation:
    return evaluate(model, images, labels, threat=THREAT, suite="survival", effort=QUICK)


@pytest.fixture(scope="module")
def exposed() -> Evaluation:
    return judged(*linear(8.0))


def test_a_gain_by_vanishing_gradients_does_not_survive(exposed: Evaluation) -> None:
    model, images, labels = linear(8.0)
    louder = judged(Louder(model), images, labels)
    found = measure_gains([exposed], [louder])
    assert found.verdict == "less than half survives"
    assert found.gain("PGD-10").difference > 0.1 and abs(found.gain("worst case").difference) < 0.02
    raised = {sign.check for sign in louder.raised}
    assert "vanishing gradients" in raised and not exposed.raised


def test_a_gain_of_robustness_survives(exposed: Evaluation) -> None:
    found = measure_gains([exposed], [judged(*linear(0.0))])
    assert found.verdict == "more than half survives" and found.gain("clean").difference == 0
