from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from advsphere.classifier import Classifier, fooled, frozen
from advsphere.errors import UserError
from advsphere.evaluation import AttackSpec
from advsphere.evaluation.judge import exact_float32, judge, judge_attack
from advsphere.rng import Rng
from tests.evaluation.cases import THREAT, do_nothing, leave_the_ball, linear, pgd_spec, robust


def test_a_result_outside_the_ball_is_no_success() -> None:
    model, x, y = linear(wrong=60)  # all labels are wrong, so every image fools without being moved
    x_adv = x.clone()
    x_adv[0, 0, 0, 0] += 0.11 if x[0, 0, 0, 0] < 0.5 else -0.11  # leaves the ball
    x_adv[1, 0, 0, 0] = -0.01  # leaves the box
    x_adv[2, 0, 0, 0] = torch.nan
    x_adv[3, 0, 0, 0] += 0.09 if x[3, 0, 0, 0] < 0.5 else -0.09
    with frozen(model) as exact:
        verdict = judge(exact, THREAT, x[:5], x_adv[:5], y[:5])
    assert verdict.valid.tolist() == [False, False, False, True, True]
    assert not verdict.fooled[:3].any()
    assert verdict.distance[0] == pytest.approx(0.11, abs=1e-6)
    cells = verdict.cells(torch.arange(10, 15), y[:5])
    assert [c.status for c in cells[:3]] == ["invalid"] * 3 and all(c.x_adv is None for c in cells[:3])
    assert [c.example for c in cells] == [10, 11, 12, 13, 14]


def test_what_an_attack_reports_is_predicted_again() -> None:
    model, x, y = linear()
    right = model(x).argmax(1) == y
    verdict = judge_attack(model, AttackSpec("nothing", do_nothing), THREAT, x, y, Rng.of(x))
    assert verdict.valid.all() and torch.equal(verdict.fooled, ~right)
    assert torch.equal(verdict.prediction, model(x).argmax(1))


def test_nan_logits_count_as_fooled() -> None:
    class Brittle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bright = x.flatten(1).sum(1, keepdim=True)
            return torch.cat([bright + 1, bright * 0], 1) / (x[:, 0, 0, :1] < 0.55)  # 0/0 is NaN

    x = torch.full((3, 1, 3, 3), 0.5)
    x_adv = x.clone()
    x_adv[1] = 0.6
    with frozen(Brittle()) as exact:
        verdict = judge(exact, THREAT, x, x_adv, torch.zeros(3, dtype=torch.int64))
    assert verdict.fooled.tolist() == [False, True, False] and verdict.prediction.tolist() == [0, -1, 0]


class ByCompany(nn.Module):
    """Predicts the last class only in a batch of more than two, as rounding may for an image on the boundary."""

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), 3)
        logits[:, 1] = (x[:, 0, 0, 0] > 0.5).float() * 5 - 1
        logits[:, 2] = 9.0 * (x[:, 0, 0, 1] > 0.5).float() * (len(x) > 2)
        return logits


def test_what_is_stored_fools_in_the_batch_that_is_stored() -> None:
    x = torch.full((4, 1, 2, 2), 0.45)
    x_adv = x.clone()
    x_adv[0, 0, 0, 0] = 0.52  # fools in any company
    x_adv[1, 0, 0, 1] = 0.52  # fools in the batch of four alone
    with frozen(ByCompany()) as exact:
        verdict = judge(exact, THREAT, x, x_adv, torch.zeros(4, dtype=torch.int64))
        assert verdict.fooled.tolist() == [True, False, False, False] and verdict.prediction.tolist() == [1, 0, 0, 0]
        assert exact(x_adv[verdict.fooled]).argmax(1).tolist() == [1]


class Shifted(nn.Module):
    """Under autocast it is misled easily; in float32 it is the linear model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).float()
        return logits.roll(1, 1) if torch.is_autocast_enabled("cpu") else logits


def test_a_search_in_low_precision_that_stops_too_early_goes_on_in_float32() -> None:
    known = linear()
    right = known.model(known.images).argmax(1) == known.labels
    x, y = known.images[right], known.labels[right]
    args = (pgd_spec(), THREAT, x, y, Rng.of(x))
    low = judge_attack(Shifted(known.model), *args, dtype=torch.bfloat16)  # type: ignore[arg-type]
    full = judge_attack(known.model, *args)  # type: ignore[arg-type]
    # The search believes that every clean image fools already and stops at once; alone, it would find nothing.
    assert torch.equal(low.fooled, full.fooled) and full.fooled.any()
    assert torch.equal(~full.fooled, robust(known, THREAT)[right])
    assert low.forwards > full.forwards


def test_an_attack_that_changes_its_images_is_judged_against_the_clean_ones() -> None:
    def in_place(model: Classifier, x: Tensor, y: Tensor, /, *, rng: Rng | None = None) -> Tensor:
        return x.neg_().add_(1)

    model, x, y = linear()
    kept = x.clone()
    verdict = judge_attack(model, AttackSpec("in place", in_place), THREAT, x, y, Rng.of(x))
    assert torch.equal(x, kept) and not verdict.valid.any() and (verdict.distance > THREAT.eps).all()


def test_an_attack_that_returns_the_clean_images_is_still_judged_against_them() -> None:
    def lazy(model: Classifier, x: Tensor, y: Tensor, /, *, rng: Rng | None = None) -> Tensor:
        return x if bool(fooled(model(x), y).all()) else leave_the_ball(model, x, y, rng=rng)

    known = linear()
    right = known.model(known.images).argmax(1) == known.labels
    x, y = known.images[right], known.labels[right]
    kept = x.clone()
    spec, model = AttackSpec("lazy", lazy), Shifted(known.model)
    verdict = judge_attack(model, spec, THREAT, x, y, Rng.of(x), dtype=torch.bfloat16)
    assert torch.equal(x, kept) and not verdict.valid.any() and (verdict.distance > THREAT.eps).all()


class Higher(nn.Module):
    """The same margins on larger logits, whose errors are no larger."""

    def __init__(self, model: nn.Module, by: float) -> None:
        super().__init__()
        self.model, self.by = model, by

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).float() + self.by  # type: ignore[no-any-return]


def test_the_size_of_the_logits_alone_brings_no_second_search() -> None:
    known = linear()
    right = known.model(known.images).argmax(1) == known.labels
    x, y = known.images[right], known.labels[right]
    found = [
        judge_attack(Higher(known.model, by), pgd_spec(), THREAT, x, y, Rng.of(x), dtype=torch.bfloat16)
        for by in (0.0, 64.0)
    ]
    assert found[0].forwards == found[1].forwards and torch.equal(found[0].fooled, found[1].fooled)


class Counting(nn.Module):
    """Counts the images of its forwards in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.count = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 0 if torch.is_autocast_enabled("cpu") else len(x)
        return self.model(x).float()  # type: ignore[no-any-return]


def test_results_of_a_search_in_low_precision_are_predicted_once_in_float32() -> None:
    known = linear()
    right = known.model(known.images).argmax(1) == known.labels
    x, y, model = known.images[right], known.labels[right], Counting(known.model)
    for _ in range(2):  # the first call also finds out how the network takes images
        model.count = 0
        judge_attack(model, AttackSpec("nothing", do_nothing), THREAT, x, y, Rng.of(x), dtype=torch.bfloat16)
    assert model.count == len(x)


def test_an_attack_returns_an_image_for_each() -> None:
    model, x, y = linear()

    def short(model: nn.Module, x: Tensor, y: Tensor, /, *, rng: Rng | None = None) -> Tensor:
        return x[:1]

    with pytest.raises(UserError, match=r"short returned \(1, 1, 3, 3\) for images \(60, 1, 3, 3\)"):
        judge_attack(model, AttackSpec("short", short), THREAT, x, y, Rng.of(x))


def test_forwards_are_counted() -> None:
    model, x, y = linear()
    assert judge_attack(model, AttackSpec("invalid", leave_the_ball), THREAT, x, y, Rng.of(x)).forwards == 0
    spec = pgd_spec(steps=3, until_fooled=False)
    assert judge_attack(model, spec, THREAT, x, y, Rng.of(x)).forwards == 3 * len(x)


def test_float32_precision_is_put_back() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with exact_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_float32_precision_may_be_chosen_in_the_newer_way() -> None:
    """In a process of its own, since PyTorch does not forget the choice."""
    code = """
import torch
from advsphere.evaluation.judge import exact_float32
torch.backends.cuda.matmul.fp32_precision = "tf32"
with exact_float32():
    assert torch.get_float32_matmul_precision() == "highest" and torch.backends.cudnn.conv.fp32_precision == "ieee"
assert torch.backends.cuda.matmul.fp32_precision == "tf32"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
