"""The recipes against what the paper's sources say, typed here once more and by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from advsphere.classifier import find_head
from advsphere.errors import UserError
from advsphere.hypersphere import AngularMargin, HypersphereHead
from advsphere.models import build
from advsphere.objectives import ALP, Crafting
from advsphere.recipes import OURS, RECIPES, TABLES, describe, method, plain, recipe
from advsphere.rng import Rng
from advsphere.runs.config import Config
from advsphere.runs.config_yaml import from_yaml, to_yaml

PAPER = {config.recipe: config for table, configs in TABLES.items() if table != OURS for config in configs}
PAIRS = [(plain(name), name) for name in RECIPES if plain(name) != name]

# fmt: off
ON_CIFAR = {"data": "cifar10", "image_size": None, "resize": None, "validation": 1000, "padding": 4, "flip": True,
            "min_area": None, "momentum": 0.9, "batch": 128}
WIDE = ON_CIFAR | {"network": "wrn-34-10", "epochs": 77, "lr": 0.1, "weight_decay": 2e-4, "judged_at": 0.031}
PGD_10 = {"eps": 0.031, "steps": 10, "step_size": 0.007, "start": "normal", "mode": "eval"}
SMALL = ON_CIFAR | {"network": "preactresnet-18", "weight_decay": 5e-4, "judged_at": 8 / 255, "eps": 8 / 255}
FAST = SMALL | {"objective": "FastAT", "epochs": 30, "lr": 0.2, "steps": 1, "step_size": 10 / 255, "start": "uniform",
                "mode": "train"}
FREE = SMALL | {"objective": "FreeAT", "epochs": 10, "lr": 0.04, "step_size": 8 / 255, "replays": 8}
FREE_4 = {"objective": "FreeAT", "eps": 4 / 255, "step_size": 4 / 255, "replays": 4, "epochs": 23, "lr": 0.1,
          "momentum": 0.9, "weight_decay": 1e-4, "batch": 256, "data": "imagefolder", "image_size": 224,
          "resize": 256, "validation": 1000, "padding": 0, "flip": True, "min_area": 0.08, "judged_at": 4 / 255}
HE_15, HE_20, HE_10 = {"s": 15, "m": 0.2}, {"s": 20, "m": 0.3}, {"s": 10, "m": 0.2}
README_OF_AUGUST = HE_10 | {"weight_decay": 5e-4, "judged_at": 8 / 255}

SOURCES = {
    "cifar10-pgd-at": WIDE | PGD_10 | {"objective": "PGDAT"},
    "cifar10-pgd-at-he": WIDE | PGD_10 | {"objective": "PGDAT"} | HE_15,
    "cifar10-alp": WIDE | PGD_10 | {"objective": "ALP", "beta": 0.5},
    "cifar10-alp-he": WIDE | PGD_10 | {"objective": "ALP", "beta": 0.00125} | HE_20,
    "cifar10-trades": WIDE | PGD_10 | {"objective": "TRADES", "beta": 6},
    "cifar10-trades-he": WIDE | PGD_10 | {"objective": "TRADES", "beta": 6} | HE_15,
    "cifar10-fastat": FAST,
    "cifar10-fastat-he": FAST | HE_15,
    "cifar10-fastat-m-he": FAST | HE_15,
    "cifar10-freeat": FREE,
    "cifar10-freeat-he": FREE | HE_15,
    "cifar10-freeat-m-he": FREE | HE_15,
    "imagenet-freeat": FREE_4 | {"network": "torchvision:resnet50"},
    "imagenet-freeat-he": FREE_4 | {"network": "torchvision:resnet50"} | HE_10,
    "imagenet-freeat-resnet50": FREE_4 | {"network": "torchvision:resnet50"},
    "imagenet-freeat-he-resnet50": FREE_4 | {"network": "torchvision:resnet50"} | HE_10,
    "imagenet-freeat-resnet152": FREE_4 | {"network": "torchvision:resnet152"},
    "imagenet-freeat-he-resnet152": FREE_4 | {"network": "torchvision:resnet152"} | HE_10,
    "imagenet-freeat-wrn50-2": FREE_4 | {"network": "torchvision:wide_resnet50_2"},
    "imagenet-freeat-he-wrn50-2": FREE_4 | {"network": "torchvision:wide_resnet50_2"} | HE_10,
    "imagenet-freeat-wrn101-2": FREE_4 | {"network": "torchvision:wide_resnet101_2"},
    "imagenet-freeat-he-wrn101-2": FREE_4 | {"network": "torchvision:wide_resnet101_2"} | HE_10,
    "cifar10-pgd-at-he-s10": WIDE | PGD_10 | {"objective": "PGDAT"} | README_OF_AUGUST,
    "cifar10-pgd-at-he-s10-wrn-34-20": WIDE | PGD_10 | {"objective": "PGDAT"} | README_OF_AUGUST
                                       | {"network": "wrn-34-20"},
    "cifar10-standard": WIDE | {"objective": "Standard"},
}
"""Copied from the scripts, configs and READMEs of AT_HE and fast_adversarial, not from the recipes; `validation` is
ours."""

TABLE_ROWS = {
    "Table 2": ["PGD-AT", "PGD-AT+HE", "ALP", "ALP+HE", "TRADES", "TRADES+HE"],
    "Table 3": ["FastAT", "FastAT+HE", "FastAT+m-HE (our reading)", "FreeAT", "FreeAT+HE", "FreeAT+m-HE (our reading)"],
    "Table 4": ["FreeAT", "FreeAT+HE"] * 5,  # the short names, and four networks
    "Table 6": ["PGD-AT+HE", "PGD-AT+HE"],
    "Table 7": ["standard training"],
}
WEIGHTS = {
    "wrn-34-10": 46_160_474, "wrn-34-20": 184_531_674, "preactresnet-18": 11_172_170,
    "torchvision:resnet50": 25_557_032, "torchvision:resnet152": 60_192_808,
    "torchvision:wide_resnet50_2": 68_883_240, "torchvision:wide_resnet101_2": 126_886_696,
}
"""As published with each network; wide ResNets by hand from their definition, without AT_HE's unused `sub_block1`."""
# fmt: on


def settings(config: Config) -> dict[str, Any]:
    """The numbers of a config, flat, and under the names of the table above."""
    objective, training, sphere = config.objective, config.training, config.sphere
    found = {
        "objective": type(objective).__name__,
        "data": config.data.name,
        "image_size": config.data.image_size,
        "resize": config.data.resize,
        "validation": config.data.validation,
        "network": config.model.name,
        "epochs": training.epochs,
        "batch": training.batch_size,
        "lr": training.lr,
        "momentum": training.momentum,
        "weight_decay": training.weight_decay,
        "padding": training.augment.padding,
        "flip": training.augment.flip,
        "min_area": training.augment.min_area,
        "judged_at": config.threat.eps,
    }
    for key in ("steps", "step_size", "start", "mode", "beta"):
        if hasattr(objective, key):
            found[key] = getattr(objective, key)
    if hasattr(objective, "threat"):
        assert objective.threat.norm == config.threat.norm == "linf"
        found["eps"] = objective.threat.eps
    if objective.replays > 1:
        found["replays"] = objective.replays
    if sphere is not None:
        assert sphere.normalize_features and sphere.normalize_weights
        found |= {"s": sphere.scale, "m": sphere.margin}
    return found


def rates(config: Config, batches: int = 391) -> list[tuple[float, float]]:
    """The learning rate at the first and at the last batch of each epoch."""
    n, lr, schedule = config.training.epochs, config.training.lr, config.training.lr_schedule
    return [(lr * schedule(epoch / n), lr * schedule((epoch + (batches - 1) / batches) / n)) for epoch in range(n)]


@pytest.mark.parametrize("name", SOURCES)
def test_hyperparameters_are_those_of_the_sources(name):
    assert settings(recipe(name)) == SOURCES[name]


def test_every_trained_row_of_the_tables_has_its_recipe_and_no_other():
    assert PAPER.keys() == SOURCES.keys()
    assert {table: [method(c) for c in TABLES[table]] for table in TABLES if table != OURS} == TABLE_ROWS


def test_a_name_stands_for_one_config():
    assert len(RECIPES) == sum(map(len, TABLES.values()))
    assert all(config.recipe == name for name, config in RECIPES.items())


@pytest.mark.parametrize("suffix", ["", "-he"])
def test_fastat_and_pgd_at_on_imagenet_are_listed_as_ours(suffix):
    fast, pgd = recipe(f"imagenet-fastat{suffix}"), recipe(f"imagenet-pgd-at{suffix}")
    assert {fast.recipe, pgd.recipe} <= {config.recipe for config in TABLES[OURS]}
    on_imagenet = {key: FREE_4[key] for key in ("data", "image_size", "resize", "flip", "min_area", "weight_decay")}
    for config in (fast, pgd):
        assert settings(config).items() >= on_imagenet.items()
        assert {"differs", "uncertain" if config.sphere or config is pgd else "source"} <= {
            note.split(":")[0] for note in config.notes
        }
    assert settings(fast).items() >= {"eps": 4 / 255, "step_size": 5 / 255, "epochs": 15, "mode": "train"}.items()
    ends = [fast.training.lr * fast.training.lr_schedule(epoch / 15) for epoch in (0, 1, 6, 12, 15)]
    assert ends == pytest.approx([0, 0.2, 0.02, 0.002, 0.0002])
    assert settings(pgd).items() >= {"eps": 4 / 255, "steps": 3, "epochs": 90, "batch": 512, "mode": "eval"}.items()
    assert [first for first, _ in rates(pgd)][29:61:10] == pytest.approx([0.1, 0.01, 0.01, 0.01])


@pytest.mark.parametrize("suffix", ["", "-he"])
def test_the_short_names_of_imagenet_are_resnet_50(suffix):
    long = recipe(f"imagenet-freeat{suffix}-resnet50")
    assert recipe(f"imagenet-freeat{suffix}") == replace(long, recipe=f"imagenet-freeat{suffix}")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_yaml_as_it_was(name):
    assert from_yaml(to_yaml(RECIPES[name])) == RECIPES[name]


@pytest.mark.parametrize(("base", "on_sphere"), PAIRS)
def test_pairs_differ_in_the_sphere_alone(base, on_sphere):
    base, on_sphere = recipe(base), recipe(on_sphere)
    assert base.sphere is None and on_sphere.sphere is not None
    stripped = replace(on_sphere, recipe=base.recipe, notes=base.notes, sphere=None)
    if on_sphere.recipe in (
        "cifar10-alp-he",
        "cifar10-small-alp-he",
        "folder-alp-he",
    ):  # beta weighs logits 20 times the cosines
        stripped = replace(stripped, objective=replace(stripped.objective, beta=base.objective.beta))
    assert stripped == base


def test_every_recipe_on_a_sphere_has_a_plain_partner():
    assert {name for name, config in RECIPES.items() if config.sphere} == {on_sphere for _, on_sphere in PAIRS}
    assert plain("imagenet-freeat-he-wrn50-2") == "imagenet-freeat-wrn50-2" and plain("my-head") == "my-head"


@pytest.mark.parametrize("name", [name for name in PAPER if SOURCES[name]["network"].startswith("wrn")])
def test_the_wide_networks_learn_ten_times_slower_from_epoch_75_of_77(name):
    for epoch, (first, last) in enumerate(rates(recipe(name)), start=1):
        assert first == last == pytest.approx(0.1 if epoch < 75 else 0.01)


@pytest.mark.parametrize("name", [name for name in PAPER if name.startswith("imagenet")])
def test_imagenet_learns_ten_times_slower_every_8_epochs(name):
    for epoch, (first, last) in enumerate(rates(recipe(name), batches=5000)):
        assert first == last == pytest.approx(0.1 * 0.1 ** (epoch // 8))


@pytest.mark.parametrize("name", [name for name in PAPER if SOURCES[name]["network"].startswith("preact")])
def test_the_small_networks_learn_along_a_triangle(name):
    config, peak = recipe(name), 0.2 if "fastat" in name else 0.04
    at = [0.0, 0.1, 0.25, 0.5, 0.8, 1.0]
    assert [config.training.lr * config.training.lr_schedule(p) for p in at] == pytest.approx(
        [peak * (1 - abs(2 * p - 1)) for p in at]
    )


def test_alp_he_is_the_official_loss_on_bare_cosines():
    """0.5 CE(s (cos - m)) on clean and adversarial images each, and 0.5 times the mean square of the cosines'
    difference, in float64.
    """
    config, y = recipe("cifar10-alp-he"), torch.tensor([0, 3, 9, 3])
    assert isinstance(config.objective, ALP) and config.sphere is not None
    head = HypersphereHead(6, 10, scale=config.sphere.scale)
    x, x_adv = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    ours = config.objective.loss(head, x, x_adv, y, criterion=AngularMargin(head, config.sphere.margin))

    def cosines(z):
        return nn.functional.normalize(z.double()) @ nn.functional.normalize(head.weight.double()).T

    def entropy(cos):
        logits = 20 * (cos - 0.3 * torch.eye(10)[y])
        return (logits.exp().sum(1).log() - logits[range(4), y]).mean()

    clean, robust = cosines(x), cosines(x_adv)
    expected = 0.5 * entropy(clean) + 0.5 * entropy(robust) + 0.5 * ((clean - robust) ** 2).mean()
    assert ours.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_for_fastat_only_the_ramp_of_m_he_matters():
    """As its note says: applying the margin while crafting changes no adversarial example."""
    config = recipe("cifar10-fastat-m-he")
    head = HypersphereHead(8, 10, scale=config.sphere.scale)
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    x, y = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    rng = Rng(0, torch.arange(6))
    without = config.objective.craft(model, x, y, Crafting(rng))
    shifted = config.objective.craft(model, x, y, Crafting(rng, shift=AngularMargin(head, 0.2).shift))
    assert torch.equal(without, shifted) and not torch.equal(without, x)


@pytest.mark.parametrize("network", sorted({config.model.name for config in PAPER.values()}))
def test_networks_are_those_of_the_paper(network):
    """Built without memory or arithmetic, so that 184 million weights cost nothing."""
    imagenet = network.startswith("torchvision")
    classes, size = (1000, 224) if imagenet else (10, 32)
    with FakeTensorMode():
        model = build(network, num_classes=classes, image_size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert sum(p.numel() for p in model.parameters()) == WEIGHTS[network]
    assert find_head(model) == "network.fc"


@pytest.mark.parametrize("name", PAPER)
def test_notes_are_lines_that_name_sources_and_what_is_uncertain(name):
    notes = PAPER[name].notes
    kinds = {note.split(":")[0] for note in notes}
    assert (
        {"source", "uncertain", "differs"}
        <= kinds
        <= {"source", "uncertain", "differs", "compare", "m-HE (our reading)"}
    )
    assert all("\n" not in note and len(note) < 240 for note in notes)
    assert ("m-HE (our reading)" in kinds) == name.endswith("-m-he")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("cifar10-pgd-at-he", "Table 2"),
        ("cifar10-alp", "beta"),
        ("cifar10-trades", "beta"),
        ("cifar10-fastat-he", "s and m"),
        ("cifar10-freeat-he", "s and m"),
        ("imagenet-freeat", "23 epochs"),
        ("imagenet-freeat-he-wrn101-2", "s and m"),
        ("cifar10-pgd-at-he-s10", "Table 6"),
        ("cifar10-standard", "all settings"),
    ],
)
def test_what_no_source_settles_is_marked(name, word):
    assert any(note.startswith("uncertain:") and word in note for note in recipe(name).notes)


def test_the_listing_has_one_line_for_each_recipe():
    listings = describe()
    assert [listing.config for listing in listings] == list(RECIPES.values())
    assert all("\n" not in listing.summary for listing in listings)
    (alp,) = [listing for listing in listings if listing.config.recipe == "cifar10-alp-he"]
    assert (alp.table, alp.summary) == (
        "Table 2",
        "ALP+HE, s = 20, m = 0.3: wrn-34-10 on cifar10, 77 epochs, weight decay 0.0002",
    )


def test_m_he_is_listed_as_our_reading_and_nothing_else_is():
    for listing in describe():
        assert ("m-HE (our reading)" in listing.summary) == listing.config.recipe.endswith("-m-he")


@pytest.mark.parametrize(
    ("wrong", "right"), [("cifar10-trade", "cifar10-trades"), ("imagenet-free-he", "imagenet-freeat-he")]
)
def test_an_unknown_name_names_the_nearest(wrong, right):
    with pytest.raises(UserError, match=f"no recipe is called '{wrong}'; did you mean {right} or ") as error:
        recipe(wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("he", ["", "-he"])
@pytest.mark.parametrize("name", ["cifar10-speedrun", "cifar10-speedrun-50"])
def test_speedruns_say_that_they_were_not_measured_on_a_gpu(name, he):
    config = recipe(name + he)
    assert config in TABLES[OURS] and any("has been measured" in note for note in config.notes)
    assert settings(config).items() >= {**SMALL, **(HE_15 if he else {}), "epochs": 30}.items()
    training = config.training
    assert training.label_smoothing == 0.1 and training.augment.cutout == 8 and training.augment.alternate
    assert training.optimizer_arguments == {"nesterov": True} and training.ema == 0
