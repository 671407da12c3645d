"""Exported networks give the same logits in the tools that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advsphere as adv
from advsphere.cli import main
from advsphere.deployment import FORMATS, export
from advsphere.deployment.formats import SUFFIXES, CosineHead
from advsphere.errors import UserError
from advsphere.hypersphere import HypersphereHead
from advsphere.models import load_weights

SHAPE = (1, 8, 8)


def read(path: Path, to: str) -> Any:
    if to == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(str(path))
        return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    if to == "torch-export":
        return torch.export.load(path).module()
    if to == "torchscript":
        return torch.jit.load(path)  # type: ignore[no-untyped-call]
    again = adv.attach_head(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), scale=3.0)
    load_weights(again, path)
    return again.eval()


@pytest.mark.parametrize("to", FORMATS)
def test_the_same_logits_for_any_number_of_images(to: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = adv.attach_head(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), scale=7.0).eval()
    path = tmp_path / f"net{SUFFIXES[to]}"
    assert export(model, SHAPE, path, to) < 1e-5
    again = read(path, to)
    for n in (1, 2, 5):
        x = torch.rand(n, *SHAPE)
        with torch.no_grad():
            assert torch.allclose(again(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [nn.Module.double, nn.Module.half, torch.compile])
def test_a_network_of_another_type_or_compiled_is_exported_in_float32(change: Any, tmp_path: Path) -> None:
    model, path = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval(), tmp_path / "net.pt"
    assert export(change(model), SHAPE, path, "torchscript") < 1e-5
    assert read(path, "torchscript")(torch.rand(2, *SHAPE)).dtype == torch.float32


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_the_sphere_becomes_one_plain_linear_layer(features: bool, weights: bool) -> None:
    head = HypersphereHead(6, 4, scale=11.0, normalize_features=features, normalize_weights=weights)
    deployed, z = CosineHead(head), torch.randn(3, 6)
    given = F.normalize(z, dim=1) if features else z
    assert torch.allclose(deployed(z), head(z), atol=1e-5)
    assert torch.allclose(F.linear(given, deployed.linear.weight), head(z), atol=1e-5)


class Undecided(nn.Module):
    """Its logits depend on the values in a way that tracing can't see."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layer(x.flatten(1))
        return z if len(x) > 1 else -z


class Stubborn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no\nmore")


def test_what_would_be_wrong_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for model, to, said in (
        (Undecided(), "torchscript", "gives other logits"),
        (Stubborn(), "torch-export", "Stubborn can't be exported to torch-export: no"),
        (Undecided(), "tflite", "there is no format 'tflite'; choose one of onnx"),
    ):
        with pytest.raises(UserError, match=said):
            export(model, SHAPE, tmp_path / "net", to)
    assert not [*tmp_path.iterdir()]


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnx needs onnxruntime: pip install 'advsphere\[export\]'"):
        export(nn.Flatten(), SHAPE, tmp_path / "net", "onnx")


def test_export_on_the_command_line(digits_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = adv.load(digits_run)
    x = torch.rand(3, *model.shape)
    out = tmp_path / "net.pt2"
    assert main(["export", str(digits_run), "--to", "torch-export", "--out", str(out)]) == 0
    said = capfd.readouterr().out
    assert "its logits differ from the network's by at most" in said and "pixels (N, 1, 8, 8) in [0, 1]" in said
    with torch.no_grad():
        assert torch.allclose(torch.export.load(out).module()(x), model(x), atol=1e-4)
    weights = tmp_path / "net.safetensors"
    assert main(["export", str(digits_run), "--to", "safetensors", "--out", str(weights)]) == 0
    fresh = adv.load(digits_run)
    nn.init.zeros_(next(fresh.network.parameters()))
    load_weights(fresh.network, weights)
    with torch.no_grad():
        assert torch.equal(fresh(x), model(x))
    assert main(["export", str(digits_run), "--to", "hugging-face", "--out", str(tmp_path / "hub")]) == 0
    assert {"config.json", "model.safetensors", "README.md"} <= {path.name for path in (tmp_path / "hub").iterdir()}
