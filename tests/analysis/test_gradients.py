"""Gradient norms of layers, where they are known; and that looking at them changes nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advsphere.analysis.crafting import craft
from advsphere.analysis.gradients import gradient_figure, layer_gradients, record_ratios, recorded_ratios
from advsphere.data import ImageSet
from advsphere.losses import cross_entropy
from advsphere.recipes import recipe
from advsphere.rng import Rng
from advsphere.runs.train import train
from advsphere.threat import ThreatModel
from advsphere.training import read_metrics

THREAT = ThreatModel(norm="linf", eps=0.1)


def noise(n: int = 24, shape: tuple[int, int, int] = (1, 3, 3)) -> ImageSet:
    pixels = Rng(0, torch.arange(n)).uniform(shape, "pixels")
    return ImageSet(pixels, torch.arange(n) % 3, tuple("abc"), "noise")


def first_logit(logits: Tensor, y: Tensor) -> Tensor:
    return logits[:, 0]


def linear_layers(*weights: Tensor) -> nn.Sequential:
    layers = [nn.Linear(w.shape[1], w.shape[0], bias=False) for w in weights]
    with torch.no_grad():
        for layer, w in zip(layers, weights, strict=True):
            layer.weight.copy_(w)
    return nn.Sequential(nn.Flatten(), *layers)


def test_the_ratio_of_a_linear_layer_is_known() -> None:
    """With a loss that is linear in the logits the gradient of A in W A x is W_0 (mean x)'."""
    model = linear_layers(Rng(1, torch.arange(5)).normal((9,), "a"), Rng(2, torch.arange(3)).normal((5,), "w"))
    images = noise()
    found = layer_gradients(model, images, threat=THREAT, criterion=first_logit, batch_size=8)
    crafted = craft(model, images, threat=THREAT, batch_size=8)
    expected = []
    for x in (crafted.x, crafted.x_adv):
        means = [part.flatten(1).mean(0).norm() for part in x.split(8)]
        expected.append(float(torch.stack(means).mean() * model[2].weight[0].detach().norm()))
    assert (found.layers, found.kinds) == (("1",), ("linear",)), "the head is left out"
    assert (found.clean[0], found.adversarial[0]) == pytest.approx(expected, rel=1e-4)
    assert found.ratio[0] == pytest.approx(expected[1] / expected[0], rel=1e-4)


def convolutional() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 3)
        )


def test_nothing_moves_and_the_mode_does_not_matter() -> None:
    """The official script's clean pass moves the running statistics, and comes after the step."""
    model, images = convolutional().train(), noise()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    found = layer_gradients(model, images, threat=THREAT)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training and model[3].training and bool((model[0].weight.grad == 1).all())
    assert model[1].weight.grad is None
    assert found == layer_gradients(model.eval(), images, threat=THREAT)
    assert found.kinds == ("conv", "norm")


def test_at_radius_zero_every_ratio_is_one() -> None:
    found = layer_gradients(convolutional(), noise(), threat=ThreatModel(norm="linf", eps=0.0))
    assert found.ratio == pytest.approx((1.0, 1.0))


def test_an_unused_layer_has_no_ratio() -> None:
    model = linear_layers(torch.eye(9), torch.eye(3, 9))
    found = layer_gradients(model, noise(), threat=THREAT, criterion=lambda logits, y: 0 * logits[:, 0])
    assert found.ratio[0] != found.ratio[0] and found.middle != found.middle


def test_what_is_recorded_can_be_read_again() -> None:
    model, images = convolutional(), noise()
    line = record_ratios(model, images, cross_entropy, threat=THREAT, n=16)
    found = layer_gradients(model, images.first(16), threat=THREAT)
    epochs, ratios = recorded_ratios([{"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0, **line}, {"epoch": 3.0, **line}])
    assert epochs == (2.0, 3.0)
    assert ratios == {name: (ratio, ratio) for name, ratio in zip(found.layers, found.ratio, strict=True)}
    assert recorded_ratios([{"epoch": 1.0}]) == ((), {})


def test_recording_does_not_change_what_is_trained(tmp_path: Path) -> None:
    config = recipe("digits-fastat-he")
    config = replace(config, training=replace(config.training, epochs=1))
    record = partial(record_ratios, threat=config.threat, n=32)
    with_, without = (
        train(config, tmp_path / name, **options).state_dict()
        for name, options in (("with", {"record": record}), ("without", {}))
    )
    assert all(torch.equal(v, without[k]) for k, v in with_.items())
    epochs, ratios = recorded_ratios(read_metrics(tmp_path / "with"))
    assert epochs == (1.0,) and all(len(values) == 1 and values[0] > 0 for values in ratios.values())
    assert recorded_ratios(read_metrics(tmp_path / "without")) == ((), {})


def test_the_figure_has_a_panel_for_training_where_it_was_recorded_ratios() -> None:
    found = layer_gradients(convolutional(), noise(), threat=THREAT)
    line = {"epoch": 1.0, "gradient_ratio/0": 2.0, "gradient_ratio/1": 3.0}
    figure = gradient_figure({"one": {"initial": found, "best": found}}, {"one": [line, {**line, "epoch": 2.0}]})
    left, right = figure.axes
    assert list(left.lines[0].get_ydata()) == list(found.ratio)
    assert list(right.lines[2].get_ydata()) == [2.5, 2.5], "the median of the layers"
    assert len(gradient_figure({"one": {"best": found}}, {}).axes) == 1
