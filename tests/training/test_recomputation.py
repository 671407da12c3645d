"""Activations that are computed again: the same gradients and running statistics, bit for bit."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from advsphere.errors import UserError
from advsphere.hypersphere import HypersphereConfig
from advsphere.losses import cross_entropy
from advsphere.models import build
from advsphere.objectives import ALP, Crafting, FastAT, FreeAT, Objective
from advsphere.rng import Rng
from advsphere.training.recomputation import recompute_blocks
from advsphere.training.scaling import LossScale
from advsphere.training.step import BatchGradient, Division
from tests.laws import conv_net, images
from tests.training.tiny import few_images, kept, same, state, tiny_trainer


def network(name: str) -> nn.Module:
    model = build(name, num_classes=4, image_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
    HypersphereConfig().attach(model)
    return model.train()


def gradient(model: nn.Module, objective: Objective) -> dict[str, torch.Tensor]:
    context = Crafting(Rng(0, torch.arange(3)), fold=True)
    BatchGradient(model, objective, cross_entropy, Division(3), LossScale(torch.device("cpu"), None)).backward(
        images(3, size=16), torch.arange(3), 3, context
    )
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["wrn-10-1", "preactresnet-18", "torchvision:resnet18", "timm:resnet26"])
@pytest.mark.parametrize("objective", [FastAT(), ALP(steps=1), FreeAT()], ids=["train mode", "eval mode", "carried"])
def test_gradients_and_running_statistics_are_the_same(name: str, objective: Objective) -> None:
    plain = network(name)
    again = copy.deepcopy(plain)
    recompute_blocks(again)
    one, other = gradient(plain, objective), gradient(again, objective)
    assert len(one) == len(list(plain.parameters())) and same(one, other)
    assert same(state(plain), state(again))


def test_each_block_runs_again_in_the_backward() -> None:
    model, runs = network("wrn-10-1"), Counter[str]()
    recompute_blocks(model)
    for part in ("network.conv1", "network.group1.0.conv1", "network.group3.0.bn2", "network.fc"):
        model.get_submodule(part).register_forward_hook(lambda *_, part=part: runs.update([part]))
    loss = model(images(2, size=16)).sum()
    assert set(runs.values()) == {1}
    loss.backward()
    assert runs == {"network.conv1": 1, "network.group1.0.conv1": 2, "network.group3.0.bn2": 2, "network.fc": 1}
    with torch.no_grad():
        model(images(2, size=16))
    assert runs["network.group1.0.conv1"] == 3


def test_a_run_is_the_same_with_dropout_an_average_and_bfloat16(tmp_path: Path) -> None:
    for recomputing in (False, True):
        net = network("wrn-10-1")
        block = net.get_submodule("network.group2.0")
        block.bn2 = nn.Sequential(block.bn2, nn.Dropout(0.3))
        trainer = tiny_trainer(
            tmp_path / f"{recomputing}",
            FastAT(),
            images=few_images(),
            model=net,
            checkpoint_activations=recomputing,
            ema=0.5,
            precision="bfloat16",
        )
        trainer.fit()
    for part in ("model", "raw", "optimizer"):
        assert same(kept(tmp_path / "False", "last", part), kept(tmp_path / "True", "last", part))


def test_a_network_without_blocks_is_told_so() -> None:
    with pytest.raises(UserError, match=r"has no blocks .* leave out --checkpoint-activations"):
        recompute_blocks(conv_net())
