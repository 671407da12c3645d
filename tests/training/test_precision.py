"""bfloat16 against float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from advsphere.hypersphere import AngularMargin, HypersphereConfig
from advsphere.models import build
from advsphere.objectives import PGDAT, FreeAT
from advsphere.training import Hooks, load_checkpoint
from tests.laws import conv_net
from tests.training.tiny import order_of, tiny_trainer


def test_bfloat16_sees_the_same_data_and_learns_the_same(tmp_path: Path) -> None:
    assert order_of(tmp_path / "a", precision="float32") == order_of(tmp_path / "b", precision="bfloat16")
    found: dict[str, list[float]] = {}
    for precision in ("float32", "bfloat16"):
        losses = found[precision] = []
        net = build("small-cnn", num_classes=4, image_size=8, mean=(0.4,) * 3, std=(0.25,) * 3)
        hooks = Hooks(on_epoch=lambda metrics, to=losses: to.append(metrics["loss"]))  # type: ignore[misc]
        settings = {"precision": precision, "epochs": 3, "lr": 0.05}
        tiny_trainer(tmp_path / precision, PGDAT(steps=3), model=net, hooks=hooks, **settings).fit()
    assert found["bfloat16"] == pytest.approx(found["float32"], abs=0.02) and found["bfloat16"] != found["float32"]
    assert found["float32"][-1] < 0.8 * found["float32"][0], "it learned something"


def test_a_network_in_float64_is_trained_in_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advsphere.machine.bfloat16_instructions", lambda: "amx")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4)).double()
    trainer = tiny_trainer(tmp_path, PGDAT(steps=1), model=net, epochs=1, precision="auto")
    trainer.fit()
    assert trainer.dtype is None and net[3].weight.dtype == torch.float64


def test_under_bfloat16_weights_averages_losses_and_the_sphere_stay_float32(tmp_path: Path) -> None:
    net, dtypes = conv_net(), set()
    head = HypersphereConfig().attach(net)
    head.register_forward_hook(lambda _, inputs, logits: dtypes.add((inputs[0].dtype, logits.dtype)))
    net[3].register_forward_hook(lambda _, inputs, output: dtypes.add(("convolution", output.dtype)))
    criterion = AngularMargin(head, 0.2)
    tiny_trainer(tmp_path, FreeAT(), model=net, criterion=criterion, precision="bfloat16", ema=0.5, epochs=1).fit()
    assert dtypes == {(torch.bfloat16, torch.float32), ("convolution", torch.bfloat16)}
    tensors, _ = load_checkpoint(tmp_path / "last.safetensors")
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float32, torch.float64}
