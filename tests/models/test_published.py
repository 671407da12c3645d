"""Checkpoints of other projects, by their published key names: the same logits as an independent forward."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from advsphere import attach_head
from advsphere.classifier import PixelClassifier
from advsphere.errors import UserError
from advsphere.models import build, load_weights
from advsphere.models.networks import WideResNet
from advsphere.models.weights import recognised
from tests.models import others

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def built(name: str) -> PixelClassifier:
    return build(name, num_classes=10, image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3).eval()


def prefixed(state: others.State, prefix: str) -> others.State:
    return {f"{prefix}{name}": value for name, value in state.items()}


FAMILIES: dict[str, tuple[Callable[[], others.State], Callable[..., Tensor]]] = {
    "wrn-10-1": (partial(others.wide, 10, 1), others.wide_logits),
    "wrn-16-2": (partial(others.wide, 16, 2, sub_block=False), others.wide_logits),
    "dm-wrn-16-1": (partial(others.deepmind_wide, 16, 1), others.deepmind_wide_logits),
    "dm-preactresnet-18": (others.deepmind_preact, others.deepmind_preact_logits),
    "preactresnet-18": (partial(others.preact, final_norm=True), partial(others.preact_logits, activated=False)),
    "preactresnet-18-v2": (partial(others.preact, final_norm=True), partial(others.preact_logits, activated=True)),
    "preactresnet-18-nobn": (partial(others.preact, final_norm=False), partial(others.preact_logits, activated=False)),
    "preactresnet-18-v2-nobn": (
        partial(others.preact, final_norm=False),
        partial(others.preact_logits, activated=True),
    ),
    "cifar-resnet-18": (partial(others.resnet, 18), others.resnet_logits),
    "cifar-resnet-50": (partial(others.resnet, 50), others.resnet_logits),
}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_published_names_give_the_logits_of_an_independent_forward(name: str, tmp_path: Path) -> None:
    made, forward = FAMILIES[name]
    state = made()
    torch.save(prefixed(state, "module."), tmp_path / "net.pt")
    model = built(name)
    assert load_weights(model, tmp_path / "net.pt") == ""
    assert torch.allclose(model(X), forward(state, X), rtol=1e-4, atol=1e-4)
    if name.startswith("preactresnet"):  # both kinds of shortcut have the same weights
        other = name.replace("-v2", "") if "-v2" in name else name.replace("-18", "-18-v2")
        with pytest.raises(UserError, match="the same weights and compute different logits") as caught:
            recognised(tmp_path / "net.pt")
        assert name in str(caught.value) and other in str(caught.value)
    else:
        assert recognised(tmp_path / "net.pt") == (name, False)


@torch.no_grad()
def test_heads_of_at_he_and_of_pang2020boosting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of Pang et al. (2020): cosines in RobustBench, s times them here."""
    state = others.wide(10, 2, bias=False)
    torch.save(state, tmp_path / "wideres-epoch77.pt")
    model = attach_head(built("wrn-10-2"), scale=15.0)
    assert load_weights(model, tmp_path / "wideres-epoch77.pt") == ""
    assert torch.allclose(model(X), 15 * others.boosting_logits(state, X), atol=1e-3)
    assert recognised(tmp_path / "wideres-epoch77.pt") == ("wrn-10-2", True)
    with pytest.raises(UserError, match=r"it lacks fc.bias; .* those of wrn-10-2 with a HypersphereHead"):
        load_weights(built("wrn-10-2"), tmp_path / "wideres-epoch77.pt")

    from advsphere.models import by_name

    monkeypatch.setattr(by_name, "WideResNet", lambda depth, width, *a, **k: WideResNet(10, width // 10, *a, **k))
    asked = {"num_classes": 10, "image_size": 32, "mean": MEAN, "std": STD}
    for name in ("robustbench:Pang2020Boosting", "Pang2020Boosting", "robustbench:cifar10/Linf/Pang2020Boosting"):
        model = build(name, **asked).eval()
        load_weights(model, tmp_path / "wideres-epoch77.pt")
        normal = (X - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        assert torch.allclose(model(X), others.boosting_logits(state, normal), atol=1e-5)
        assert by_name.published_statistics(name) == (MEAN, STD)


def test_the_scale_of_another_head_is_left_out_where_training_starts(tmp_path: Path) -> None:
    theirs = attach_head(built("wrn-10-1").network, scale=15.0)
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    model = built("wrn-10-1")
    assert load_weights(model, tmp_path / "net.pth", head="network.fc") == ""
    assert torch.equal(model.network.fc.weight, theirs.fc.weight)
    with pytest.raises(UserError, match=r"it lacks fc.bias; it also has fc.scale"):
        load_weights(model, tmp_path / "net.pth")


def of_mair(state: others.State) -> others.State:
    """RobModel after add_normalize(), in parallel."""
    inside = {"0.mean": torch.tensor(MEAN), "0.std": torch.tensor(STD), **prefixed(state, "1.")}
    return {"n_classes": torch.tensor(10), **prefixed(inside, "model.module.")}


def outside(state: others.State) -> others.State:
    return {"mu": torch.tensor(MEAN).view(1, 3, 1, 1), "sigma": torch.tensor(STD).view(1, 3, 1, 1), **state}


WRITTEN: dict[str, tuple[Callable[[others.State], Any], bool]] = {
    "pytorch-cifar": (lambda s: {"net": prefixed(s, "module."), "acc": 47.3, "epoch": 76}, False),
    "fast_adversarial": (OrderedDict, False),
    "with a NumPy number": (lambda s: {"state_dict": s, "best": np.float64(0.5), "curve": np.arange(3.0)}, False),
    "with its arguments": (lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)}, False),
    "with an optimizer": (lambda s: {"model_state_dict": s, "optimizer": {"state": {0: {"m": torch.ones(3)}}}}, False),
    "MAIR, normalised": (lambda s: {"rmodel": of_mair(s), "record_info": {"Clean": 1.0}}, True),
    "MAIR, not normalised": (
        lambda s: {"rmodel": {"n_classes": torch.tensor(10), "mean": torch.tensor(MEAN), **prefixed(s, "model.")}},
        False,
    ),
    "RobustBench, mu and sigma": (outside, True),
    "a Sequential with the normalisation": (
        lambda s: {"0.mean": torch.tensor(MEAN), "0.std": torch.tensor(STD), **prefixed(s, "1.")},
        True,
    ),
    "RobustBench, ImageNet": (
        lambda s: {"normalize.mean": torch.tensor(MEAN), "normalize.std": torch.tensor(STD), **prefixed(s, "model.")},
        True,
    ),
    "compiled": (lambda s: prefixed(s, "_orig_mod."), False),
    "with a wrapper around a layer": (
        lambda s: {n.replace("block1.", "block1.module._orig_mod."): s[n] for n in s},
        False,
    ),
    "averaged": (lambda s: {"n_averaged": torch.tensor(5), **prefixed(s, "module.")}, False),
    "Lightning": (lambda s: {"state_dict": prefixed(s, "model."), "hyper_parameters": {"lr": 0.1}}, False),
}


@pytest.mark.parametrize("kind", WRITTEN)
@torch.no_grad()
def test_files_of_training_scripts(kind: str, tmp_path: Path) -> None:
    state = others.wide(10, 1)
    write, normalised = WRITTEN[kind]
    torch.save(write(state), tmp_path / "net.pth")
    model = built("wrn-10-1")
    assert load_weights(model, tmp_path / "net.pth") == ""
    x = (X - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1) if normalised else X
    assert torch.allclose(model(X), others.wide_logits(state, x), rtol=1e-4, atol=1e-4)
    bare = built("wrn-10-1").network
    if normalised:
        with pytest.raises(UserError, match="normalisation has no place in the model, put it into a PixelClassifier"):
            load_weights(bare, tmp_path / "net.pth")
    else:
        load_weights(bare, tmp_path / "net.pth")


def test_of_several_networks_the_usual_one_is_loaded_and_the_others_are_named(tmp_path: Path) -> None:
    usual, averaged = others.wide(10, 1), {n: 2 * v for n, v in others.wide(10, 1).items()}
    path = tmp_path / "net.pth"
    torch.save({"model_ema": averaged, "state_dict": usual, "again": usual}, path)
    model = built("wrn-10-1")
    said = load_weights(model, path)
    assert said == f"{path} holds several networks that fit: state_dict was loaded, not {path}#model_ema"
    assert torch.equal(model.network.fc.weight, usual["fc.weight"])
    assert load_weights(model, f"{path}#model_ema") == ""
    assert torch.equal(model.network.fc.weight, averaged["fc.weight"])
    with pytest.raises(UserError, match=r"holds no network 'ema'; it holds state_dict, model_ema, again"):
        load_weights(model, f"{path}#ema")


class Tied(nn.Module):
    """Two names of one tensor, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lm_head = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lm_head(x)
        return out


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    for name in ("embed.weight", "lm_head.weight"):
        value = torch.rand(3, 4)
        save_file({name: value}, tmp_path / "net.safetensors")
        model = Tied()
        load_weights(model, tmp_path / "net.safetensors")
        assert torch.equal(model.lm_head.weight, value) and model.lm_head.weight is model.embed.weight
    torch.save({"embed.weight": torch.zeros(3, 4), "lm_head.weight": torch.ones(3, 4)}, tmp_path / "torn.pth")
    with pytest.raises(UserError, match=r"one tensor of the model has two values: embed.weight = lm_head.weight"):
        load_weights(Tied(), tmp_path / "torn.pth")
    untied = Tied()
    untied.lm_head.weight = nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(UserError, match=r"it lacks embed.weight"):
        load_weights(untied, tmp_path / "net.safetensors")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('ran', 'w')",)


def test_no_code_of_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = others.wide(10, 1)
    torch.save({"state_dict": state, "extra": Evil()}, "evil.pth")
    model = built("wrn-10-1")
    try:
        load_weights(model, "evil.pth")
        assert torch.equal(model.network.fc.weight, state["fc.weight"])
    except UserError as error:
        assert "holds more than tensors" in str(error)
    assert not Path("ran").exists()


def test_a_network_that_was_pickled_whole_shows_its_weights(tmp_path: Path) -> None:
    theirs = built("wrn-10-1").network
    nn.init.normal_(theirs.fc.bias)
    torch.save(theirs, tmp_path / "whole.pth")
    model = built("wrn-10-1")
    load_weights(model, tmp_path / "whole.pth")
    assert all(torch.equal(v, theirs.state_dict()[n]) for n, v in model.network.state_dict().items())


def test_a_misfit_is_told_with_the_nearest_names_and_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(others.wide(16, 1), path)
    with pytest.raises(UserError) as caught:
        load_weights(built("wrn-10-1"), path)
    assert "its keys are those of wrn-16-1: build that network" in str(caught.value)
    torch.save(others.wide(10, 1) | {"fc.weight": torch.zeros(100, 64), "fc.bias": torch.zeros(100)}, path)
    with pytest.raises(UserError, match=r"; it is for 100 classes: build the network for as many \(--num-classes 100"):
        load_weights(built("wrn-10-1"), path)
    model = nn.Sequential(OrderedDict(stem=nn.Linear(4, 5), head=nn.Linear(5, 3)))
    state = {"stem.weight": torch.zeros(5, 4), "stem.bias": torch.zeros(5), "heads.weight": torch.zeros(3, 5)}
    torch.save({**state, "head.bias": torch.zeros(7)}, path)
    with pytest.raises(UserError) as caught:
        load_weights(model, path)
    assert str(caught.value) == (
        f"{path} does not fit the model: it lacks head.weight; it also has heads.weight (is it head.weight?); of "
        "another shape are head.bias ((7,) instead of (3,)); build the network that it was saved from"
    )
    torch.save({"unknown.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(
        UserError, match=r"fits none of our own networks \(its keys: unknown.weight\); name the network"
    ):
        recognised(path)
