from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from threading import Event, current_thread
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from advsphere.errors import UserError
from advsphere.objectives import Standard
from advsphere.training import Hooks, Stopped, checkpoint
from advsphere.training.checkpoint import (
    CheckpointWriter,
    load,
    network_state,
    optimizer_state,
    prefixed,
    restore_model,
    restore_optimizer,
    save,
    section,
)
from tests.training.tiny import kept, same, state, stopping_after, tiny_trainer

TENSORS = {
    "weight": torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)),
    "channels last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "strided": torch.arange(12.0).view(3, 4).t(),
    "half": torch.rand(7).bfloat16(),
    "double": torch.tensor([1 / 3, -0.0, float("inf")], dtype=torch.float64),
    "scalar": torch.tensor(15.0),
    "count": torch.tensor(2**40),
    "flags": torch.tensor([True, False]),
    "nothing": torch.empty(0, 3),
}
META = {"cursor": [1, 2, 3], "best": 0.1, "environment": {"processor": "Ünïcode", "commit": None}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save(tmp_path / "last.safetensors", TENSORS, META)
    return tmp_path / "last.safetensors"


def refused(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(file)
    message = str(caught.value)
    assert str(file) in message and "\n" not in message
    return message


def test_what_was_saved_is_loaded(file: Path) -> None:
    tensors, meta = load(file)
    assert meta == META and tensors.keys() == TENSORS.keys()
    for name, t in TENSORS.items():
        assert tensors[name].dtype == t.dtype and torch.equal(tensors[name], t), name
    assert [path.name for path in file.parent.iterdir()] == ["last.safetensors"]


def test_a_flipped_bit_is_noticed(file: Path) -> None:
    """In the length, in the header (names, types, shapes, numbers) and in the tensors; a sample of the last two."""
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    assert 500 < header < len(whole) - 1000
    chance = random.Random(0)
    places = [
        *range(64),
        *chance.sample(range(64, 8 * header), 300),
        *chance.sample(range(8 * header, 8 * len(whole)), 50),
    ]
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        refused(file)
    file.write_bytes(whole)
    load(file)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, -1])
def test_a_truncated_file(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    assert "truncated or no safetensors file" in refused(file)


def test_a_file_with_more_at_its_end(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")
    refused(file)


class Shell:
    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_pickle_under_our_name_is_refused_and_never_run(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "best.safetensors"
    file.write_bytes(pickle.dumps(Shell())) if how == "pickle" else torch.save({"w": Shell()}, file)
    assert "no safetensors file" in refused(file)
    assert not (tmp_path / "ran").exists()


def test_a_safetensors_file_of_somebody_else(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert "not written by advsphere" in refused(tmp_path / "theirs.safetensors")


def test_no_file(tmp_path: Path) -> None:
    assert "there is no checkpoint" in refused(tmp_path / "last.safetensors")
    assert "there is no checkpoint" in refused(tmp_path)


def test_what_cannot_be_written_leaves_what_was_there(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match=r"No space left on device; the earlier last\.safetensors is intact"):
        save(file, {"w": torch.zeros(1000)}, {})
    assert file.read_bytes() == before and load(file)[1] == META
    assert [path.name for path in file.parent.iterdir()] == ["last.safetensors"]


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_prefixes_keep_apart() -> None:
    tensors = prefixed("model", {"w": torch.ones(1), "model.w": torch.ones(2)}) | {"models.w": torch.ones(3)}
    assert {name: len(t) for name, t in section("model", tensors).items()} == {"w": 1, "model.w": 2}
    assert section("raw", tensors) == {}


def test_a_state_of_another_network_is_named() -> None:
    net, path = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), Path("run/best.safetensors")
    before = net[0].weight.clone()
    wider = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5)).state_dict()
    deeper = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 4)).state_dict()
    for their_state, found in {
        "wider": (wider, "2 tensors differ, e.g. 1.bias is (5,) there and (4,) here"),
        "deeper": (deeper, "2 tensors differ, e.g. 2.bias is (4,) there and missing here"),
        "empty": ({}, "4 tensors differ, e.g. 0.bias is missing there and (3,) here"),
    }.values():
        with pytest.raises(UserError) as caught:
            restore_model(net, their_state, path)
        assert found in str(caught.value) and str(path) in str(caught.value)
    assert torch.equal(net[0].weight, before), "nothing is taken over by half"


def trained(net: nn.Module, optimizer: optim.Optimizer, steps: int) -> list[Tensor]:
    for step in range(steps):
        x = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


class Counting(optim.SGD):
    """SGD that counts its steps in plain numbers, one of each parameter and one of all, and slows down with both."""

    def __init__(self, parameters: object, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.param_groups[0]["taken"] = 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        group["taken"] += 1
        for p in group["params"]:
            self.state[p]["taken"] = self.state[p].get("taken", 0) + 1
            p.data -= group["lr"] / (group["taken"] + self.state[p]["taken"]) * p.grad


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=0.1),
        lambda parameters: optim.SGD(parameters, lr=1e-3),
        lambda parameters: optim.Adam(parameters, lr=1e-3),
        lambda parameters: optim.NAdam(parameters, lr=1e-3),
        lambda parameters: Counting(parameters, lr=1e-3),
    ],
    ids=["momentum", "plain", "adam", "nadam", "numbers"],
)
def test_an_optimiser_goes_on_as_if_it_had_never_stopped(make: object, file: Path) -> None:
    def fresh() -> tuple[nn.Module, optim.Optimizer]:
        torch.default_generator.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net, make(net.parameters())

    with torch.random.fork_rng():
        (net, optimizer), (other, resumed) = fresh(), fresh()
    trained(net, optimizer, 3)
    state, numbers = optimizer_state(optimizer, net)
    save(file, prefixed("optimizer", state), numbers)
    other.load_state_dict(net.state_dict())
    tensors, numbers = load(file)
    restore_optimizer(resumed, other, section("optimizer", tensors), numbers)
    for p in other.parameters():
        for value in resumed.state[p].values():
            assert not isinstance(value, Tensor) or value.shape != p.shape or value.stride() == p.stride(), (
                "the layout is the parameter's"
            )
    assert all(map(torch.equal, trained(net, optimizer, 3), trained(other, resumed, 3)))


# Written in the background: in order, whole, and an error is raised.


def test_what_is_written_is_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on, in the same memory, while a slow disk writes; never two files at once."""
    begun, go_on, at_work = Event(), Event(), []

    def slowly(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        at_work.append(path.name)
        assert at_work == [path.name] and current_thread().name.startswith("checkpoint")
        begun.set()
        assert go_on.wait(30)
        save(path, tensors, meta)
        at_work.clear()

    monkeypatch.setattr(checkpoint, "save", slowly)
    writer, weight, meta = CheckpointWriter(), torch.zeros(3), {"cursor": 1}
    writer.save(tmp_path / "best", {"w": weight}, meta)
    writer.save(tmp_path / "last", {"w": weight}, meta)
    assert begun.wait(30)
    weight.fill_(5.0)
    meta["cursor"] = 2
    assert not any(tmp_path.iterdir())
    go_on.set()
    writer.wait()
    for name in ("best", "last"):
        tensors, found = load(tmp_path / name)
        assert torch.equal(tensors["w"], torch.zeros(3)) and found == {"cursor": 1}


def test_copies_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, written = Event(), []

    def waiting(path: Path, *_: object) -> None:
        assert go_on.wait(30)
        written.append(path.name)

    monkeypatch.setattr(checkpoint, "save", waiting)
    writer = CheckpointWriter()
    for i in range(2):
        writer.save(tmp_path / f"{i}", {}, {})
    go_on.set()
    writer.save(tmp_path / "2", {}, {})
    assert written[0] == "0", "it waited for the first"
    writer.wait()
    assert written == ["0", "1", "2"]


def test_the_memory_of_a_copy_is_used_again(tmp_path: Path) -> None:
    writer = CheckpointWriter()
    kinds = {"last": {"w": torch.rand(4, 3, 3, 3), "n": torch.tensor(1)}, "best": {"w": torch.rand(4, 3, 3, 3)}}
    places: list[set[int]] = []
    for turn in range(3):
        for name, tensors in kinds.items():
            for t in tensors.values():
                t.fill_(turn)
            writer.save(tmp_path / name, tensors, {})
        writer.wait()
        places.append({t.data_ptr() for copied in writer.free.values() for t in copied.values()})
        for name, tensors in kinds.items():
            found, _ = load(tmp_path / name)
            assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert places[0] == places[1] == places[2] and len(places[0]) == 3
    kinds["last"]["w"] = torch.rand(4, 5, 3, 3).to(memory_format=torch.channels_last)
    writer.save(tmp_path / "last", kinds["last"], {})
    writer.wait()
    assert torch.equal(load(tmp_path / "last")[0]["w"], kinds["last"]["w"])


def test_after_one_that_failed_none_is_written(tmp_path: Path) -> None:
    """Else last would speak of a best that is not there."""
    writer = CheckpointWriter()
    (tmp_path / "best").mkdir()
    writer.save(tmp_path / "best", {}, {})
    writer.save(tmp_path / "last", {}, {})
    with pytest.raises(UserError, match=r"could not write .*best"):
        writer.wait()
    writer.thread.shutdown()
    assert not (tmp_path / "last").exists()


@pytest.mark.parametrize("steps", [None, 2], ids=["at the end", "stopped"])
def test_the_files_are_complete_when_training_returns(steps: int | None, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, Standard(), hooks=Hooks(stop=stopping_after(steps) if steps else lambda: False))
    try:
        trainer.fit()
    except Stopped:
        assert steps is not None
    assert same(kept(tmp_path, "last"), state(trainer.model))


@pytest.mark.parametrize("stop", [1, None], ids=["stopped", "at the end"])
def test_a_full_disk_ends_the_run(stop: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where training was about to say that it was stopped, and could be gone on with."""

    def full(*_: object) -> None:
        raise UserError("could not write it: no space left")

    monkeypatch.setattr(checkpoint, "save", full)
    hooks = Hooks(stop=stopping_after(stop) if stop else lambda: False)
    with pytest.raises(UserError, match="no space left"):
        tiny_trainer(tmp_path, Standard(), hooks=hooks).fit()


def test_the_time_between_checkpoints_may_be_a_fraction_of_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of an epoch's five batches takes 3 s, and a checkpoint is due after 4.5 s."""
    trainer = tiny_trainer(tmp_path, Standard(), batch_size=5, checkpoint_minutes=4.5 / 60)
    clock: list[Any] = []
    cursors: list[Any] = []
    monkeypatch.setattr("advsphere.training.loop.time.monotonic", lambda: 3.0 * len(clock))
    trainer.optimizer.register_step_post_hook(lambda *_: clock.append(None))
    monkeypatch.setattr(checkpoint, "save", lambda path, _, meta: cursors.append(meta.get("cursor")))
    trainer.fit()
    within = [cursor for cursor in cursors if cursor is not None]
    assert within == [[0, 2, 0], [0, 4, 0], [1, 0, 0], [1, 2, 0], [1, 4, 0], [2, 0, 0]]


def test_the_extra_state_of_a_layer_is_kept(tmp_path: Path) -> None:
    class Layer(nn.Linear):
        version = 2

        def get_extra_state(self) -> dict[str, int]:
            return {"version": self.version}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.version = state["version"]

    one, other = Layer(3, 2), Layer(3, 2)
    one.version = 7
    path = tmp_path / "one.safetensors"
    save(path, network_state(one), {})
    restore_model(other, load(path)[0], path)
    assert other.version == 7 and torch.equal(one.weight, other.weight)
