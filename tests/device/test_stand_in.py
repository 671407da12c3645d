"""The stand-in device behaves like a GPU: its own memory, no mixed devices, and counts of kernels and waits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from advsphere.losses import cross_entropy
from tests.device.stand_in import DEVICE, counting, dividing_by_reciprocals
from tests.laws import conv_net


def test_it_trains_a_network_to_the_same_bits_as_the_cpu():
    def trained(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), torch.arange(4, device=x.device)).backward()
            optimizer.step()
        return model.state_dict()

    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = conv_net()
    twin = copy.deepcopy(model).to(DEVICE)
    there, here = trained(twin, x.to(DEVICE)), trained(model, x)
    assert all(t.device == DEVICE and torch.equal(t.cpu(), here[name]) for name, t in there.items())


X = torch.arange(6.0).view(2, 3)
MIXED: dict[str, Callable[[Tensor], object]] = {
    "a tensor of the host": lambda t: t + X,
    "concatenation": lambda t: torch.cat([t, X]),
    "a product of matrices": lambda t: t @ X.T,
    "an index on the device into the host": lambda t: X[torch.zeros(1, dtype=torch.int64, device=DEVICE)],
    "writing into the host": lambda t: X.clone().add_(t),
    "numpy": lambda t: t.numpy(),
    "gather by an index on the host": lambda t: t.gather(1, torch.zeros(2, 1, dtype=torch.int64)),
}


@pytest.mark.parametrize("what", MIXED)
def test_devices_do_not_mix(what):
    with pytest.raises((RuntimeError, TypeError), match="device"):
        MIXED[what](X.to(DEVICE))


def test_numbers_and_indices_may_lie_on_the_host():
    t = X.to(DEVICE)
    assert torch.equal((t * torch.tensor(2.0)).cpu(), 2 * X)
    assert torch.equal(t[torch.tensor([1])].cpu(), X[[1]])


COUNTED: dict[str, tuple[Callable[[Tensor], object], int, int]] = {
    "views": (lambda t: t.T[0].view(2).expand(3, 2), 0, 0),
    "an empty tensor": (lambda t: torch.empty_like(t), 0, 0),
    "a product and a sum": (lambda t: (2 * t).sum(), 2, 0),
    "a number": (lambda t: float(t.sum()), 1, 1),
    "a list": (lambda t: t.tolist(), 0, 1),
    "a copy to the host": (lambda t: t.cpu(), 0, 1),
    "a copy from the host": (lambda t: X.to(DEVICE), 0, 1),
    "a copy from the host that does not block": (lambda t: X.to(DEVICE, non_blocking=True), 0, 0),
    "a tensor from Python numbers": (lambda t: torch.tensor([1.0], device=DEVICE), 0, 1),
    "an index on the host": (lambda t: t[torch.tensor([1])], 1, 1),
    "an index on the device": (lambda t: t[torch.zeros(1, dtype=torch.int64, device=DEVICE)], 2, 0),
    "reading by a mask": (lambda t: t[t > 2], 3, 1),
    "a number written by a mask": (lambda t: t.index_put_((t > 2,), torch.tensor(1.0)), 2, 0),
    "a mask that fills": (lambda t: t.masked_fill(t > 2, 0.0), 3, 0),
    "unique": (lambda t: t.unique(), 1, 1),
    "one foreach operator": (lambda t: torch._foreach_add_([t.clone(), t.clone()], 1.0), 3, 0),
}


@pytest.mark.parametrize("what", COUNTED)
def test_counts(what):
    act, kernels, waits = COUNTED[what]
    t = X.to(DEVICE)
    with counting() as counts:
        act(t)
    assert (counts.kernels, counts.waits) == (kernels, waits), (counts.kernel_lines, counts.wait_lines)


def test_counts_belong_to_the_line_that_caused_them():
    logits = torch.zeros(2, 3, device=DEVICE, requires_grad=True)
    with counting() as counts:
        cross_entropy(logits, torch.zeros(2, dtype=torch.int64, device=DEVICE))
    assert {at.split(":")[0] for (at, _), _ in counts.kernel_lines.items()} == {"losses.py", "elsewhere"}


def test_autocast_computes_products_in_low_precision_and_sums_in_float32():
    t = X.to(DEVICE)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        product = t @ t.T
        assert (product.dtype, product.sum().dtype, product.softmax(1).dtype) == (torch.bfloat16, *2 * [torch.float32])


def test_autocast_casts_a_weight_once():
    layer = nn.Linear(3, 3, device=DEVICE)
    with counting() as counts, torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        layer(layer(X.to(DEVICE)))
    assert counts.kernels == 2 + 3, counts.kernel_lines  # two products; weight, bias and input are cast


def test_random_numbers_follow_the_seed():
    def drawn(device: str | torch.device) -> Tensor:
        torch.manual_seed(3)
        return torch.rand(4, device=device).cpu()

    assert torch.equal(drawn(DEVICE), drawn("cpu"))


REFUSED: dict[str, tuple[torch.dtype, Callable[[Tensor], Tensor]]] = {
    "a product of integers": (torch.int64, lambda t: t @ t.T),
    "resizing uint8": (torch.uint8, lambda t: nn.functional.interpolate(t[None, None], size=4, mode="bilinear")),
    "pooling integers": (torch.int64, lambda t: nn.functional.max_pool2d(t[None], 2)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_types_without_a_kernel_are_refused(what):
    dtype, act = REFUSED[what]
    act(X.to(dtype))
    with pytest.raises(NotImplementedError, match="not implemented"):
        act(X.to(dtype).to(DEVICE))


def test_division_by_a_number_of_the_host_is_that_of_cuda():
    levels = torch.arange(256.0)
    with dividing_by_reciprocals():
        there = [levels.to(DEVICE) / 255, levels.to(DEVICE).div_(255), levels.to(DEVICE) / torch.tensor(255.0)]
        exact = levels.to(DEVICE) / torch.full((), 255.0, device=DEVICE)
    assert all(torch.equal(t.cpu(), levels * torch.tensor(1 / 255)) for t in there)
    assert torch.equal(exact.cpu(), levels / 255) and int((there[0].cpu() != levels / 255).sum()) == 126
