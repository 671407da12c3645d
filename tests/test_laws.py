"""The laws that every attack keeps, over the rows of `tests.laws.ATTACKS`."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest
import torch
from torch import nn

import advsphere.attacks
import advsphere.objectives
from advsphere.attacks import AttackKind, attack_kind
from advsphere.classifier import fooled, frozen
from advsphere.errors import UserError
from advsphere.objectives import Objective
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from tests.laws import (
    ATTACKS,
    NORMS,
    OBJECTIVES,
    RADII,
    assert_same_state,
    conv_net,
    count_examples,
    global_randomness_untouched,
    images,
    labels,
    linear_net,
    mixed,
    state_of,
)


def attacks_that(holds):
    chosen = {name: row for name, row in ATTACKS.items() if holds(row)}
    return pytest.mark.parametrize("row", chosen.values(), ids=chosen.keys())


attacks = attacks_that(lambda row: True)
norms = pytest.mark.parametrize("norm", NORMS)


@pytest.fixture(autouse=True)
def _only_the_norms_that_an_attack_has(request):
    call = getattr(request.node, "callspec", None)
    if call and {"row", "norm"} <= call.params.keys() and call.params["norm"] not in call.params["row"].norms:
        pytest.skip(f"this attack has no {call.params['norm']}")


def public_functions():
    names = set(advsphere.attacks.__all__) - {"attack_kind"}
    functions = {name: getattr(advsphere.attacks, name) for name in names}
    return {name: function for name, function in functions.items() if inspect.isfunction(function)}


def test_every_public_attack_has_a_row():
    assert set(public_functions()) == {name.split()[0] for name in ATTACKS}


def test_every_public_attack_declares_its_kind():
    combinators = {"auto_attack", "expected", "restarts", "worst_case"}  # they return attacks
    kinds = {name: getattr(function, "kind", None) for name, function in public_functions().items()}
    assert {name for name, kind in kinds.items() if kind is None} == combinators
    assert {kind for kind in kinds.values() if kind} == set(get_args(AttackKind))


def test_declaring_a_kind_returns_the_same_function():
    def attack(model, x, target, /, *, rng=None):
        return x

    declared = attack_kind("black-box")(attack)
    assert declared is attack and getattr(declared, "kind", None) == "black-box"


def test_every_objective_has_a_row():
    def family(cls):
        return {cls} | {each for child in cls.__subclasses__() for each in family(child)}

    ours = {cls.__name__ for cls in family(Objective) - {Objective} if cls.__module__ == "advsphere.objectives"}
    assert ours == set(OBJECTIVES)
    assert all(type(row.objective).__name__ == name for name, row in OBJECTIVES.items())


@attacks
@norms
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_images_in_half_precision_keep_their_type_or_are_refused(row, norm, dtype):
    model, x, y = conv_net().eval().to(dtype), images(4).to(dtype), labels(4)
    try:
        x_adv = row.make(ThreatModel(norm=norm, eps=RADII[norm]))(model, x, y, rng=Rng(0, torch.arange(4)))
    except UserError as refusal:
        assert "give the model and the images in float32" in str(refusal)
    else:
        assert x_adv.dtype == dtype and x_adv.min() >= 0 and x_adv.max() <= 1


def extreme_images(n):
    """Uniform images, one black, one white, and one of both."""
    x = images(n)
    x[0], x[1], x[2] = 0.0, 1.0, (x[2] > 0.5).float()
    return x


@attacks
@norms
def test_a_thousand_classes_cost_and_change_nothing_that_twelve_do_not(row, norm, monkeypatch):
    threat, x, y = ThreatModel(norm=norm, eps=RADII[norm]), images(4), labels(4)
    backwards = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: backwards.append(1) or grad(*args, **options))
    results, costs = [], []
    for extra in (0, 988):  # classes that are never likely
        network = nn.Sequential(conv_net(classes=12), nn.ConstantPad1d((0, extra), -1e4)).eval().double()
        forwards = count_examples(network)
        with frozen(network) as model:
            results.append(row.make(threat)(model, x.double(), y, rng=Rng(0, torch.arange(4))))
        costs.append((forwards, len(backwards)))
        backwards.clear()
    assert torch.allclose(results[0], results[1], rtol=0, atol=1e-9)
    assert costs[0] == costs[1]


@attacks
@norms
@pytest.mark.parametrize("eps", [0.0, 1.0, 100.0], ids=["eps 0", "eps", "eps 100x"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_inside_the_ball_and_the_box(row, norm, eps, dtype):
    threat = ThreatModel(norm=norm, eps=eps * RADII[norm])
    x, y, model = extreme_images(6).to(dtype), labels(6), conv_net().eval().to(dtype)
    x_adv = row.make(threat)(model, x, y, rng=Rng.of(x, seed=3))
    assert x_adv.shape == x.shape and x_adv.dtype == dtype and not x_adv.requires_grad
    assert threat.contains(x_adv, x).all()
    if eps == 0:
        assert (x_adv - x).abs().max() <= 1e-7


@attacks
@norms
def test_a_box_of_other_bounds_is_kept(row, norm):
    threat = ThreatModel(norm=norm, eps=50 * RADII[norm], bounds=(-1.0, 0.3))
    x = images(5, low=-1.0, high=0.3)
    x_adv = row.make(threat)(conv_net().eval(), x, labels(5), rng=Rng.of(x))
    assert threat.contains(x_adv, x).all() and x_adv.min() < -0.9


@attacks
@norms
def test_nothing_is_touched(row, norm):
    model, x, y = mixed(conv_net(dropout=0.5)), images(6).requires_grad_(True), labels(6)
    x.grad = torch.ones_like(x)
    rng = Rng.of(x, seed=1)
    before, x_before, y_before, ids = state_of(model), x.detach().clone(), y.clone(), rng.ids.clone()
    with global_randomness_untouched():
        x_adv = row.make(ThreatModel(norm=norm, eps=RADII[norm]))(model, x, y, rng=rng)
    assert not x_adv.requires_grad
    assert_same_state(before, state_of(model))
    assert torch.equal(x, x_before) and torch.equal(y, y_before) and torch.equal(rng.ids, ids)
    assert x.requires_grad and torch.equal(x.grad, torch.ones_like(x))


@attacks
@pytest.mark.parametrize("fold", [False, True])
def test_nothing_is_touched_through_a_frozen_view(row, fold):
    model, x = mixed(conv_net(dropout=0.5)), images(6)
    before = state_of(model)
    with global_randomness_untouched(), frozen(model, fold=fold) as classify:
        row.make(ThreatModel(norm="linf", eps=0.06))(classify, x, labels(6), rng=Rng.of(x))
    assert_same_state(before, state_of(model))


@attacks
@norms
def test_grad_mode_is_kept_and_does_not_matter(row, norm):
    threat, x, y, model = ThreatModel(norm=norm, eps=RADII[norm]), images(5), labels(5), conv_net().eval()
    usual = row.make(threat)(model, x, y, rng=Rng.of(x))
    with torch.no_grad():
        quiet = row.make(threat)(model, x, y, rng=Rng.of(x))
        assert not torch.is_grad_enabled()
    assert torch.equal(usual, quiet) and torch.is_grad_enabled()


@attacks
@norms
def test_the_seed_decides(row, norm):
    threat, x, y, model = ThreatModel(norm=norm, eps=RADII[norm]), images(6), labels(6), conv_net().eval()
    with torch.no_grad():
        y = model(x).argmax(1)  # nothing is misclassified, so that every example is attacked

    def run(seed):
        return row.make(threat)(model, x, y, rng=Rng.of(x, seed=seed))

    assert torch.equal(run(7), run(7))
    assert torch.equal(run(7), run(8)) != row.random
    assert torch.equal(row.make(threat)(model, x, y), run(0)), "without rng: seed 0 and the ids 0 to B - 1"


@attacks
@norms
def test_batch_mates_do_not_matter(row, norm):
    """Alone, permuted, beside others: the same. Some are misclassified, some fall late, some hold out."""
    threat = ThreatModel(norm=norm, eps=RADII[norm])
    model, x, ids = conv_net().double().eval(), images(8).double(), torch.tensor([5, 9, 2, 40, 41, 3, 77, 1000])
    with torch.no_grad():
        y = model(x).argmax(1)
    y[1], y[4] = (y[1] + 1) % 4, (y[4] + 2) % 4
    attack = row.make(threat, steps=7)
    whole = attack(model, x, y, rng=Rng(0, ids))
    hit = fooled(model(whole), y)
    assert 2 < hit.sum() < 8, "the example is only telling where some fall and some resist"

    def part(index):
        return attack(model, x[index], y[index], rng=Rng(0, ids).take(index))

    for i in range(8):
        assert torch.allclose(part(torch.tensor([i])), whole[i : i + 1], atol=1e-9)
    for index in (torch.tensor([7, 2, 5, 0, 1, 3, 6, 4]), torch.tensor([6, 1, 3])):
        assert torch.allclose(part(index), whole[index], atol=1e-9)


@attacks_that(lambda row: row.iterates and not row.until_fooled)
@norms
def test_compaction_changes_only_what_is_fooled(row, norm):
    threat = ThreatModel(norm=norm, eps=RADII[norm])
    model, x = conv_net().double().eval(), images(8).double()
    with torch.no_grad():
        y = model(x).argmax(1)
    rng = Rng.of(x)
    full = row.make(threat)(model, x, y, rng=rng)
    compacted = row.make(threat, until_fooled=True)(model, x, y, rng=rng)
    with torch.no_grad():
        hit, resisted = fooled(model(compacted), y), ~fooled(model(full), y)
    assert (hit | resisted).all(), "compaction must never lose a success"
    assert 2 < hit.sum() < 8 and torch.allclose(compacted[~hit], full[~hit], atol=1e-9)


@attacks_that(lambda row: row.targeted is not None)
@norms
def test_targeted_reaches_its_target_on_a_linear_model(row, norm):
    generator = torch.Generator().manual_seed(0)
    weight = 0.05 * torch.randn(5, 192, generator=generator)
    weight[:, :5] += 30 * torch.eye(5)  # a pixel for each class, so that it can be done in l1 as well
    model, x = linear_net(weight), images(10, low=0.4, high=0.6)
    threat = ThreatModel(norm=norm, eps=30 * RADII[norm])
    with torch.no_grad():
        before = model(x).argmax(1)
    for shift in range(1, 5):
        target = (before + shift) % 5
        x_adv = row.targeted(threat, steps=40, step_size=threat.eps / 10)(model, x, target, rng=Rng.of(x))
        assert threat.contains(x_adv, x).all()
        assert (model(x_adv).argmax(1) == target).all()


@attacks
@norms
@pytest.mark.parametrize("size", [0, 1])
def test_batches_of_none_and_one(row, norm, size):
    x = images(size)
    attack = row.make(ThreatModel(norm=norm, eps=RADII[norm]))
    x_adv = attack(conv_net().eval(), x, labels(size), rng=Rng.of(x))
    assert x_adv.shape == (size, 3, 8, 8)


@attacks
@norms
def test_memory_layout_does_not_matter(row, norm):
    threat, model, x, y = (
        ThreatModel(norm=norm, eps=RADII[norm]),
        conv_net().double().eval(),
        images(6).double(),
        labels(6),
    )
    usual = row.make(threat)(model, x, y, rng=Rng.of(x))
    strided = torch.zeros(6, 3, 8, 16, dtype=x.dtype)[..., ::2].copy_(x)
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    expanded = x[:1].expand(6, -1, -1, -1)
    for other in (strided, transposed, x.contiguous(memory_format=torch.channels_last)):
        assert torch.allclose(row.make(threat)(model, other, y, rng=Rng.of(x)), usual, atol=1e-9)
    assert threat.contains(row.make(threat)(model, expanded, y, rng=Rng.of(x)), expanded).all()
