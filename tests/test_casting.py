"""Convolutions hold cast weights inside, and get their own back, with the gradients that autocast gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advsphere.casting import CastWeights
from advsphere.classifier import frozen
from tests.laws import conv_net, images


class Tied(nn.Module):
    """Two convolutions with one weight, one of which runs twice, and a weight that is normalised before its use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.head = nn.Linear(3, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.second(self.first(x)))
        return x.mean((2, 3)).float() @ nn.functional.normalize(self.head.weight, dim=1).T


def gradients(model: nn.Module, *, cast: bool, parts: int = 1) -> dict[str, Tensor]:
    for x in images(6).split(6 // parts):
        inside = CastWeights(model, torch.bfloat16 if cast else None)
        with torch.autocast("cpu", dtype=torch.bfloat16), inside:
            loss = model(x).float().square().sum()
        loss.backward()
        inside.hand_over()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("build", [conv_net, Tied])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_gradients_are_those_of_autocast(build: type[nn.Module], parts: int) -> None:
    torch.manual_seed(0)
    model = build()
    state, own = model.state_dict(), list(model.parameters())
    plain = gradients(model, cast=False, parts=parts)
    model.zero_grad()
    cast = gradients(model, cast=True, parts=parts)
    assert all(torch.equal(cast[name], plain[name]) for name in plain)
    assert all(a is b for a, b in zip(model.parameters(), own, strict=True)), "its own parameters, in their order"
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_only_a_forward_sees_cast_weights() -> None:
    """An attack may also run the network itself, in float32."""
    model, x = conv_net().eval(), images(2)
    with frozen(model, dtype=torch.bfloat16) as classify, torch.no_grad():
        assert classify(x).isfinite().all()
        assert {p.dtype for p in model.parameters()} == {torch.float32} == {model(x).dtype}
        with frozen(model) as exact:
            assert torch.allclose(exact(x), model(x), atol=1e-6)


def test_a_weight_with_a_hook_keeps_it() -> None:
    model, seen = conv_net(), list[Tensor]()
    model[0].weight.register_hook(seen.append)
    gradients(model, cast=True)
    assert len(seen) == 1 and seen[0].dtype == torch.float32
