"""The feature attack: guides of other classes, steps up the cosine, and one forward for features and logits."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import Cosines, Guides, feature_attack, pgd, surrogate
from advsphere.classifier import fooled, frozen, split
from advsphere.errors import UserError
from advsphere.losses import margin
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from tests.laws import conv_net, count_examples, images, labels, linear_net

LINF = ThreatModel(norm="linf", eps=0.02)


def pool(counts: list[int]) -> Guides:
    """As many guides of each class, shuffled, each of them a constant image that tells its label."""
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    return Guides(y.view(-1, 1, 1, 1).float() + torch.arange(len(y)).view(-1, 1, 1, 1) / 1000, y)


@pytest.mark.parametrize("counts", [[1, 1], [3, 5, 2], [0, 4, 0, 1, 7], [50, 1]])
def test_guides_are_of_other_classes_and_each_is_as_likely(counts: list[int]) -> None:
    guides, n = pool(counts), 4000
    for y in range(len(counts) + 1):  # the last one has no image at all
        others = guides.images[guides.labels != y].flatten()
        if len(others) == 0:
            continue
        drawn = guides.images[guides.draw(torch.full((n,), y), Rng(0, torch.arange(n)))].flatten()
        share = (drawn[:, None] == others).float().mean(0)
        assert share.sum() == pytest.approx(1.0), "nothing but the others"
        assert ((share - 1 / len(others)).abs() < 5 / (n * len(others)) ** 0.5).all()


def test_a_guide_is_a_matter_of_the_example_and_the_try_alone() -> None:
    guides, y, rng = pool([9, 9, 9]), labels(20, 3), Rng(4, torch.arange(20))
    whole = guides.draw(y, rng)
    assert torch.equal(guides.draw(y[5:9], rng.take(torch.arange(5, 9))), whole[5:9])
    assert not torch.equal(guides.draw(y, rng.at(restart=1)), whole)


def test_without_another_class_there_is_no_guide() -> None:
    with pytest.raises(UserError, match="has another class than 1"):
        pool([0, 3]).draw(torch.tensor([0, 1]), Rng(0, torch.arange(2)))
    with pytest.raises(UserError, match="a label for each"):
        Guides(images(3), labels(2))


def test_one_step_is_the_sign_of_the_cosines_gradient() -> None:
    """On an identity of features, with the gradient by hand: g / |f||g| - (f.g) f / |f|^3 |g|."""
    model = linear_net(torch.tensor([[10.0, 10, 10], [0, 0, 0]])).double()  # always class 0
    x, guide = torch.tensor([0.5, 0.4, 0.6]).double().view(1, 3, 1, 1), torch.tensor([0.9, 0.1, 0.2]).double()
    guides = Guides(guide.view(1, 3, 1, 1), torch.tensor([1]))
    attack = partial(feature_attack, head=model[1], guides=guides, tries=1)
    tiny = ThreatModel(norm="linf", eps=1e-9)  # hence the start is x, but for the rounding
    f, norm = x.flatten(), torch.linalg.vector_norm
    by_hand = guide / norm(f) / norm(guide) - (f @ guide) * f / norm(f) ** 3 / norm(guide)
    moved = attack(model, x, torch.tensor([0]), threat=tiny, steps=1, step_size=1.0) - x
    assert torch.equal(moved.sign().flatten(), by_hand.sign())
    far = attack(model, x, torch.tensor([0]), threat=ThreatModel(norm="l2", eps=5.0), steps=400, step_size=0.005)
    assert torch.cosine_similarity(far.flatten(), guide, dim=0) > 0.999


def test_the_features_are_those_of_split_and_cost_no_forward_of_their_own() -> None:
    model, x, y = conv_net().eval(), images(6), labels(6)
    with torch.no_grad():
        y = model(x).argmax(1)
    guides = Guides(images(30, seed=9), labels(30))
    frail = ThreatModel(norm="linf", eps=1e-6)  # nothing falls
    attack = partial(feature_attack, threat=frail, head=split(model).head, guides=guides, tries=3, steps=4)
    sizes = count_examples(model)
    attack(model, x, y)
    clean, goal = sizes[0], (sizes[1], *sizes[7::6])
    assert clean == 6 and all(size <= 6 for size in sizes) and sum(goal) <= 3 * 6
    assert sum(sizes) - clean - sum(goal) == 6 * 3 * (4 + 1), "the iterates alone"


def test_an_example_is_done_at_its_first_success() -> None:
    model, x = conv_net().eval(), images(12)
    with torch.no_grad():
        y = model(x).argmax(1)
    guides = Guides(images(30, seed=9), labels(30))
    attack = partial(feature_attack, threat=LINF, head=model[-1], guides=guides, steps=8, step_size=0.005)
    few, sizes = attack(model, x, y, tries=1), count_examples(model)
    many = attack(model, x, y, tries=6)
    hit, later = fooled(model(few), y), fooled(model(many), y)
    assert 0 < hit.sum() < later.sum(), "more guides fool more"
    assert torch.equal(few[hit], many[hit]), "and what has fallen stays as it was"
    one_try = 1 + 9  # the guide and the iterates
    assert sizes[2] == 12 and sizes[1 + one_try] <= 12 - hit.sum() + 1
    assert sum(sizes) < 12 * (1 + 6 * one_try) and max(sizes) <= 16 and LINF.contains(many, x).all()


def test_guides_tried_together_are_those_tried_alone() -> None:
    """Nothing falls: the best of all tries, by margin, is the best of each of them."""
    model, x = conv_net().double().eval(), images(5).double()
    with torch.no_grad():
        y = model(x).argmax(1)
    guides, frail = Guides(images(30, seed=9).double(), labels(30)), ThreatModel(norm="linf", eps=1e-4)
    attack = partial(feature_attack, model, x, y, threat=frail, head=model[-1], guides=guides, steps=4, step_size=1e-4)
    together = attack(tries=7)
    alone = torch.stack([attack(tries=1, rng=Rng.of(x).at(restart=r)) for r in range(7)])
    margins = torch.stack([margin(model(one), y) for one in alone])
    best = alone[margins.argmax(0), torch.arange(5)]
    assert torch.allclose(together, best, atol=1e-12) and len(margins.argmax(0).unique()) > 1


def test_of_guides_tried_together_the_first_success_counts() -> None:
    model, x = conv_net().double().eval(), images(12).double()
    with torch.no_grad():
        y = model(x).argmax(1)
    guides = Guides(images(30, seed=9).double(), labels(30))
    attack = partial(feature_attack, model, x, y, threat=LINF, head=model[-1], guides=guides, steps=8, step_size=0.005)
    hits = torch.stack([fooled(model(attack(tries=1, rng=Rng.of(x).at(restart=r))), y) for r in range(7)])
    assert torch.equal(fooled(model(attack(tries=7)), y), hits.any(0)) and 0 < hits.any(0).sum() < 12


def test_any_view_of_the_network_will_do() -> None:
    model, x = conv_net().eval(), images(6)
    with torch.no_grad():
        y = model(x).argmax(1)
    guides = Guides(images(10, seed=9), labels(10))
    attack = partial(feature_attack, threat=LINF, head=model[-1], guides=guides, tries=2, steps=3)
    plain = attack(model, x, y)
    for options in ({}, {"fold": True}):
        with frozen(model, **options) as view:
            assert (attack(view, x, y) - plain).abs().max() < 0.01
    with frozen(model, dtype=torch.bfloat16) as view:
        assert LINF.contains(attack(view, x, y), x).all()
    assert not model[-1]._forward_pre_hooks


def test_a_head_of_another_network_and_no_guide_at_all_are_refused() -> None:
    model, x, y = conv_net().eval(), images(2), labels(2)
    attack = partial(feature_attack, threat=LINF, guides=Guides(images(10), labels(10)))
    with torch.no_grad():
        y = model(x).argmax(1)
    with pytest.raises(UserError, match="never runs the Linear"):
        attack(model, x, y, head=conv_net()[-1])
    with pytest.raises(UserError, match="tries is 0"):
        attack(model, x, y, head=model[-1], tries=0)


class Gate(nn.Module):
    """Cross-entropy sees no gradient (the head multiplies by a step function), the features do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])

    def forward(self, x: Tensor) -> Tensor:
        return (100 * self.head(x.flatten(1))).round()


def test_it_passes_a_head_that_masks_its_gradients() -> None:
    x = torch.tensor([[0.6, 0.5, 0.45, 0.5]]).view(1, 1, 2, 2)
    model, y = Gate(), torch.tensor([0])
    guides = Guides(torch.tensor([[0.0, 0.0, 1.0, 1.0]]).view(1, 1, 2, 2), torch.tensor([1]))
    threat = ThreatModel(norm="linf", eps=0.06)
    x_adv = feature_attack(model, x, y, threat=threat, head=model.head, guides=guides, tries=1)
    assert fooled(model(x_adv), y).all()


def test_a_batch_that_is_fooled_already_costs_one_forward() -> None:
    model, x = conv_net().eval(), images(4)
    y = (model(x).argmax(1) + 1) % 4
    sizes = count_examples(model)
    guides = Guides(images(8), torch.arange(8) % 4)
    x_adv = feature_attack(model, x, y, threat=LINF, head=split(model).head, guides=guides, tries=3, steps=2)
    assert torch.equal(x_adv, x) and sizes == [4]


@pytest.mark.parametrize("kind", ["weight norm", "at every place"])
def test_surrogates_take_heads_that_are_parametrised_and_heads_that_are_applied_at_every_place(kind: str) -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(2).mT).mean(1)

    torch.manual_seed(0)
    model: nn.Module = Places()
    if kind == "weight norm":
        model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(192, 4)))
    x = images(3)
    view = Cosines(split(model).head, 1.0)
    ascent = partial(pgd, threat=LINF, steps=2, step_size=0.01, start="clean")
    x_adv = surrogate(model, x, model(x).argmax(1), ascent=ascent, view=view)
    assert LINF.contains(x_adv, x).all() and (x_adv != x).any()
