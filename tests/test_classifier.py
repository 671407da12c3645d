"""Wrapping, freezing, differentiating and taking apart classifiers."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advsphere.classifier import (
    PixelClassifier,
    answer,
    fooled,
    frozen,
    input_gradient,
    logits_of,
    split,
)
from advsphere.errors import UserError
from advsphere.losses import margin
from tests.laws import assert_same_state, conv_net, global_randomness_untouched, images, labels, mixed, state_of


class Residual(nn.Module):
    """Convolutions that can be folded and some that can't, and control flow that tracing follows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_net(seed=1)[:3]
        self.a, self.a_norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6, affine=False)
        self.shared, self.once, self.twice = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.both, self.both_norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.batch, self.batch_norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, track_running_stats=False)
        self.grouped, self.grouped_norm = nn.Conv2d(6, 12, 3, groups=3, bias=False), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.a_norm(self.a(x)).relu()
        x = self.once(self.shared(x)) + self.twice(self.shared(x))  # one convolution, two norms
        y = self.both(x)
        x = self.both_norm(y) + y  # its output is used beside the norm too
        x = self.batch_norm(self.batch(x))  # normalises by the batch in eval mode as well
        x = self.grouped_norm(self.grouped(x)).relu()
        return self.head(x.mean((2, 3)))


def residual(seed: int = 0) -> Residual:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Residual()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3)
    return net


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_frozen_restores_modes_and_requires_grad_one_by_one(fold: bool, mode: Any) -> None:
    model = mixed(conv_net(dropout=0.5))
    before, modules = state_of(model), list(model.modules())
    with frozen(model, fold=fold, mode=mode):
        assert all(module.training == (mode == "train") for module in modules)
        assert not any(p.requires_grad for p in model.parameters())
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("fold", [False, True])
def test_frozen_restores_after_an_exception_inside(fold: bool) -> None:
    model = mixed(conv_net())
    before = state_of(model)
    with pytest.raises(ZeroDivisionError), frozen(model, fold=fold) as classify:
        classify(images(2))
        raise ZeroDivisionError
    assert_same_state(before, state_of(model))


def test_frozen_restores_after_an_exception_while_it_sets_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import advsphere.folding

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    model = mixed(conv_net())
    before = state_of(model)
    for name in ("_folded", "replace_modules"):
        with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
            patched.setattr(advsphere.folding, name, fail)
            with frozen(model, fold=True):
                raise AssertionError("not reached")
        assert_same_state(before, state_of(model))


def test_frozen_restores_modes_of_modules_that_have_their_own_idea_of_train() -> None:
    class AlwaysEval(nn.BatchNorm2d):
        def train(self, mode: bool = True) -> Self:
            return super().train(False)

    model = nn.Sequential(nn.Conv2d(3, 4, 1), AlwaysEval(4), nn.Flatten(), nn.Linear(256, 4))
    model[1].training = True
    with frozen(model):
        assert not model[1].training
    assert model[1].training


def test_frozen_inside_frozen() -> None:
    model = mixed(conv_net())
    before = state_of(model)
    with frozen(model, fold=True) as outer:
        expected = outer(images(3))
        with frozen(model, fold=True) as inner:
            assert torch.allclose(inner(images(3)), expected, atol=1e-5)
        assert torch.equal(outer(images(3)), expected) and not model.training
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("build", [conv_net, residual, lambda: PixelClassifier(residual(), [0.5] * 3, [0.2] * 3)])
def test_folding_changes_nothing_but_the_rounding(build: Any) -> None:
    model, x = build(), images(5)
    before = state_of(model)
    with frozen(model) as classify, torch.no_grad():
        plain = classify(x)
    with frozen(model, fold=True) as classify, torch.no_grad():
        folded = classify(x)
        assert torch.equal(classify(x), folded)
    assert (plain - folded).abs().max() <= 1e-5 * plain.abs().max()
    assert_same_state(before, state_of(model))
    with frozen(model) as classify, torch.no_grad():
        assert torch.equal(classify(x), plain), "bit for bit as before"


def test_folding_happens_where_it_is_exact_and_nowhere_else() -> None:
    model = residual()
    with frozen(model, fold=True):
        folded = {name for name, module in model.named_modules() if isinstance(module, nn.Identity)}
    assert folded == {"stem.1", "a_norm", "grouped_norm"}


def test_input_gradients_survive_folding() -> None:
    model, x, y = conv_net().double(), images(4).double(), labels(4)
    with frozen(model) as classify:
        plain = input_gradient(classify, x, y, margin)
    with frozen(model, fold=True) as classify:
        folded = input_gradient(classify, x, y, margin)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(plain, folded, strict=True))


def test_train_mode_is_not_folded_and_normalises_by_the_batch() -> None:
    model, x = conv_net().double(), images(6).double()  # normalising by a small variance magnifies the rounding
    with torch.no_grad():
        expected = conv_net().double().train()(x)
    with frozen(model, fold=True, mode="train") as classify, torch.no_grad():
        torch.testing.assert_close(classify(x), expected)


def test_folding_follows_a_network_whose_modules_are_replaced() -> None:
    model, x = conv_net(), images(3)
    with frozen(model, fold=True) as classify:
        classify(x)
    model[1] = nn.GroupNorm(2, 6)
    model[3] = nn.Conv2d(6, 8, 3, stride=2)
    with frozen(model, fold=True) as classify, torch.no_grad():
        folded = classify(x)
        assert isinstance(model[1], nn.GroupNorm) and isinstance(model[4], nn.Identity)
    assert torch.allclose(folded, model.eval()(x), atol=1e-5)


def test_new_weights_are_folded_anew() -> None:
    model, x = conv_net(), images(3)
    for _ in range(2):
        with frozen(model, fold=True) as classify, torch.no_grad():
            folded = classify(x)
        assert torch.allclose(folded, model.eval()(x), atol=1e-5)
        with torch.no_grad():
            model[0].weight.mul_(1.5)
            model[1].running_mean.add_(0.3)


def test_what_can_not_be_traced_is_left_unfolded() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = conv_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if x.sum() > 0 else self.net(-x)

    model, x = Branching(), images(2)
    with frozen(model, fold=True) as classify, torch.no_grad():
        torch.testing.assert_close(classify(x), conv_net().eval()(x))  # another memory layout, so other bits


def test_frozen_hands_out_float32_logits_in_low_precision() -> None:
    seen: list[torch.dtype] = []
    model, x = conv_net(), images(6)
    model[8].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    with frozen(model, dtype=torch.bfloat16) as classify, torch.no_grad():
        classify(x)
        seen.clear()  # the first forward tries memory layouts
        low = classify(x)
    with frozen(model) as classify, torch.no_grad():
        high = classify(x)
    assert seen == [torch.bfloat16, torch.float32] and low.dtype == torch.float32
    assert not torch.equal(low, high) and (low - high).abs().max() < 0.1 * high.abs().max()
    with frozen(conv_net().double()) as classify:
        assert classify(x.double()).dtype == torch.float64


def test_frozen_touches_neither_images_nor_global_randomness() -> None:
    x = images(2)
    with global_randomness_untouched(), frozen(conv_net(dropout=0.5), fold=True) as classify:
        assert torch.equal(classify(x), classify(x))
    assert torch.equal(x, images(2)) and x.is_contiguous()


def test_the_network_sees_channels_last() -> None:
    model, seen = conv_net(), []
    model[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    with frozen(model) as classify:
        classify(images(2))
    assert seen == [False, True, True], "tried on two images contiguous and channels last, and then used"
    flat = nn.Linear(5, 2)
    with frozen(flat) as classify:
        assert classify(torch.zeros(3, 5)).shape == (3, 2), "what is no image is passed as it is"


class Output(OrderedDict):
    """As Hugging Face's: a mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


Z = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    "output",
    [
        Z,
        (Z, Z + 1),
        [Z, Z + 1],
        {"features": Z + 1, "logits": Z},
        Output(loss=Z + 1, logits=Z),
        SimpleNamespace(logits=Z, hidden_states=()),
        (Output(logits=Z), Z + 1),
    ],
)
def test_logits_of_whatever_networks_return(output: Any) -> None:
    assert logits_of(output) is Z


@pytest.mark.parametrize("output", [None, {}, {"output": Z}, (), [], "logits", 3.0, SimpleNamespace(out=Z)])
def test_logits_of_nothing_known_is_refused(output: Any) -> None:
    with pytest.raises(UserError, match=f"{type(output).__name__} without logits"):
        logits_of(output)


def test_pixel_classifier_normalises_and_unwraps() -> None:
    class Tupled(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {"logits": x.mean((2, 3))}, "more"

    model, x = PixelClassifier(Tupled(), [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]), images(4)
    expected = (x.mean((2, 3)) - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.25, 2.0])
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert model.mean.shape == model.std.shape == (1, 3, 1, 1) and set(model.state_dict()) == {"mean", "std"}


def test_fooled_counts_what_is_not_predicted_and_what_is_no_number() -> None:
    nan = float("nan")
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [nan, 0.0], [0.0, nan], [1.0, 1.0]])
    assert fooled(z, torch.tensor([0, 0, 0, 0, 0])).tolist() == [False, True, True, True, False]
    assert fooled(z[:0], torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_input_gradient_is_that_of_the_summed_loss_and_leaves_the_weights_alone() -> None:
    model, x, y = conv_net().eval().double(), images(3).double(), labels(3)
    leaf = x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)

    def loss(z: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(z, target, reduction="none")

    with torch.no_grad():
        logits, values, grad = input_gradient(model, x, y, loss)
    assert (
        torch.allclose(grad, expected) and torch.allclose(logits, model(x)) and torch.allclose(values, loss(logits, y))
    )
    assert not (logits.requires_grad or values.requires_grad or grad.requires_grad or x.requires_grad)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("build", [conv_net, residual, lambda: PixelClassifier(residual(), [0.5] * 3, [0.2] * 3)])
def test_split_reproduces_the_logits(build: Any) -> None:
    model, x = build().eval(), images(4)
    before = state_of(model)
    features, head, scale = split(model)
    assert torch.equal(head(features(x)), model(x)) and features(x).dim() == 2 and scale == 1.0
    assert_same_state(before, state_of(model))


def test_features_are_differentiable_and_leave_no_hook_after_an_error() -> None:
    model, x = conv_net().eval(), images(2).requires_grad_(True)
    features = split(model).features
    features(x).sum().backward()
    assert x.grad is not None and x.grad.any()
    with pytest.raises(RuntimeError):
        features(torch.zeros(2, 5, 8, 8))
    assert not model[-1]._forward_pre_hooks


def test_split_by_name_and_of_a_layer_that_is_never_called() -> None:
    class Projecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.projection = nn.Linear(12, 4), nn.Linear(12, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1))

    model, x = Projecting(), images(2, size=2)
    assert torch.equal(split(model, head="fc").features(x), x.flatten(1))
    with pytest.raises(UserError, match="never runs the Linear"):
        split(model).features(x)


class Awkward(nn.Module):
    """A network that flattens by `view`, overwrites its input, and has its convolution under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.handle, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.body = nn.Sequential(self.handle, self.norm, nn.ReLU())
        self.head = nn.Linear(4 * 36, 4)
        assert self.norm.running_var is not None
        self.norm.running_var.fill_(0.01)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x -= 0.5
        z = self.body(x)
        return self.head(z.view(len(x), -1)), z


def awkward() -> Awkward:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Awkward().eval()


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("preset", [torch.channels_last, torch.contiguous_format])
def test_a_network_gets_a_copy_of_the_images_in_a_layout_that_it_can_take(fold: bool, preset: Any) -> None:
    model, x = awkward(), images(3).contiguous(memory_format=preset)
    given = x.clone()
    with torch.no_grad(), frozen(model, fold=fold) as classify:
        seen = [classify(x) for _ in range(2)]
    expected = model(x.clone().contiguous())[0]
    assert torch.equal(x, given)
    assert all(torch.allclose(logits, expected, atol=1e-5) for logits in seen)


def test_a_layout_that_fails_half_way_leaves_the_running_statistics_as_one_forward_does() -> None:
    first, second = awkward().train(), awkward().train()
    answer(first, images(3), torch.channels_last)
    second(images(3).contiguous())
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


def test_a_network_whose_forward_was_changed_is_not_folded_by_its_old_trace() -> None:
    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.normalised = conv_net(seed=1), True

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if self.normalised else self.net[2:](self.net[0](x))

    model, x = Switched().eval(), images(3)
    for model.normalised in (True, False):
        with torch.no_grad(), frozen(model, fold=True) as classify:
            assert torch.allclose(classify(x), model.net(x) if model.normalised else model(x), atol=1e-4)


def test_logits_have_the_type_of_the_images() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()

    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.double())

    with frozen(Inside()) as classify:
        assert classify(images(2)).dtype == torch.float32 and classify(images(2).double()).dtype == torch.float64


def test_features_of_a_compiled_network_and_of_a_head_called_by_keyword() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(192, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=x.flatten(1))

    for model in (Named(), torch.compile(Named(), backend="eager")):
        model(images(2))
        assert torch.equal(split(model).features(images(2)), images(2).flatten(1))


def test_a_scale_for_each_class_is_no_scale_of_the_head() -> None:
    model = conv_net()
    head = model[-1]
    cases: list[tuple[Any, float]] = [(torch.ones(4), 1.0), (torch.tensor([3.0]), 3.0), (2, 2.0)]
    for scale, expected in cases:
        head.scale = scale
        assert split(model).scale == expected
