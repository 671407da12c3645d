"""Networks of all kinds are called right, or refused in one line, and are restored afterwards."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import advsphere as adv
from advsphere.calling import answer, in_mode, logits_of
from advsphere.classifier import folds, frozen
from advsphere.deployment import export
from advsphere.errors import UserError
from advsphere.hypersphere import HypersphereHead, attach_head
from advsphere.state import duplicate, kept, network_state, unpacked
from tests.laws import images

THREAT = adv.ThreatModel(norm="linf", eps=0.02)


class Net(nn.Module):
    """A convolution, a batch norm and a head, put together by a function."""

    def __init__(self, forward: Callable[[Net, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(256, 5)
        self.how = forward or (lambda net, x: net.fc(net.body(x).flatten(1)))
        self.body[1].running_var.fill_(0.1)

    def forward(self, x: Tensor) -> Any:
        return self.how(self, x)


def net(forward: Callable[[Net, Tensor], Any] | None = None) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(forward).eval()


class Viewed(torch.autograd.Function):
    """The identity, whose backward flattens by `view`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view(len(grad), -1).view(grad.shape)


LAYOUTS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "view": lambda n, x: n.fc(n.body(x).view(len(x), -1)),
    "view of the images": lambda n, x: n.fc(n.body(x.view(len(x), -1).view(x.shape)).flatten(1)),
    "as_strided": lambda n, x: n.fc(n.body(x.as_strided(x.shape, (192, 64, 8, 1))).flatten(1)),
    "view of large batches": lambda n, x: n.fc(n.body(x).view(len(x), -1) if len(x) > 2 else n.body(x).flatten(1)),
    "view in the backward": lambda n, x: n.fc(n.second(Viewed.apply(n.body(x))).flatten(1)),
    "in place": lambda n, x: n.fc(n.body(x.sub_(0.5)).flatten(1)),
    "in place by .data": lambda n, x: n.fc(n.body(x.data.clamp_(0.2, 0.8) + 0 * x).flatten(1)),
}


@pytest.mark.parametrize("forward", LAYOUTS.values(), ids=LAYOUTS)
def test_memory_layout_and_overwriting(forward: Callable[[Net, Tensor], Tensor]) -> None:
    model, x, y = net(forward), images(4), torch.arange(4)
    given, expected = x.clone(), net(forward)(x.clone()).detach()
    grads = adv.pgd(lambda x: net(forward)(x.clone()), x, y, threat=THREAT, steps=1, step_size=0.01, start="clean")
    with frozen(model, fold=True) as classify:
        for _ in range(2):
            assert torch.allclose(classify(x), expected, atol=1e-5)
        moved = adv.pgd(classify, x, y, threat=THREAT, steps=1, step_size=0.01, start="clean")
    assert torch.equal(x, given) and (moved != grads).float().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_come_in_the_type_of_the_network(dtype: torch.dtype) -> None:
    model, x = net().to(dtype), images(3)
    expected = net().to(dtype)(x.to(dtype)).float()
    with suppress(UserError), frozen(model, dtype=torch.bfloat16, fold=True) as classify:
        classify(x)  # what autocast takes is no rule for calls without it
    with frozen(model) as classify, torch.no_grad():
        logits = classify(x)
    assert logits.dtype == torch.float32 and torch.allclose(logits, expected, atol=0.02)


@pytest.mark.parametrize(
    ("output", "found"),
    [((None, 1), True), ((0, 1), True), ([1, 0], True), ((0,), False), ((), False), ({"out": 1}, False)],
)
def test_the_first_logits_count(output: Any, found: bool) -> None:
    z = torch.ones(2, 3)
    given = {0: torch.zeros(()), 1: z, None: None}
    made = (
        {k: given[v] for k, v in output.items()} if isinstance(output, dict) else type(output)(given[v] for v in output)
    )
    if found:
        assert logits_of(made) is z
    else:
        with pytest.raises(UserError, match="without logits"):
            logits_of(made)


class OneWay(torch.autograd.Function):
    """Its backward fails without a word."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        raise RuntimeError


@pytest.mark.parametrize(
    ("forward", "cause"),
    [
        (lambda n, x: n.fc(n.body(x).flatten(1))[:, None], r"returns \(2, 1, 5\), but logits are"),
        (lambda n, x: n.fc(n.body(x).flatten(1))[:, :1], r"returns \(2, 1\), but .* two outputs"),
        (lambda n, x: n.fc(n.body(x).flatten(1)).argmax(1), r"returns torch.int64, .* logits, before argmax"),
        (lambda n, x: F.embedding(x, n.fc.weight), r"can't take 2 images of shape \(3, 8, 8\): RuntimeError"),
        (
            lambda n, x: n.fc(n.body(x.permute(0, 3, 1, 2)).flatten(1)),
            r"channels last: .* x.permute\(0, 2, 3, 1\)",
        ),
        (lambda n, x: n.fc(n.body(x).flatten(1).detach()), "no gradient reaches the images.*attacks.square"),
        (torch.no_grad()(lambda n, x: n.fc(n.body(x).flatten(1))), "no gradient reaches the images"),
        (lambda n, x: n.fc(n.body(OneWay.apply(x)).flatten(1)), r"no gradient reaches the images \(RuntimeError\)"),
    ],
)
def test_what_can_not_be_attacked_is_refused(forward: Callable[[Net, Tensor], Tensor], cause: str) -> None:
    with pytest.raises(UserError, match=cause) as caught:
        adv.fgsm(net(forward), images(2), torch.arange(2), threat=THREAT)
    assert "\n" not in str(caught.value)


def test_one_image_is_no_batch() -> None:
    with pytest.raises(UserError, match=r"labels \(B,\): x\[None\], y\[None\]"):
        adv.fgsm(net(), images(1)[0], torch.tensor(0), threat=THREAT)


def test_one_squeezed_image_is_one_row() -> None:
    model = net(lambda n, x: n.fc(n.body(x).flatten(1)).squeeze())
    assert answer(model, images(1)).shape == (1, 5)


def test_a_function_is_no_network(tmp_path: Path) -> None:
    for ask in (
        lambda: attach_head(net().forward, scale=5.0),
        lambda: adv.AngularMargin(net().forward, 0.2),
        lambda: export(net().forward, (3, 8, 8), tmp_path / "net", "onnx"),
    ):
        with pytest.raises(UserError, match=r"the model is a method; wrap it in a torch.nn.Module"):
            ask()


def test_lazy_layers_are_refused_until_they_have_a_shape() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
    for ask in (
        lambda: adv.fgsm(model, images(2), torch.arange(2), threat=THREAT),
        lambda: attach_head(model, scale=5.0),
    ):
        with pytest.raises(UserError, match="lazy layer '1' of this Sequential has no shape yet"):
            ask()
    model(images(2))
    attach_head(model, scale=5.0)


def test_exported_scripted_and_frozen_networks() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5)).eval(), images(4)
    sizes = ({0: torch.export.Dim("batch")},)
    kinds = {
        "exported": torch.export.export(model, (x,), dynamic_shapes=sizes).module(),
        "scripted": torch.jit.script(model),
        "frozen": torch.jit.freeze(torch.jit.trace(model, x)),
    }
    for kind in kinds.values():
        with frozen(kind, fold=True) as classify:
            assert torch.allclose(classify(x), model(x), atol=1e-5)
        with pytest.raises(UserError, match=r"from before it was traced, frozen or exported|attach the head first"):
            attach_head(kind, scale=5.0)
    fixed = torch.export.export(model, (x,)).module()
    with pytest.raises(UserError, match=r"can't take 3 images.*dynamic_shapes"):
        adv.fgsm(fixed, x[:3], torch.arange(3), threat=THREAT)


# --- heads ---


class Gated(Net):
    """The last layer that is defined is no head."""

    def __init__(self) -> None:
        super().__init__(lambda n, x: n.fc((n.body(x) * n.gate(n.body(x).mean((2, 3)))[:, :, None, None]).flatten(1)))
        self.gate = nn.Linear(4, 4)


def test_a_layer_whose_outputs_are_not_the_logits_is_refused() -> None:
    model = Gated()
    with pytest.raises(UserError, match=r"has 5 logits, which are not those of its layer 'gate'.*head='fc'"):
        attach_head(model, scale=5.0)
    assert type(model.gate) is nn.Linear and model.training
    attach_head(model, scale=5.0, head="fc")


HEADS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "by keyword": lambda n, x: n.fc(input=n.body(x).flatten(1)),
    "by its forward": lambda n, x: n.fc.forward(n.body(x).flatten(1)),
    "some classes": lambda n, x: n.fc(n.body(x).flatten(1))[:, [3, 0, 1]],
    "with a temperature": lambda n, x: n.fc(n.body(x).flatten(1)) / 2,
    "twice": lambda n, x: (n.fc(n.body(x).flatten(1)) + n.fc(n.body(x.flip(3)).flatten(1))) / 2,
}


@pytest.mark.parametrize("forward", HEADS.values(), ids=HEADS)
def test_a_head_however_it_is_called(forward: Callable[[Net, Tensor], Tensor]) -> None:
    model = net(forward)
    attach_head(model, scale=5.0)
    assert isinstance(model.fc, HypersphereHead) and model(images(2)).abs().max() <= 5.0


COMPUTED: dict[str, Callable[[nn.Module], Any]] = {
    "weight norm": parametrizations.weight_norm,
    "old weight norm": nn.utils.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": partial(prune.l1_unstructured, name="weight", amount=0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
def test_computed_weights(compute: Callable[[nn.Module], Any]) -> None:
    """The head starts with the weight as it is now, and the network is copied, folded and attacked."""
    model, x = net(), images(3)
    compute(model.fc)
    compute(model.body[0])
    model.train()(x).sum().backward()
    with torch.no_grad():
        for p in model.fc.parameters():
            p.mul_(1.5)  # the attribute that holds the computed weight is out of date now
    model.eval()
    expected = model(x).detach()
    with frozen(model, fold=True) as classify, torch.no_grad():
        assert torch.allclose(classify(x), expected, atol=1e-5)
    assert torch.equal(duplicate(model)(x), expected)
    weight = model.fc.weight.detach().clone()
    attach_head(model, scale=5.0)
    assert torch.equal(model.fc.weight, weight) and model(x).abs().max() <= 5.0
    model.train()(x).sum().backward()


def test_hooks_of_the_old_head_move_to_the_new_one() -> None:
    model, seen = net(), list[Tensor]()
    handle = model.fc.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    attach_head(model, scale=5.0)
    seen.clear()
    model(images(2))
    assert len(seen) == 1
    handle.remove()
    model(images(2))
    assert len(seen) == 1


# --- no trace is left ---


class Keeping(Net):
    """A network that counts its forwards in a buffer and keeps features in attributes."""

    def __init__(self) -> None:
        super().__init__(lambda n, x: n.fc(n.kept(n.body(x)).flatten(1)))
        self.calls: Any = nn.Buffer(torch.zeros(()))
        self.seen: list[Tensor] = []

    def kept(self, z: Tensor) -> Tensor:
        self.calls = self.calls + 1
        self.seen.append(z)
        self.last = z
        return z


def test_attempts_leave_no_trace_in_a_network_that_keeps_state() -> None:
    model, x = Keeping().eval(), images(8)
    assert folds(model, x)
    assert all(isinstance(z, Tensor) for z in model.seen) and isinstance(model.calls, Tensor)
    seen = len(model.seen)
    attach_head(model, scale=5.0)
    assert len(model.seen) <= seen + 1
    with kept(model):
        model(x)
        model.extra = 3  # type: ignore[assignment]
    assert not hasattr(model, "extra")


def test_attempts_keep_no_network_alive() -> None:
    """An operation that saves its own output, such as a norm, refers to itself through what is saved."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), HypersphereHead(8 * 6 * 6, 4, scale=15.0)).eval()
    head = weakref.ref(net[-1].weight)
    answer(net, images(2).contiguous(memory_format=torch.channels_last))
    del net
    gc.collect()
    assert head() is None


def test_folding_leaves_out_layers_with_hooks() -> None:
    model, seen = net(), list[Tensor]()
    assert folds(model, images(2))
    model.body[1].register_forward_hook(lambda _, given, output: seen.append(output))
    assert not folds(model, images(2))
    with frozen(model, fold=True) as classify:
        classify(images(2))
    assert seen


def test_modes_are_restored_one_by_one() -> None:
    model = net()
    model.body[1].train()
    with in_mode(model, train=True):
        assert all(module.training for module in model.modules())
    assert model.body[1].training and not model.fc.training


class Versioned(nn.Linear):
    """A layer with extra state that is no tensor."""

    version = 1

    def get_extra_state(self) -> dict[str, Any]:
        return {"version": self.version}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.version = state["version"]


def test_extra_state_travels_as_bytes(tmp_path: Any) -> None:
    model, other = (nn.Sequential(nn.Flatten(), Versioned(192, 5)) for _ in range(2))
    model[1].version = 7  # type: ignore[assignment]
    other.load_state_dict(unpacked(other, network_state(model)))
    assert other[1].version == 7 and torch.equal(other[1].weight, model[1].weight)
    export(model, (3, 8, 8), tmp_path / "w.safetensors", "safetensors")
    third = nn.Sequential(nn.Flatten(), Versioned(192, 5))
    from advsphere.models import load_weights

    load_weights(third, tmp_path / "w.safetensors")
    assert third[1].version == 7


# --- TorchScript, torch.export, torch.compile ---


@pytest.mark.parametrize("switches", [{}, {"normalize_features": False}, {"normalize_weights": False}])
def test_a_head_is_scripted_traced_exported_and_compiled(switches: dict[str, bool]) -> None:
    head, z = HypersphereHead(8, 3, scale=5.0, **switches), torch.randn(4, 8)
    forms = (torch.jit.script(head), torch.jit.trace(head, z), torch.export.export(head, (z,)).module())
    for form in (*forms, torch.compile(head, backend="eager")):
        assert torch.equal(form(z), head(z))


def test_a_network_with_a_head_is_scripted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    attach_head(model, scale=5.0)
    wrapped = adv.PixelClassifier(model, [0.5] * 3, [0.25] * 3).eval()
    assert torch.allclose(torch.jit.script(wrapped)(images(2)), wrapped(images(2)), atol=1e-5)
