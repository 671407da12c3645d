"""Weights from files as people have them, into networks that they were made for, and not into others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from advsphere.classifier import PixelClassifier
from advsphere.data import load
from advsphere.errors import UserError
from advsphere.hypersphere import HypersphereConfig
from advsphere.models import build, load_weights
from advsphere.runs.build import build_model
from advsphere.runs.folder import load_run
from advsphere.runs.train import train
from tests.training.tiny import few_digits, same, tiny_config

MEAN, STD = (0.3,), (0.4,)


def network(classes: int = 10, seed: int = 1) -> PixelClassifier:
    return build("small-cnn", num_classes=classes, in_channels=1, image_size=8, mean=MEAN, std=STD, init_seed=seed)


def scripted(state: dict[str, torch.Tensor]) -> dict[str, object]:
    return {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}


WRITTEN = {
    "plain": lambda state: state,
    "by a training script": scripted,
    "by a script for CIFAR": lambda state: {"net": state, "acc": 47.3, "epoch": 76},
    "compiled, parallel": lambda state: {"model": {f"_orig_mod.module.{name}": t for name, t in state.items()}},
    "without counters": lambda state: {name: t for name, t in state.items() if "num_batches" not in name},
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_files_of_all_kinds_are_read(tmp_path: Path, kind: str) -> None:
    theirs = network(seed=2)
    torch.save(WRITTEN[kind](theirs.network.state_dict()), tmp_path / "net.pth")
    for model in (network(), network().network):
        assert load_weights(model, str(tmp_path / "net.pth")) == ""
        inside = model.network if isinstance(model, PixelClassifier) else model
        assert same(inside.state_dict(), theirs.network.state_dict())


def test_safetensors_with_the_normalisation_inside(tmp_path: Path) -> None:
    theirs = build("small-cnn", num_classes=10, in_channels=1, image_size=8, mean=(0.1,), std=(0.2,), init_seed=2)
    save_file(theirs.state_dict(), tmp_path / "net.safetensors")
    model = network()
    assert load_weights(model, tmp_path / "net.safetensors", head="network.fc") == ""
    assert same(model.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("inside", [False, True])
def test_a_head_for_other_classes_is_left_out_and_said(tmp_path: Path, inside: bool) -> None:
    theirs, model = network(classes=7, seed=2), network()
    torch.save((theirs if inside else theirs.network).state_dict(), tmp_path / "net.pth")
    kept = model.network.fc.weight.clone()
    said = load_weights(model, tmp_path / "net.pth", head="network.fc")
    assert said == f"{tmp_path / 'net.pth'} has a head for 7 classes: training begins with a new one, for 10"
    assert torch.equal(model.network.fc.weight, kept)
    assert torch.equal(model.network.conv1.weight, theirs.network.conv1.weight)
    with pytest.raises(UserError, match=r"does not fit the model: of another shape are fc.weight \(\(7, 288\) instead"):
        load_weights(network().network, tmp_path / "net.pth") if not inside else load_weights(
            network().network, _saved(theirs.network, tmp_path)
        )


def _saved(module: nn.Module, folder: Path) -> Path:
    torch.save(module.state_dict(), folder / "other.pth")
    return folder / "other.pth"


def test_features_alone_are_weights_too(tmp_path: Path) -> None:
    theirs, model = network(seed=2), network()
    state = {name: value for name, value in theirs.network.state_dict().items() if not name.startswith("fc.")}
    torch.save(state, tmp_path / "net.pth")
    assert "has no head: training begins with a new one" in load_weights(model, tmp_path / "net.pth", head="network.fc")
    assert torch.equal(model.network.bn3.running_var, theirs.network.bn3.running_var)


def test_another_network_is_refused_with_the_first_names(tmp_path: Path) -> None:
    other = build("wrn-10-1", num_classes=10, in_channels=1, image_size=8, mean=MEAN, std=STD).network
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"it lacks bn1.weight, .* and \d+ more; it also has group1.*") as caught:
        load_weights(model, _saved(other, tmp_path), head="network.fc")
    assert "\n" not in str(caught.value) and same(model.state_dict(), before)


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "page.pth").write_text("<html>")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "cut.pth").write_bytes(_saved(network(), tmp_path).read_bytes()[:9000])
    for file, message in {
        "list.pth": "holds no state dict, but a list",
        "page.pth": "is no file of torch.save, as it begins with '<html>'; download",
        "empty.pth": "is empty; download or copy it again",
        "cut.pth": "is cut off or damaged; download or copy it again",
        "none.pth": "there are no weights at",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            load_weights(network(), tmp_path / file)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"OrderedDict, not a file: .* use model.load_state_dict\(weights\)"):
        load_weights(network(), network().state_dict())  # type: ignore[arg-type]


def test_an_archive_that_does_not_fit_its_checksums_is_refused(tmp_path: Path) -> None:
    """torch.load compares no checksum, and returns what is in the memory for a member that is marked as a folder."""
    whole = _saved(network().network, tmp_path).read_bytes()
    value, listed = whole.rindex(b"PK\x07\x08", 0, whole.index(b"/version")) - 5, whole.rindex(b"PK\x01\x02", 0, -500)
    for name, place, bit in (("value.pth", value, 1), ("folder.pth", listed + 38, 0x10)):
        damaged = bytearray(whole)
        damaged[place] ^= bit
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged: \S+ does not fit its checksum; use another copy"):
            load_weights(network(), tmp_path / name)


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    state = network(seed=2).network.state_dict()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "net.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    model = network()
    load_weights(model, tmp_path / "net.pth")
    assert same(model.network.state_dict(), state)


@pytest.mark.parametrize("sphere", [None, HypersphereConfig(scale=5.0)])
def test_training_begins_from_the_weights_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sphere: HypersphereConfig | None
) -> None:
    few_digits(monkeypatch)
    first = tiny_config("standard", epochs=1)
    train(first, tmp_path / "first")
    weights = tmp_path / "first" / "last.safetensors"
    config = replace(first, sphere=sphere, model=replace(first.model, weights=weights))
    began = build_model(config, load("digits").train)
    trained = load_run(tmp_path / "first", "last").model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in began.state_dict().items() if name in trained)
    train(config, tmp_path / "second")
    weights.unlink()
    load_run(tmp_path / "second")  # what it began from is no longer needed
    with pytest.raises(UserError, match="there are no weights at"):
        train(config, tmp_path / "third")


def test_pretrained_and_weights_are_two_beginnings(tmp_path: Path) -> None:
    config = tiny_config("standard")
    both = replace(config, model=replace(config.model, pretrained=True, weights=tmp_path / "net.pth"))
    with pytest.raises(UserError, match=r"start from --model.pretrained or from --model.weights, not from both"):
        build_model(both, load("digits").train)


def test_a_damaged_checkpoint_of_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_digits(monkeypatch)
    train(tiny_config("standard", epochs=1), tmp_path / "run")
    path = tmp_path / "run" / "best.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not match its own checksum"):
        load_weights(load_run(tmp_path / "run", "last").model, path)
