"""The laws that every objective keeps, over the rows of `tests.laws.OBJECTIVES`, and what is particular to each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import pgd
from advsphere.classifier import fooled, frozen
from advsphere.errors import UserError
from advsphere.hypersphere import AngularMargin, HypersphereConfig
from advsphere.losses import cross_entropy, log_odds, margin
from advsphere.objectives import ALP, NFGSM, PGDAT, TRADES, Crafting, FastAT, FreeAT, Objective, Standard
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from tests.laws import (
    NORMS,
    OBJECTIVES,
    RADII,
    ObjectiveRow,
    assert_same_state,
    conv_net,
    count_examples,
    global_randomness_untouched,
    images,
    labels,
    mixed,
    state_of,
)

rows = pytest.mark.parametrize("row", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def with_norm(objective: Any, norm: str) -> Objective:
    """The objective against another ball, with a step that fits it."""
    if isinstance(objective, Standard):
        return objective
    return replace(objective, threat=ThreatModel(norm=norm, eps=RADII[norm]), step_size=RADII[norm] / 2)


def in_eval_mode(objective: Any) -> Any:
    return replace(objective, mode="eval") if hasattr(objective, "mode") else objective


def context(x: Tensor, seed: int = 0, **options: object) -> Crafting:
    return Crafting(Rng.of(x, seed=seed), **options)


def trained_once(objective: Objective, model: nn.Module, x: Tensor, y: Tensor, crafting: Crafting) -> Tensor | None:
    """What the training loop does for one replay, without the optimiser; returns what is carried on."""
    x_adv = objective.craft(model, x, y, crafting)
    objective.loss(model, x, x_adv, y, criterion=cross_entropy).total.backward()
    return objective.after_backward(x, x_adv, crafting.carry)


@rows
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("view", [{}, {"fold": True}, {"dtype": torch.bfloat16}], ids=["plain", "fold", "bfloat16"])
def test_crafted_images_are_inside_the_ball_and_the_box(row: ObjectiveRow, norm: str, view: dict[str, object]) -> None:
    objective, model, x, y = with_norm(row.objective, norm), conv_net(), images(6), labels(6)
    x[0], x[1] = 0.0, 1.0
    carry = None
    for batch in (x, x.flip(0), x[:4]):
        x_adv = objective.craft(model, batch, y[: len(batch)], context(batch, carry=carry, **view))
        assert x_adv.shape == batch.shape and x_adv.dtype == batch.dtype
        assert ThreatModel(norm=norm, eps=row.reach * RADII[norm]).contains(x_adv, batch).all()
        objective.loss(model, batch, x_adv, y[: len(batch)], criterion=cross_entropy).total.backward()
        carry = objective.after_backward(batch, x_adv, carry)


@rows
def test_crafting_touches_nothing(row: ObjectiveRow) -> None:
    """In train mode, batch norm's statistics move as they do in any forward, and nothing else does."""
    model, x, y = mixed(conv_net()), images(6), labels(6)
    before, x_before, y_before = state_of(model), x.clone(), y.clone()
    with global_randomness_untouched():
        row.objective.craft(model, x, y, context(x))
    if getattr(row.objective, "mode", "eval") == "train":
        for name in before.tensors:
            if "running" in name or "tracked" in name:
                before.tensors[name] = model.state_dict()[name]
    assert_same_state(before, state_of(model))
    assert torch.equal(x, x_before) and torch.equal(y, y_before) and not x.requires_grad


@rows
def test_the_seed_decides(row: ObjectiveRow) -> None:
    x, y = images(6), labels(6)

    def crafted(seed: int) -> Tensor:
        return row.objective.craft(conv_net(), x, y, context(x, seed=seed)).detach()

    assert torch.equal(crafted(1), crafted(1))
    assert torch.equal(crafted(1), crafted(2)) != row.random


@rows
@pytest.mark.parametrize("fold", [False, True])
def test_batch_mates_do_not_matter_in_eval_mode(row: ObjectiveRow, fold: bool) -> None:
    objective, model, x, y = in_eval_mode(row.objective), conv_net().double(), images(6).double(), labels(6)
    rng = Rng(4, torch.tensor([7, 1, 30, 2, 8, 9]))

    def crafted(index: Tensor) -> Tensor:
        return objective.craft(model, x[index], y[index], Crafting(rng.take(index), fold=fold)).detach()

    whole = crafted(torch.arange(6))
    for index in ([2], [5, 0, 3], [5, 4, 3, 2, 1, 0]):
        assert torch.allclose(crafted(torch.tensor(index)), whole[index], atol=1e-9)


@rows
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("fallen", [False, True], ids=["as predicted", "all misclassified"])
@pytest.mark.parametrize("fold", [False, True])
def test_crafting_spends_every_forward_on_every_example(
    row: ObjectiveRow, batch: int, fallen: bool, fold: bool
) -> None:
    model, x = conv_net().eval(), images(batch)
    y = (model(x).argmax(1) + int(fallen)) % 4
    assert fooled(model(x), y).all() == fallen
    sizes = count_examples(model)
    in_eval_mode(row.objective).craft(model, x, y, context(x, fold=fold))
    assert sum(sizes) == row.forwards * batch and all(size == batch for size in sizes)


@pytest.mark.parametrize("row", [row for row in OBJECTIVES.values() if isinstance(row.objective, PGDAT)])
def test_the_number_of_steps_is_the_number_of_forwards(row: ObjectiveRow) -> None:
    extra = row.forwards - row.objective.steps
    for steps in (1, 2, 7):
        model, x = conv_net(), images(3)
        sizes = count_examples(model)
        replace(row.objective, steps=steps).craft(model, x, labels(3), context(x))
        assert sizes == [3] * (steps + extra)


@rows
def test_the_loss_trains_every_weight_and_reports_its_parts(row: ObjectiveRow) -> None:
    model, x, y = conv_net(), images(6), labels(6)
    x_adv = row.objective.craft(model, x, y, context(x))
    losses = row.objective.loss(model.train(), x, x_adv, y, criterion=cross_entropy)
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    parts = [part for part in (losses.clean, losses.robust) if part is not None]
    assert parts and all(part.dim() == 0 and part.isfinite() and part >= 0 for part in parts)
    assert losses.total.dim() == 0 and losses.total >= min(parts) - 1e-6


@rows
def test_the_criterion_is_called_as_given(row: ObjectiveRow) -> None:
    """Per example, with logits and labels; a criterion ten times as large is seen in the loss."""
    model, x, y = conv_net().eval(), images(6), labels(6)
    x_adv = row.objective.craft(model, x, y, context(x)).detach()
    seen: list[tuple[torch.Size, Tensor]] = []

    def criterion(logits: Tensor, target: Tensor) -> Tensor:
        seen.append((logits.shape, target))
        return 10 * cross_entropy(logits, target)

    usual = row.objective.loss(model, x, x_adv, y, criterion=cross_entropy)
    tenfold = row.objective.loss(model, x, x_adv, y, criterion=criterion)
    assert seen and all(shape == (6, 4) and target is y for shape, target in seen)
    criterion_part = (
        usual.total - usual.robust * row.objective.beta
        if isinstance(row.objective, TRADES)
        else (usual.clean + usual.robust) / 2
        if isinstance(row.objective, ALP)
        else usual.total
    )
    assert (tenfold.total - usual.total).item() == pytest.approx(9 * criterion_part.item(), rel=1e-4)


@rows
def test_a_config_is_a_frozen_value(row: ObjectiveRow) -> None:
    assert row.objective == replace(row.objective) and hash(row.objective) == hash(replace(row.objective))
    assert not any(callable(getattr(row.objective, f.name)) for f in fields(row.objective))
    with pytest.raises((FrozenInstanceError, AttributeError)):
        row.objective.beta = 1.0


@rows
def test_replays_and_what_is_carried(row: ObjectiveRow) -> None:
    free = isinstance(row.objective, FreeAT)
    assert row.objective.replays == (row.objective.repeats if free else 1)
    carry = trained_once(row.objective, conv_net(), images(4), labels(4), context(images(4)))
    assert (carry is not None) == free


@rows
def test_finite_and_moving_with_a_scale_of_1000(row: ObjectiveRow) -> None:
    """On a sphere so large that the softmax is 0 or 1 in float32: no NaN, and each weight still learns."""
    model, x, y = conv_net(), images(8), labels(8)
    sphere = HypersphereConfig(scale=1000.0, margin=0.2)
    criterion = AngularMargin(sphere.attach(model), 0.2)
    probabilities = model(x).softmax(1)
    assert (probabilities == 0).any(), "not saturated, so that this would say nothing"
    x_adv = row.objective.craft(model, x, y, context(x))
    assert x_adv.isfinite().all()
    losses = row.objective.loss(model.train(), x, x_adv, y, criterion=criterion)
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("norm", NORMS)
def test_crafting_is_pgd_without_its_checks(norm: str) -> None:
    model, x, y = conv_net(), images(5), labels(5)
    objective: Any = with_norm(PGDAT(steps=3, start="uniform"), norm)
    rng = Rng.of(x, seed=4)
    with frozen(model) as classify:
        expected = pgd(classify, x, y, threat=objective.threat, steps=3, step_size=objective.step_size, rng=rng)
    assert torch.equal(objective.craft(model, x, y, Crafting(rng)), expected)


def test_crafted_images_are_harder_than_clean_ones() -> None:
    """A random perturbation as large changes few predictions; a crafted one half, KL's (without labels) fewer."""
    x = images(32)
    threat = ThreatModel(norm="linf", eps=0.02)
    with frozen(conv_net()) as classify:
        y = classify(x).argmax(1)

        def changed(x_adv: Tensor) -> float:
            return fooled(classify(x_adv), y).float().mean().item()

        chance = changed(threat.sample(x, Rng.of(x)))
        assert chance < 0.15
        for name, row in OBJECTIVES.items():
            if isinstance(row.objective, PGDAT):
                objective = replace(in_eval_mode(row.objective), threat=threat)
                share = changed(objective.craft(conv_net(), x, y, context(x)))
                assert share > (0.3 if name == "TRADES" else 0.5), name


def test_one_step_methods_craft_in_train_mode_and_the_others_in_eval_mode() -> None:
    """Seen from inside: the statistics by which batch norm normalises while crafting."""
    for name, row in OBJECTIVES.items():
        model = conv_net()
        modes: set[bool] = set()
        model[1].register_forward_pre_hook(lambda module, _, modes=modes: modes.add(module.training))
        x = images(4)
        row.objective.craft(model, x, labels(4), context(x))
        assert modes == {"FastAT": {True}, "NFGSM": {True}, "Standard": set(), "FreeAT": set()}.get(name, {False})


@pytest.mark.parametrize("kind", [PGDAT, ALP, TRADES, FastAT])
@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": -1}, {"step_size": 0.0}, {"step_size": -0.1}])
def test_steps_that_make_no_sense_are_refused(kind: Callable[..., Objective], wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="steps of"):
        kind(**wrong)


@pytest.mark.parametrize("wrong", [{"noise": 0.0}, {"noise": -1.0}, {"step_size": 0.0}, {"step_size": -0.1}])
def test_noise_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="noise of"):
        NFGSM(**wrong)


def test_n_fgsm_leaves_the_ball_by_its_noise_and_one_step() -> None:
    """With a linear network the sign of its gradient is known: x + noise + eps * sign, and only the box clips it."""
    weight = torch.tensor([1.0, -1.0] * 6).view(1, 3, 2, 2)

    class Linear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = (x * weight).flatten(1).sum(1)
            return torch.stack([-score, score], 1)

    x, y = images(64, size=2), torch.zeros(64, dtype=torch.long)
    threat = ThreatModel(norm="linf", eps=0.1)
    rng = Rng.of(x, seed=4)
    noisy = (x + 0.4 * rng.uniform((3, 2, 2), "start") - 0.2).clamp(0, 1)
    x_adv = NFGSM(threat=threat).craft(Linear(), x, y, Crafting(rng))
    assert torch.allclose(x_adv, (noisy + 0.1 * weight.sign()).clamp(0, 1), atol=1e-6)
    assert 0.25 < (x_adv - x).abs().max() <= 0.3 + 1e-6
    shorter = NFGSM(threat=threat, noise=1.0, step_size=0.05).craft(Linear(), x, y, Crafting(rng))
    assert 0.1 < (shorter - x).abs().max() <= 0.15 + 1e-6


@pytest.mark.parametrize("repeats", [0, -2])
def test_free_at_without_replays_is_refused(repeats: int) -> None:
    with pytest.raises(UserError, match="repeats"):
        FreeAT(repeats=repeats)


def test_the_shift_changes_crafting_by_kl_and_not_by_cross_entropy() -> None:
    """The arithmetic of a margin inside the attack: it adds a constant to the log-odds, and tilts a KL."""
    model, x, y = conv_net().double(), images(8).double(), labels(8)
    criterion = AngularMargin(HypersphereConfig(scale=10.0).attach(model), 0.3)
    z = model.eval()(x)
    assert torch.allclose(log_odds(criterion.shift(z, y), y) - log_odds(z, y), torch.full((8,), 3.0).double())
    assert torch.allclose(margin(criterion.shift(z, y), y) - margin(z, y), torch.full((8,), 3.0).double())
    for objective, same in (
        (PGDAT(steps=3), True),
        (ALP(steps=3), True),
        (FastAT(mode="eval"), True),
        (NFGSM(mode="eval"), True),
        (TRADES(steps=3), False),
    ):
        plain = objective.craft(model, x, y, context(x))
        shifted = objective.craft(model, x, y, context(x, shift=criterion.shift))
        assert torch.equal(plain, shifted) == same


@rows
@pytest.mark.parametrize("margin_in_attack", [False, True])
def test_soft_labels_train_as_labels_do(row: ObjectiveRow, margin_in_attack: bool) -> None:
    """One-hot rows give the loss of the labels, and mixed rows one between their two classes' but for s * m = 0.2."""
    objective, x, y = in_eval_mode(row.objective), images(6), labels(6)
    model = conv_net().eval()
    criterion = AngularMargin(HypersphereConfig(scale=2.0).attach(model), 0.1)
    given = {"shift": criterion.shift} if margin_in_attack else {}

    def loss_of(target: Tensor) -> Tensor:
        x_adv = objective.craft(model, x, target, context(x, **given))
        return objective.loss(model, x, x_adv, target, criterion=criterion).total.detach()

    hard, other = nn.functional.one_hot(y, 4).float(), nn.functional.one_hot((y + 1) % 4, 4)
    torch.testing.assert_close(loss_of(hard), loss_of(y), rtol=1e-3, atol=0)
    ends = sorted([float(loss_of(y)), float(loss_of((y + 1) % 4))])
    assert ends[0] - 0.2 < float(loss_of(0.5 * hard + 0.5 * other)) < ends[1] + 0.2
