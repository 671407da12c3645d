"""What training computes in another way on a GPU than on a CPU."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advsphere.data import Augment
from advsphere.errors import UserError
from advsphere.hypersphere import HypersphereHead
from advsphere.losses import cross_entropy
from advsphere.objectives import PGDAT, FastAT, FreeAT, Objective
from advsphere.training import Hooks, Metrics, Stopped, Trainer, TrainSettings, load_checkpoint
from tests.device.stand_in import DEVICE
from tests.laws import conv_net
from tests.training.tiny import few_images, kept, same, tiny_trainer


@pytest.mark.parametrize("fn", [False, True])
@pytest.mark.parametrize("wn", [False, True])
def test_a_sphere_s_head_gives_what_it_gives_on_a_cpu(fn: bool, wn: bool) -> None:
    """Logits and gradients up to rounding, for features of very different lengths; zero and tiny ones stay finite."""
    torch.manual_seed(0)
    here = HypersphereHead(16, 5, scale=15.0, normalize_features=fn, normalize_weights=wn)
    there = copy.deepcopy(here).to(DEVICE)
    z = torch.randn(6, 16) * torch.tensor([0.0, 1e-18, 1e-2, 1.0, 1.0, 30.0])[:, None]

    def run(head: nn.Module, z: Tensor) -> tuple[Any, ...]:
        z = z.detach().requires_grad_(True)
        logits = head(z)
        cross_entropy(logits, torch.tensor([0, 1, 2, 3, 4, 0]).to(z.device)).sum().backward()
        return logits.detach().cpu(), z.grad.cpu(), head.weight.grad.cpu()

    for ours, theirs in zip(run(there, z.to(DEVICE)), run(here, z), strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours[2:], theirs[2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", [PGDAT(steps=2), FastAT(), FreeAT(repeats=2)], ids=lambda o: type(o).__name__)
def test_a_run_goes_on_from_the_other_device_s_checkpoint(objective: Objective, tmp_path: Path) -> None:
    """And all devices train to the same weights up to rounding: SGD is fused there, and batches are made together."""

    def trainer(device: torch.device | str, name: str, epochs: int) -> Trainer:
        settings = TrainSettings(
            epochs=epochs, batch_size=8, lr=0.01, precision="float32", augment=Augment(padding=1, flip=True), ema=0.5
        )
        images = few_images().to(device)
        model = conv_net().to(device)
        return Trainer(model, objective, cross_entropy, images, settings=settings, folder=tmp_path / name)

    for name, devices in (("here", ("cpu", "cpu")), ("there", (DEVICE, "cpu")), ("back", ("cpu", DEVICE))):
        for epochs, device in enumerate(devices, start=1):
            run = trainer(device, name, epochs)
            if epochs > 1:
                run.resume()
            assert run.optimizer.param_groups[0]["fused"] == (True if device != "cpu" else None)
            run.fit()
    expected = kept(tmp_path / "here", "last")
    for name in ("there", "back"):
        found = kept(tmp_path / name, "last")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


def half(folder: Path, objective: Objective, **more: Any) -> Trainer:
    settings = TrainSettings(epochs=2, batch_size=8, lr=0.01, precision="float16")
    images, model = few_images().to(DEVICE), conv_net().to(DEVICE)
    return Trainer(model, objective, faint, images, settings=settings, folder=folder, **more)


def faint(logits: Tensor, y: Tensor) -> Tensor:
    """A loss whose gradients overflow in some of the first steps, where it is scaled by up to 65536."""
    return cross_entropy(logits, y) / 40


@pytest.mark.parametrize("objective", [FastAT(), FreeAT(repeats=2)], ids=lambda o: type(o).__name__)
def test_float16_goes_on_with_the_scale_of_its_loss(objective: Objective, tmp_path: Path) -> None:
    whole = half(tmp_path / "whole", objective)
    whole.fit()
    steps = iter([False, True])
    with pytest.raises(Stopped):
        half(tmp_path / "parts", objective, hooks=Hooks(stop=lambda: next(steps))).fit()
    again = half(tmp_path / "parts", objective)
    again.resume()
    assert again.scale.state_dict() == load_checkpoint(tmp_path / "parts" / "last.safetensors")[1]["scale"]
    assert again.scale.state_dict() != half(tmp_path, objective).scale.state_dict()
    again.fit()
    assert same(kept(tmp_path / "whole", "last"), kept(tmp_path / "parts", "last"))
    assert all(p.dtype == torch.float32 for p in again.model.parameters())


@pytest.mark.parametrize("objective", [FastAT(), FreeAT(repeats=1)], ids=lambda o: type(o).__name__)
def test_a_step_that_overflows_in_float16_is_skipped_and_counted(objective: Objective, tmp_path: Path) -> None:
    """The scale is halved until the gradients are finite."""
    epochs: list[Metrics] = []
    hooks = Hooks(on_epoch=epochs.append)
    trainer = half(tmp_path, objective, hooks=hooks)
    before = [p.detach().cpu().clone() for p in trainer.model.parameters()]
    moved = list[bool]()

    def stop() -> bool:
        now = [p.detach().cpu() for p in trainer.model.parameters()]
        moved.append(not all(torch.equal(a, b) for a, b in zip(now, before, strict=True)))
        return False

    hooks.stop = stop
    trainer.fit()
    skipped = moved.index(True)
    assert skipped > 0 and sum(m["skipped_steps"] for m in epochs) >= skipped
    assert trainer.scale.get_scale() == 65536 / 2 ** sum(m["skipped_steps"] for m in epochs)


def test_float16_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--precision bfloat16 or float32"):
        tiny_trainer(tmp_path, FastAT(), precision="float16")
