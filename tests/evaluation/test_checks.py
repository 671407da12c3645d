"""Each mistake that makes robust accuracy meaningless is refused, with its cause and cure; what can be mended is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import pgd
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.evaluation import AttackSpec, Finding, SuiteContext, preflight
from advsphere.evaluation.suites import attacks_of
from advsphere.losses import dlr
from advsphere.rng import Rng, permutation
from advsphere.threat import Norm, ThreatModel
from tests.evaluation.cases import THREAT, Known, linear, pgd_spec


def outcome(findings: tuple[Finding, ...], check: str) -> Finding:
    (found,) = [f for f in findings if f.check == check]
    return found


class After(nn.Module):
    """A model with something after it."""

    def __init__(self, model: nn.Module, then: nn.Module) -> None:
        super().__init__()
        self.model, self.then = model, then

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.then(self.model(x))
        return logits


@pytest.fixture
def known() -> Known:
    return linear(100, classes=4, wrong=10)


def test_all_is_well(known: Known) -> None:
    findings = preflight(*known, attacks=attacks_of("quick", SuiteContext(threat=THREAT)))
    assert {f.status for f in findings} == {"ok"}
    assert outcome(findings, "clean accuracy").detail == "90 of 100 drawn images are classified as labelled"
    assert outcome(findings, "margin PGD-100 at eps = 0")


@pytest.mark.parametrize(
    ("scale", "shift", "message"),
    [
        (4.0, -2.0, "before normalisation, and put the normalisation inside the model"),
        (255.0, 0.0, "divide by 255"),
        (1 / 255, 0.0, "divided by 255 twice"),
        (float("nan"), 0.0, "NaN"),
    ],
)
def test_pixels_outside_their_range(known: Known, scale: float, shift: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        preflight(known.model, known.images * scale + shift, known.labels)


def test_labels_of_another_kind(known: Known) -> None:
    model, images, labels = known
    for wrong, message in [
        (labels + 1, "labels go from 1 to 4, but the model has 4 outputs"),
        (labels - 1, "label -1"),
        (labels.float(), "labels.long"),
        (torch.eye(4)[labels].long(), "one-hot"),
        (labels[:5], "100 images but 5 labels"),
        (labels * 10**12, "outside"),
    ]:
        with pytest.raises(UserError, match=message):
            preflight(model, images, wrong)
    with pytest.raises(UserError, match="images need their labels"):
        preflight(model, images)
    with pytest.raises(UserError, match="holds its own labels"):
        preflight(model, ImageSet(images, labels, tuple("abcd")), labels)


def test_classes_in_another_order(known: Known) -> None:
    order = torch.tensor([2, 0, 3, 1])
    with pytest.raises(UserError, match=r"don't map to the model's outputs.*90 if classes were renamed.*0 as "):
        preflight(known.model, known.images, order[known.labels])


def test_no_image_as_labelled(known: Known) -> None:
    model, images, _ = known
    with torch.no_grad():
        logits = model(images)
    second = logits.topk(2, dim=1).indices[:, 1]
    with pytest.raises(UserError, match=r"0 of 100 drawn images.*normalisation is inside the model"):
        preflight(model, images, second)


def test_none_right_in_a_small_batch_makes_it_look_at_more(known: Known) -> None:
    drawn = permutation(100, seed=0, epoch=0, purpose="preflight")[:20]
    labels = known.model(known.images).argmax(1)
    labels[drawn] = (labels[drawn] + 1 + torch.arange(20) % 3) % 4
    found = preflight(known.model, known.images, labels, batch_size=20)
    assert outcome(found, "clean accuracy").detail == "80 of 100 drawn images are classified as labelled"


def test_a_model_at_chance_is_noted(known: Known) -> None:
    constant = After(known.model, nn.Linear(4, 4))
    with torch.no_grad():
        constant.then.weight.mul_(1e-3)  # type: ignore[operator, union-attr]
        constant.then.bias.copy_(torch.tensor([1.0, 0, 0, 0]))  # type: ignore[operator, union-attr]
    found = outcome(preflight(constant, known.images, torch.arange(100) % 4), "clean accuracy")
    assert found.status == "noted" and "25 of 100" in found.detail and "no better than chance" in found.detail


def test_train_mode_is_mended_and_put_back(known: Known) -> None:
    model = After(known.model, nn.Dropout(0.9)).train()
    model.model.eval()
    assert outcome(preflight(model, known.images, known.labels), "mode").status == "fixed"
    assert model.training and model.then.training and not model.model.training


def test_probabilities(known: Known) -> None:
    with pytest.raises(UserError, match=r"probabilities.*logits before the softmax"):
        preflight(After(known.model, nn.Softmax(1)), known.images, known.labels)
    preflight(After(known.model, nn.LogSoftmax(1)), known.images, known.labels)  # as good as logits


def test_nan_logits(known: Known) -> None:
    known.model[1].bias.data[0] = torch.nan  # type: ignore[index]
    with pytest.raises(UserError, match="NaN or infinite logits for 100 of 100"):
        preflight(*known)


def test_one_output(known: Known) -> None:
    with pytest.raises(UserError, match=r"\(100, 1\).*two outputs"):
        preflight(After(known.model, nn.Linear(4, 1)), known.images, known.labels)


def test_images_of_another_size(known: Known) -> None:
    with pytest.raises(UserError, match=r"can't take 100 images of shape \(1, 2, 3\)"):
        preflight(known.model, known.images[:, :, :2], known.labels)


def test_no_module(known: Known) -> None:
    with pytest.raises(UserError, match=r"torch.nn.Module"):
        preflight(lambda x: known.model(x), known.images, known.labels)  # type: ignore[arg-type]


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, z: Tensor) -> Tensor:
        return z + 0.1 * torch.randn(z.shape, generator=self.generator)


def test_answers_that_differ_each_time(known: Known) -> None:
    with pytest.raises(UserError, match="different logits for the same images in each call"):
        preflight(After(known.model, Noisy()), known.images, known.labels)


def test_answers_that_depend_on_the_batch(known: Known) -> None:
    class Centred(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z - z.mean(0)

    with pytest.raises(UserError, match=r"alone and in a batch.*track_running_stats"):
        preflight(After(known.model, Centred()), known.images, known.labels)
    live = nn.BatchNorm1d(4, affine=False, track_running_stats=False)  # batch statistics, also in eval mode
    with pytest.raises(UserError, match=r"can't take 1 images of shape \(1, 3, 3\)"):
        preflight(After(known.model, live), known.images, known.labels)


class Quantised(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.detach().mul(100).round()


class Flat(nn.Module):
    """The same predictions with a gradient of zero."""

    def forward(self, z: Tensor) -> Tensor:
        return z.mul(100).round()


def test_gradients_that_say_nothing_are_noted(known: Known) -> None:
    found = outcome(preflight(After(known.model, Quantised()), *known[1:]), "gradient")
    assert found.status == "noted" and "no gradient reaches the images" in found.detail
    found = outcome(preflight(After(known.model, Flat()), *known[1:]), "gradient")
    assert found.status == "noted" and "zero or NaN on 100 of 100" in found.detail


def test_an_attack_that_needs_the_missing_gradient(known: Known) -> None:
    with pytest.raises(UserError, match=r"PGD: no gradient reaches the images.*--suite black-box"):
        preflight(After(known.model, Quantised()), *known[1:], attacks=[pgd_spec()])


def test_too_few_classes_for_a_loss() -> None:
    known = linear(classes=2)
    with pytest.raises(UserError, match="DLR: the DLR loss needs at least 3 classes, the model has 2"):
        preflight(*known, attacks=[pgd_spec("DLR", loss=dlr)])


def careless(model: nn.Module, x: Tensor, y: Tensor, /, *, threat: ThreatModel, rng: Rng | None = None) -> Tensor:
    return (x + 0.02).clamp(0, 1)


def careless_in_place(
    model: nn.Module, x: Tensor, y: Tensor, /, *, threat: ThreatModel, rng: Rng | None = None
) -> Tensor:
    return x.add_(0.02).clamp_(0, 1)


@pytest.mark.parametrize("attack", [careless, careless_in_place])
def test_an_attack_that_does_harm_at_eps_zero(known: Known, attack: Callable[..., Tensor]) -> None:
    with pytest.raises(UserError, match="careless at eps = 0 changes the images"):
        preflight(*known, attacks=[AttackSpec("careless", partial(attack, threat=THREAT))])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_attacks_are_harmless_at_eps_zero_in_any_norm(known: Known, norm: Norm) -> None:
    threat = ThreatModel(norm=norm, eps=0.3)
    spec = AttackSpec("PGD", partial(pgd, threat=threat, steps=50, step_size=0.1))
    assert outcome(preflight(*known, attacks=[spec]), "PGD at eps = 0").status == "ok"


def test_looks_at_images_from_the_whole_set() -> None:
    """A folder lists class after class: its first batch would show one class alone."""
    model, images, labels = linear(400, classes=4, wrong=40)
    order = labels.argsort()
    detail = outcome(preflight(model, images[order], labels[order], batch_size=80), "clean accuracy").detail
    assert "of 80 drawn" in detail
    with pytest.raises(UserError, match="don't map"):
        preflight(model, images[order], (labels[order] + 1) % 4, batch_size=80)


def test_batch_size(known: Known) -> None:
    with pytest.raises(UserError, match="at least 1"):
        preflight(*known, batch_size=0)
