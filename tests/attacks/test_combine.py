"""Combinators: the worst case of several attacks, and restarts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advsphere import attacks
from advsphere.attacks import Attack, fgsm, pgd, restarts, worst_case
from advsphere.classifier import Classifier, fooled
from advsphere.errors import UserError
from advsphere.losses import Loss, cross_entropy, kl, margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from tests.laws import conv_net, images

LINF = ThreatModel(norm="linf", eps=0.006)


def brightness(x: Tensor) -> Tensor:
    """Logits (0, mean pixel - 0.5): class 1 is a bright image."""
    bright = x.flatten(1).mean(1) - 0.5
    return torch.stack([torch.zeros_like(bright), bright], 1)


def adds(amount: float, log: list[tuple[float, list[int], int]]) -> Attack:
    """Brightens by a constant, and notes whom it was shown and with which restart."""

    def attack(model: Classifier, x: Tensor, target: Tensor, /, *, rng: Rng | None = None) -> Tensor:
        assert rng is not None and len(rng.ids) == len(x) == len(target)
        log.append((amount, rng.ids.tolist(), rng.restart))
        return x + amount

    return attack


def flat(*levels: float) -> tuple[Tensor, Tensor]:
    """Grey images of class 0 (dark)."""
    x = torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    return x, torch.zeros(len(levels), dtype=torch.long)


def test_the_first_success_decides_and_later_attacks_see_the_rest() -> None:
    log: list[tuple[float, list[int], int]] = []
    x, y = flat(0.6, 0.45, 0.35, 0.1)
    attack = worst_case([adds(0.1, log), adds(0.2, log), adds(0.3, log)])
    x_adv = attack(brightness, x, y, rng=Rng(0, torch.tensor([10, 11, 12, 13])))
    assert log == [(0.1, [11, 12, 13], 0), (0.2, [12, 13], 0), (0.3, [13], 0)]
    assert (x_adv - x)[:, 0, 0, 0].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert fooled(brightness(x_adv), y).tolist() == [True, True, True, False]


def test_without_a_success_the_closest_counts_and_the_clean_image_is_a_candidate() -> None:
    log: list[tuple[float, list[int], int]] = []
    x, y = flat(0.2, 0.3)
    attack = worst_case([adds(0.05, log), adds(0.15, log), adds(0.1, log)])
    assert (attack(brightness, x, y, rng=None) - x).flatten().tolist() == pytest.approx([0.15] * 8)
    assert torch.equal(worst_case([adds(-0.1, log)])(brightness, x, y), x)


def test_when_all_have_fallen_the_others_are_not_run() -> None:
    log: list[tuple[float, list[int], int]] = []
    x, y = flat(0.45, 0.48)
    worst_case([adds(0.1, log), adds(0.2, log)])(brightness, x, y)
    assert [amount for amount, *_ in log] == [0.1]
    assert torch.equal(worst_case([])(brightness, x, y), x)


def test_an_answer_that_is_no_number_counts_as_a_success() -> None:
    x, y = flat(0.2, 0.3)
    x_adv = worst_case([lambda model, x, y, /, *, rng=None: x * torch.nan])(brightness, x, y)
    assert x_adv.isnan().all(), "to be judged by the threat model, not hidden"


def test_restarts_use_different_numbers_also_when_nested() -> None:
    log: list[tuple[float, list[int], int]] = []
    x, y = flat(0.1)
    restarts(adds(0.0, log), 3)(brightness, x, y)
    assert [restart for *_, restart in log] == [0, 1, 2]
    log.clear()
    restarts(restarts(adds(0.0, log), 2), 3)(brightness, x, y)
    assert sorted(restart for *_, restart in log) == [0, 1, 2, 3, 4, 5]
    log.clear()
    for outer in (0, 1):
        restarts(adds(0.0, log), 2)(brightness, x, y, rng=Rng.of(x).at(restart=outer))
    assert len({restart for *_, restart in log}) == 4


@pytest.mark.parametrize("n", [0, -1])
def test_no_restart_at_all_is_refused(n: int) -> None:
    with pytest.raises(UserError, match="restarts are counted from 1"):
        restarts(partial(fgsm, threat=LINF), n)


def test_the_worst_case_is_no_better_for_the_defender_than_any_of_its_attacks() -> None:
    model, x = conv_net().eval(), images(24)
    with torch.no_grad():
        y = model(x).argmax(1)
    single = [
        partial(fgsm, threat=LINF),
        partial(pgd, threat=LINF, steps=5, step_size=0.002),
        partial(pgd, threat=LINF, steps=5, step_size=0.002, loss=margin),
    ]
    rng = Rng.of(x)
    with torch.no_grad():
        worst = model(worst_case(single)(model, x, y, rng=rng))
        alone = [model(attack(model, x, y, rng=rng)) for attack in single]
    assert torch.equal(fooled(worst, y), torch.stack([fooled(z, y) for z in alone]).any(0))
    held = ~fooled(worst, y)
    assert 0 < held.sum() < 24
    closest = torch.stack([margin(z, y) for z in alone]).amax(0)
    assert torch.allclose(margin(worst, y)[held], closest[held], atol=1e-5)


def test_more_restarts_lose_no_success() -> None:
    model, x = conv_net().eval(), images(24)
    with torch.no_grad():
        y = model(x).argmax(1)
    one = partial(pgd, threat=LINF, steps=1, step_size=0.003)
    before = torch.zeros(24, dtype=torch.bool)
    for n in (1, 2, 5, 10):
        now = fooled(model(restarts(one, n)(model, x, y, rng=Rng.of(x))), y)
        assert (before <= now).all()
        before = now
    assert before.sum() > fooled(model(one(model, x, y, rng=Rng.of(x))), y).sum()


BALL = {"threat": ThreatModel(norm="linf", eps=0.1)}
SPACE = {"norm": "linf"}
SHORT: dict[str, Any] = {
    "fgsm": partial(attacks.fgsm, **BALL),
    "pgd": partial(attacks.pgd, **BALL, steps=1, step_size=0.1),
    "mim": partial(attacks.mim, **BALL, steps=1, step_size=0.1),
    "apgd": partial(attacks.apgd, **BALL, steps=1),
    "apgd_targeted": partial(attacks.apgd_targeted, **BALL, steps=1),
    "square": partial(attacks.square, **BALL, queries=1),
    "rays": partial(attacks.rays, queries=2),
    "cw": partial(attacks.cw, **SPACE, steps=1, rounds=1),
    "deepfool": partial(attacks.deepfool, **SPACE, steps=1),
    "fmn": partial(attacks.fmn, **SPACE, steps=1),
    "sigma_zero": partial(attacks.sigma_zero, steps=1),
    "fab": partial(attacks.fab, **SPACE, steps=1),
    "fab_targeted": partial(attacks.fab_targeted, **SPACE, steps=1),
    "auto_attack": attacks.auto_attack(BALL["threat"], steps=1, queries=1),
}


@pytest.mark.parametrize("attack", [*SHORT.values()][:-1], ids=[*SHORT][:-1])
def test_images_outside_the_bounds_are_refused(attack: Attack) -> None:
    model, x = conv_net(), images(2)
    y = model(x).argmax(1)
    for outside in (255 * x, x - 0.7, x / 0):
        with pytest.raises(UserError, match="scale them into the bounds"):
            attack(model, outside, y)


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_invalid_inputs_are_told_in_one_line(attack: Attack) -> None:
    model, x = conv_net(), images(2)
    y = model(x).argmax(1)
    broken, soft = x.clone(), model(x).softmax(1).detach()
    broken[1, 0, 0, 0] = torch.nan
    for images_, labels_, message in [
        (broken, y, "some pixels of the images are NaN"),
        ((x * 255).byte(), y, "of type torch.uint8; give a floating-point tensor"),
        (x.numpy(), y, r"of type ndarray; .*torch.from_numpy"),
        (x, y.numpy(), r"of type ndarray; give torch.as_tensor"),
        (x, y[:1], "there are 2 images"),
        (x[0], y, "there are"),
        (x, y.float(), "use labels.long()"),
        (x, y - 20, "the lowest label is -"),
        (x, y + 20, r"the model returns 4 logits, but the highest label is \d+"),
        (x, nn.functional.one_hot(y, 4), r"argmax\(1\) for one-hot rows"),
        (x, soft, r"class numbers \(B,\)"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            attack(model, images_, labels_)
        assert "\n" not in str(caught.value)


def test_settings_of_another_kind_are_told_in_one_line() -> None:
    model, x = conv_net(), images(2)
    y = model(x).argmax(1)
    for name, attack in SHORT.items():
        if "threat" in getattr(attack, "keywords", {}):
            with pytest.raises(UserError, match=r"threat is 0.1; give .* \(such as ThreatModel\(norm="):
                attack(model, x, y, threat=0.1)
        if name in ("fgsm", "pgd", "mim", "apgd"):
            with pytest.raises(UserError, match="loss is 'ce'; give a function"):
                attack(model, x, y, loss="ce")
    for wrong, said in (
        ({"start": "random"}, "give 'uniform', 'clean' or images"),
        ({"keep": "first"}, "'last', 'best'"),
    ):
        with pytest.raises(UserError, match=said):
            SHORT["pgd"](model, x, y, **wrong)
    with pytest.raises(UserError, match="threat is of type Sequential; give an object of ThreatModel"):
        attacks.auto_attack(model)


@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.pgd, attacks.mim, attacks.apgd])
@pytest.mark.parametrize("loss", [cross_entropy, kl])
def test_gradient_attacks_take_soft_labels_with_a_loss_for_them(attack: Any, loss: Loss) -> None:
    model, x = conv_net(), images(6)
    soft = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)).softmax(1)
    steps = {"steps": 4, "step_size": 0.003} if attack in (attacks.pgd, attacks.mim) else {}
    steps = {"steps": 4} if attack is attacks.apgd else steps
    x_adv = attack(model, x, soft, threat=LINF, loss=loss, **steps)
    assert LINF.contains(x_adv, x).all()
    assert (loss(model(x_adv), soft) > loss(model(x), soft)).all()
    with pytest.raises(UserError, match="the soft labels are"):
        attack(model, x, soft[:, :3], threat=LINF, loss=cross_entropy, **steps)


def test_bounds_of_255_for_images_of_1_are_refused() -> None:
    threat = ThreatModel(norm="linf", eps=8, bounds=(0, 255))
    with pytest.raises(UserError, match="use bounds of 0 to 1"):
        fgsm(conv_net(), images(2), torch.zeros(2).long(), threat=threat)


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_a_network_may_return_more_than_logits_and_overwrite_its_input(attack: Attack) -> None:
    class Talkative(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(x.mul_(1.0)), "features": x}

    model, x = conv_net().eval(), images(3)
    y = model(x).argmax(1)
    given = x.clone()
    assert torch.equal(attack(Talkative(model), x, y), attack(model, x, y))
    assert torch.equal(x, given)
