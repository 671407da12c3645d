"""Models that mask their gradients in a known way raise the sign of it; honest ones raise none."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import fgsm, square
from advsphere.evaluation import AttackSpec, Effort, Evaluation, Ledger, Row, Sign, Verification, evaluate, verify
from advsphere.evaluation.cascades import cascade
from advsphere.evaluation.masking import signs
from advsphere.hypersphere import attach_head
from advsphere.losses import margin
from advsphere.threat import Norm, ThreatModel
from tests.evaluation.cases import THREAT, Fused, change, linear, pgd_spec, robust

CHECKS = (
    "vanishing gradients",
    "no fall at a large radius",
    "false gradients",
    "planted examples missed",
    "random search finds more",
    "black box beats white box",
    "one step beats many",
    "no plateau in steps",
    "weak at s = 1",
    "one loss decides",
)


class Times(nn.Module):
    """Logits times a factor: the same predictions, another scale."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.factor * self.model(x)
        return logits


class Staircase(nn.Module):
    """Sees pixels rounded to steps, so that no gradient passes."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 32).round() / 32


class Turned(torch.autograd.Function):
    """Nothing forward; backward, the gradient points the other way wherever a pixel is no whole grey level."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward((x * 255 - (x * 255).round()).abs() < 1e-3)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (whole,) = ctx.saved_tensors
        return torch.where(whole, grads[0], -grads[0])


class Trap(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        turned: Tensor = Turned.apply(x)  # type: ignore[no-untyped-call]
        return turned


def raised(evaluation: Evaluation) -> dict[str, Sign]:
    assert tuple(sign.check for sign in evaluation.signs) == CHECKS
    return {sign.check: sign for sign in evaluation.raised}


def failures(verification: Verification) -> dict[str, str]:
    return {f.check: f.detail for f in verification.findings if f.status == "failed"}


def black_box(queries: int = 500) -> AttackSpec:
    return AttackSpec("Square", partial(square, threat=THREAT, queries=queries))


# Honest models.


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_an_honest_model_raises_none(classes: int, norm: Norm) -> None:
    threat = ThreatModel(norm=norm, eps={"linf": 0.1, "l2": 0.25, "l1": 0.5}[norm])
    for n, chained in [(20, False), (200, False), (200, True)]:
        result = evaluate(*linear(n, classes=classes), threat=threat, effort=Effort(cascade=chained))
        assert not result.raised and result.flags == ()
        unjudged = {s.check for s in result.signs if s.status == "unjudged"}
        assert unjudged == {"black box beats white box", "weak at s = 1"} | (
            {"one step beats many"} if chained else set()
        )


def test_what_was_looked_for_is_said_in_a_line() -> None:
    text = " ".join(evaluate(*linear(), threat=THREAT).table(width=100).split())
    assert "! sign" not in text
    assert "looked for and not found: vanishing gradients, no fall at a large radius, false gradients" in text
    assert "not judged by these attacks: black box beats white box, weak at s = 1" in text


def test_the_suite_for_bounded_heads_raises_none_on_a_plain_one() -> None:
    """Its attacks on bare cosines are weak there, and are not what the verdict depends on."""
    result = evaluate(
        *linear(100, classes=5), threat=THREAT, suite="adaptive", effort=Effort(steps=20, guides=3), batch_size=100
    )
    assert not result.raised


def test_autoattack_judges_what_gradients_miss() -> None:
    few = [pgd_spec(), pgd_spec("margin PGD", loss=margin), black_box()]
    result = evaluate(*linear(200, classes=5), threat=THREAT, suite=few)
    (sign,) = [s for s in result.signs if s.check == "black box beats white box"]
    assert sign.status == "absent" and sign.detail.startswith("Square fooled 0 of 200 (0.0 - 1.9 %) images")


# Models that mask.


def test_a_saturated_cross_entropy() -> None:
    """Softmax cross-entropy has no gradient, the log-odds do: the attacks here find all there is to find."""
    model, images, labels = known = linear(200)
    result = evaluate(Times(model, 1e4), images, labels, threat=THREAT)
    sign = raised(result)["vanishing gradients"]
    assert list(raised(result)) == ["vanishing gradients"]
    assert "that of the log-odds, which the attacks here ascend, on 0" in sign.detail and "not affected" in sign.advice
    assert [c == "1" for c in result.worst.outcomes] == robust(known, THREAT).tolist()
    (note,) = [line for line in result.table().splitlines() if "sign of gradient masking:" in line]
    assert note == "! sign of gradient masking: vanishing gradients"


def test_a_quantised_input() -> None:
    model, images, labels = linear(100, classes=5)
    result = evaluate(nn.Sequential(Staircase(), model), images, labels, threat=THREAT, suite=[pgd_spec(), black_box()])
    found = raised(result)
    assert list(found) == [
        "vanishing gradients", "no fall at a large radius", "false gradients", "planted examples missed",
        "black box beats white box",
    ]  # fmt: skip
    zero = found["vanishing gradients"]
    right = result.clean.k
    assert zero.detail.startswith(f"on {right} of {right} (") and zero.detail.endswith(f"on {right}")
    assert "--suite black-box" in zero.advice
    only = sum(a == "1" and b == "0" for a, b in zip(*(row.outcomes for row in result.attacks), strict=True))
    assert (
        result.strongest is not None
        and result.strongest.names == ("Square",)
        and str(result.strongest).endswith(f"which alone fooled {only} of the 100 images")
    )
    assert f"Square fooled {only} of 100" in found["black box beats white box"].detail


def test_gradients_that_lead_astray_but_at_the_images_themselves() -> None:
    model, images, labels = linear(100, classes=5)
    images = (images * 255).round() / 255
    labels = model(images).argmax(1)
    one = AttackSpec("FGSM", partial(fgsm, threat=THREAT))
    result = evaluate(nn.Sequential(Trap(), model), images, labels, threat=THREAT, suite=[one, pgd_spec()])
    assert "one step beats many" in raised(result) and "vanishing gradients" not in raised(result)
    assert result.row("FGSM").k < result.row("PGD").k
    assert "--steps 500" in raised(result)["one step beats many"].advice


def test_a_model_without_gradients() -> None:
    class Numbers(nn.Module):
        """Computes outside of torch's graph."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = self.model(x)
            return logits

    model, images, labels = linear(classes=5)
    result = evaluate(Numbers(model), images, labels, threat=THREAT, suite=[black_box(50)])
    assert list(raised(result)) == ["vanishing gradients", "false gradients"]
    status = {sign.check: sign.detail for sign in result.signs if sign.status == "unjudged"}
    assert status["no fall at a large radius"] == "no gradient reaches the images"
    assert status["black box beats white box"] == "no white-box iterative attack was run on the same images"


def test_a_head_with_a_scale_attacked_at_scale_1() -> None:
    model, images, _ = linear(200, classes=10)
    attach_head(model, scale=30.0)
    labels = model(images).argmax(1)
    result = evaluate(model, images, labels, threat=THREAT, suite="paper")
    assert list(raised(result)) == ["weak at s = 1"]
    sign = raised(result)["weak at s = 1"]
    lead = 100 * (result.row("PGD-50 (s = 1)").accuracy - result.row("PGD-50").accuracy)
    assert sign.detail.startswith(f"PGD-50 (s = 1) leaves more than PGD-50 at s = 30, by {lead:.1f} points (")
    assert "--suite adaptive" in sign.advice
    swept = evaluate(model, images, labels, threat=THREAT, suite="adaptive", effort=Effort(steps=20, guides=3))
    assert "CE on cosines, s = 1 leaves more than CE" in raised(swept)["weak at s = 1"].detail
    # One after the other, they are not tried on the same images.
    chained = evaluate(model, images, labels, threat=THREAT, suite="paper", effort=Effort(cascade=True))
    assert "weak at s = 1" not in raised(chained)


# What the numbers must be, without a model.


def row(called: str, lost: int, n: int = 1000, *, first: int = 0, unreached: int = 0, **settings: Any) -> Row:
    """`lost` examples are fooled, from the `first` on; PGD-20 unless the settings say otherwise."""
    column = "1" * first + "0" * lost + "1" * (n - first - lost)
    known = {"name": "pgd", "steps": 20, "loss": "log_odds"} | settings
    return Row(
        name=called, outcomes=column, settings=known, invalid=0, unreached=unreached, median=None, seconds=1, forwards=1
    )


def judged(check: str, *rows: Row, probes: Mapping[str, Any] | None = None, scale: float = 1.0) -> Sign:
    (sign,) = [s for s in signs(rows, probes or {}, scale) if s.check == check]
    assert (sign.advice != "") == (sign.status == "raised")
    return sign


@pytest.mark.parametrize(
    ("n", "found", "status"),
    [(1000, 0, "absent"), (1000, 2, "absent"), (1000, 6, "raised"), (100, 1, "absent"), (100, 2, "raised"),
     (20, 1, "absent"), (10_000, 25, "absent"), (10_000, 31, "raised")],
)  # fmt: skip
def test_a_worse_attack_may_find_two_in_a_thousand(n: int, found: int, status: str) -> None:
    pgd = row("PGD", 5, n)
    for check, name in [("black box beats white box", "square"), ("one step beats many", "fgsm")]:
        sign = judged(check, pgd, row("other", found, n, first=5, name=name))
        assert sign.status == status and f"other fooled {found} of {n} (" in sign.detail


def test_what_comes_after_another_can_t_be_outdone_by_it() -> None:
    one = row("FGSM", 50, name="fgsm")
    assert judged("one step beats many", one, row("PGD", 50, after=["FGSM"])).status == "unjudged"
    assert judged("one step beats many", one, row("PGD", 0)).status == "raised"
    assert judged("one step beats many", one, row("PGD", 0, unreached=3)).status == "unjudged"
    # A first look on another loss is no match for it.
    look = row("first look", 0, loss="margin", steps=10)
    assert judged("one step beats many", look, one, row("PGD", 50, after=["first look", "FGSM"])).status == "unjudged"
    late = row("Square", 50, name="square", after=["PGD"])
    assert judged("black box beats white box", row("PGD", 0), late).status == "raised"
    assert judged("black box beats white box", one, late).status == "unjudged"  # nobody expects much of one step


@pytest.mark.parametrize(("falls", "status"), [(0, "absent"), (15, "absent"), (25, "raised")])
def test_a_plateau_is_a_point_of_accuracy_wide(falls: int, status: str) -> None:
    short, long = row("PGD-20", 500), row("PGD-100", 500 + falls, steps=100)
    sign = judged("no plateau in steps", short, long)
    assert sign.status == status
    assert f"from PGD-20 to PGD-100 accuracy falls by {falls / 10:.1f} points (" in sign.detail
    assert sign.status == "absent" or "--steps 500" in sign.advice
    # The first leg may be as steep as it likes.
    assert judged("no plateau in steps", row("PGD-5", 100, steps=5), short, long).status == status


def test_steps_are_compared_for_the_same_attack_on_the_same_images() -> None:
    check = "no plateau in steps"
    assert judged(check, row("PGD-20", 100), row("margin PGD-100", 300, steps=100, loss="margin")).status == "unjudged"
    assert judged(check, row("PGD-20", 100), row("PGD-100", 300, steps=100, after=["PGD-20"])).status == "raised"
    between = row("PGD-100", 300, steps=100, after=["PGD-20", "FAB"])
    assert judged(check, row("PGD-20", 100), between).status == "unjudged"
    assert judged(check, row("PGD-20", 100), row("PGD-100", 300, steps=100, unreached=9)).status == "unjudged"


@pytest.mark.parametrize(("alone", "status"), [(0, "absent"), (45, "absent"), (55, "absent"), (70, "raised")])
def test_one_loss_may_find_five_in_a_hundred_alone(alone: int, status: str) -> None:
    ce, other = row("PGD", 400), row("margin PGD", 400 + alone, loss="margin")
    sign = judged("one loss decides", ce, other)
    assert sign.status == status and f"{alone} of 1000" in sign.detail
    # A third loss that finds them as well takes it back.
    angles = row("angles", 400 + alone, name="surrogate", loss="margin", ascent={}, view={"scale": 1.0})
    assert judged("one loss decides", ce, other, angles).status == "absent"


def test_losses_that_aim_elsewhere_are_no_reason_to_doubt_the_others() -> None:
    check = "one loss decides"
    ce, features = row("PGD", 400), row("FeaAtt.", 100, name="feature_attack")
    assert judged(check, ce, features).status == "absent"
    assert judged(check, row("PGD", 100), row("FeaAtt.", 400, name="feature_attack")).status == "raised"
    targeted = row("APGD-T", 500, name="apgd_targeted", after=["PGD"])
    assert judged(check, ce, targeted).status == "raised" and "targeted DLR" in judged(check, ce, targeted).detail
    assert judged(check, ce, row("PGD-100", 600, steps=100)).status == "unjudged"


@pytest.mark.parametrize(
    ("left", "n", "status"),
    [(0, 90, "absent"), (3, 90, "absent"), (5, 90, "raised"), (1, 10, "absent"), (2, 10, "raised"), (0, 0, "unjudged")],
)
def test_a_probe_of_few_images_needs_more_than_one(left: int, n: int, status: str) -> None:
    probes = {"large radius": {"n": n, "left": left, "eps": 0.5, "steps": 20}}
    assert judged("no fall at a large radius", row("PGD", 5), probes=probes).status == status
    probes = {"gradients": {"n": n, "cross_entropy": left, "log_odds": 0}}
    assert judged("vanishing gradients", row("PGD", 5), probes=probes).status == status


# Evidence.


def test_signs_follow_from_the_ledger_and_are_verified(tmp_path: Path) -> None:
    model, images, labels = linear(100, classes=5)
    masked = nn.Sequential(Staircase(), model)
    book, file = tmp_path / "ledger.sqlite", tmp_path / "evaluation.json"
    result = evaluate(masked, images, labels, threat=THREAT, suite="quick", ledger=book)
    result.save(file)
    assert Evaluation.load(file) == result and result.raised
    assert failures(verify(file, book, masked, images)) == {}
    with Ledger.read(book) as ledger:
        assert ledger.probes["gradients"] == {"n": 90, "cross_entropy": 90, "log_odds": 90}
        assert Evaluation.of(ledger, result.findings).signs == result.signs
    flattered = tmp_path / "flattered.sqlite"
    shutil.copy(book, flattered)
    change(flattered, "UPDATE probes SET value = replace(value, '90', '0')")
    found = failures(verify(file, flattered, masked, images))
    assert set(found) == {"numbers", "signs"} and "gradients" in found["signs"]


def test_probes_are_measured_once_and_the_same_each_time(tmp_path: Path) -> None:
    model, images, labels = linear(300, classes=5)
    fused = Fused(model)
    path = tmp_path / "ledger.sqlite"
    first = evaluate(fused, images, labels, threat=THREAT, ledger=path, batch_size=64)
    fused.seen = 0
    assert evaluate(fused, images, labels, threat=THREAT, ledger=path, batch_size=64) == first
    preflight_alone = fused.seen
    change(path, "DELETE FROM probes")
    again = evaluate(fused, images, labels, threat=THREAT, ledger=path, batch_size=64)
    assert fused.seen > 2 * preflight_alone  # measured again, for they were gone
    assert again.ledger == first.ledger and "64" in first.signs[0].detail


def test_time_that_ran_out_does_not_cut_the_probes_short(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr("time.monotonic", lambda: float(next(ticks)))
    result = evaluate(*linear(), threat=THREAT, budget=3.0)
    assert result.worst.unreached > 0
    status = {sign.check: sign.status for sign in result.signs}
    assert status["vanishing gradients"] == status["no fall at a large radius"] == "absent"
    assert {*status.values()} == {"absent", "unjudged"}


def test_the_strongest_attack_is_named() -> None:
    known = linear(100, classes=5)
    weak, strong = pgd_spec("weak", steps=1, start="clean"), pgd_spec("strong")
    one = evaluate(*known, threat=THREAT, suite=[weak, strong]).strongest
    both = evaluate(*known, threat=THREAT, suite=[weak, strong, pgd_spec("again")]).strongest
    assert one is not None and both is not None
    assert (one.names, both.names) == (("strong",), ("strong", "again")) and one.alone == both.alone != 0
    staged = evaluate(*known, threat=THREAT, suite=cascade([weak, strong, pgd_spec("again")]))
    assert staged.strongest == one._replace(alone=None)
    fooled_alone = f"which alone fooled {one.alone} of the 100 images"
    assert str(one) == f"accuracy {100 * one.k / 100:.1f} % under strong, {fooled_alone}"
    assert str(both).endswith(fooled_alone)
    assert str(staged.strongest).endswith("skipped the images that it fooled")
    nothing = evaluate(*known, threat=ThreatModel(norm="linf", eps=1e-6), suite="paper")
    assert nothing.strongest is None and "strongest" not in nothing.table()
