"""The session for a GPU, rehearsed on a CPU: what it runs, skips, repeats and brings home."""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from advsphere.data import Dataset, ImageSet, load
from advsphere.errors import UserError
from advsphere.runs.build import DEVICE
from advsphere.training import Stopped

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = ("on_gpu", "gpu_session", "gpu_smoke", "gpu_speed", "gpu_tables", "travel")
SHARED = ("comparison", "auto_attack", "plain_loop")

OFFICIAL = """
from advsphere.attacks import fgsm
from advsphere.threat import ThreatModel


class AutoAttack:
    def __init__(self, model, *, norm, eps, **_):
        self.model, self.threat = model, ThreatModel(norm=norm.lower(), eps=eps)
        self.attacks_to_run = ["one", "two", "three", "four"]

    def run_standard_evaluation(self, x, y, bs):
        return fgsm(self.model, x, y, threat=self.threat)
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The scripts as modules, imported as when they are run: beside each other."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv(DEVICE, "cpu")
    before = {name: sys.modules.pop(name, None) for name in (*SCRIPTS, *SHARED)}
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in SCRIPTS})
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def setting(scripts: SimpleNamespace, folder: Path, **changes: Any) -> Any:
    known = {"device": torch.device("cpu"), "work": folder / "work", "out": folder / "out", "tiny": True}
    return scripts.gpu_session.Setting(**{**known, "until": time.monotonic() + 1000, **changes})


def test_a_rehearsal_runs_every_step_and_its_repetition_none(
    scripts: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Further methods, seeds and sizes run the same code, so one of them stands for all."""
    monkeypatch.setattr(scripts.gpu_speed, "BATCHES", (128,))
    monkeypatch.setattr(scripts.gpu_tables, "FURTHER", (("freeat-m-he", 0),))
    monkeypatch.setattr(scripts.gpu_tables, "SPEEDRUNS", {"speedrun": 1.0})
    (tmp_path / "peer" / "autoattack").mkdir(parents=True)
    (tmp_path / "peer" / "autoattack" / "__init__.py").write_text(OFFICIAL)
    options = scripts.on_gpu.Arguments(
        out=tmp_path / "out", work=tmp_path / "work", peer=tmp_path / "peer", tiny=True, device="cpu"
    )
    monkeypatch.syspath_prepend(str(tmp_path))  # restored afterwards, and with it what `peer` adds
    assert scripts.on_gpu.main(options) == 0
    names = [step.name for step in scripts.on_gpu.steps()]
    rows = scripts.gpu_session.read(options.out / "rows.jsonl")
    assert [*rows] == names and {row["state"] for row in rows.values()} == {"done"}
    assert rows["smoke/equal runs"]["result"]["differing"] == []
    assert all(norm["alike"] == 1 for norm in rows["smoke/attack pgd"]["result"].values())
    assert rows["official/AutoAttack on 250 images"]["result"]["table"][-1].startswith("| all")
    home = sorted(path.name for path in options.out.iterdir())
    assert len(home) <= 8 and all(re.fullmatch(r"[\w.-]+", name) for name in home)
    assert {"rows.jsonl", "results.jsonl", "logs.tar.gz", "official.txt", "profile.txt"} < {*home}
    assert any(name.startswith("checkpoint-cifar10-") for name in home)
    before = (options.out / "rows.jsonl").read_bytes()
    capsys.readouterr()
    assert scripts.on_gpu.main(options) == 0
    assert (options.out / "rows.jsonl").read_bytes() == before
    assert "|" not in capsys.readouterr().out.partition("| step")[0], "nothing was run"


def step(scripts: SimpleNamespace, name: str, seconds: float = 1, after: str | None = None, result: Any = None) -> Any:
    def measure(setting: Any) -> dict[str, Any]:
        if isinstance(result, BaseException):
            raise result
        return {"of": name}

    return scripts.gpu_session.Step(name, seconds, measure, after)


def test_what_does_not_fit_is_named_and_a_shorter_step_still_runs(scripts: SimpleNamespace, tmp_path: Path) -> None:
    steps = [
        step(scripts, "a/long", 300), step(scripts, "a/after it", 1, after="a/long"), step(scripts, "a/short", 20),
    ]  # fmt: skip
    rows = tmp_path / "out" / "rows.jsonl"
    budget = setting(scripts, tmp_path, tiny=False, until=time.monotonic() + 100)
    states = scripts.gpu_session.run(steps, budget, rows)
    assert re.fullmatch(r"skipped: 300 s are expected and 8[45] s are left", states["a/long"])
    assert states["a/after it"] == "skipped: it needs a/long" and states["a/short"] == "done"
    assert [*scripts.gpu_session.read(rows)] == ["a/short"]


def test_a_failure_is_written_down_and_tried_again(scripts: SimpleNamespace, tmp_path: Path) -> None:
    rows, session = tmp_path / "out" / "rows.jsonl", scripts.gpu_session
    errors = {"a": ValueError("no such kernel"), "b": Stopped("out of time"), "c": SystemExit("no peer"), "d": None}
    states = session.run([step(scripts, *one) for one in ((n, 1, None, e) for n, e in errors.items())],
                         setting(scripts, tmp_path), rows)  # fmt: skip
    assert states == {"a": "failed", "b": "stopped", "c": "failed", "d": "done"}
    assert session.read(rows)["a"]["error"] == "ValueError: no such kernel"
    assert "Traceback" in session.read(rows)["a"]["trace"]
    with rows.open("a") as file:
        file.write('{"step": "a", "sta')  # killed while it wrote
    again = session.run([step(scripts, name) for name in errors], setting(scripts, tmp_path), rows)
    assert {*again.values()} == {"done"} and len(rows.read_text().splitlines()) == 4 + 1 + 3


def test_a_new_machine_makes_again_only_what_is_needed(scripts: SimpleNamespace, tmp_path: Path) -> None:
    rows, session, made = tmp_path / "rows.jsonl", scripts.gpu_session, tmp_path / "checkpoint"

    def steps(*names: str) -> list[Any]:
        trained = step(scripts, "train")._replace(made=lambda setting: made)
        return [trained, *(step(scripts, name, after="train") for name in names)]

    session.run(steps("attack"), setting(scripts, tmp_path), rows)
    session.run(steps("attack"), setting(scripts, tmp_path), rows)
    assert len(rows.read_text().splitlines()) == 2, "nothing needs the file that is missing"
    made.touch()
    session.run(steps("attack", "attack again"), setting(scripts, tmp_path), rows)
    made.unlink()
    session.run(steps("attack", "attack once more"), setting(scripts, tmp_path), rows)
    ran = [json.loads(line)["step"] for line in rows.read_text().splitlines()]
    assert ran == ["train", "attack", "attack again", "train", "attack once more"]


def test_chosen_steps_bring_what_they_need(scripts: SimpleNamespace) -> None:
    steps = scripts.on_gpu.steps()
    chosen = [one.name for one in scripts.gpu_session.chosen(steps, ["PGD-50 fastat-he seed 0", "machine"])]
    assert chosen == ["machine", "table 3/train fastat-he seed 0", "table 3/PGD-50 fastat-he seed 0"]
    with pytest.raises(UserError, match="no step has tabel in its name; the parts are machine, official, smoke, sp"):
        scripts.gpu_session.chosen(steps, ["tabel"])


def test_the_plan_says_that_its_seconds_are_estimates(
    scripts: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scripts.on_gpu.main(scripts.on_gpu.Arguments(plan=True, only=("smoke,speed",))) == 0
    out = capsys.readouterr().out
    assert "| smoke " in out and "table 3" not in out and "None of them has been measured" in out


@pytest.fixture
def photos() -> Dataset:
    """Smooth images of CIFAR-10's shape: 1,007 to train on, which fill one mosaic and begin another."""
    generator = np.random.default_rng(0)
    coarse = torch.from_numpy(generator.integers(0, 256, (1030, 3, 4, 4)).astype(np.float32))
    pixels = torch.nn.functional.interpolate(coarse, 32, mode="bilinear").round().byte()
    labels = torch.from_numpy(generator.integers(0, 10, 1030))
    classes = tuple(f"class {i}" for i in range(10))
    whole = ImageSet(pixels, labels, classes, "cifar10")
    return Dataset(whole.first(1007), whole.take(torch.arange(1007, 1030)))


def test_images_arrive_as_they_were_packed(scripts: SimpleNamespace, photos: Dataset, tmp_path: Path) -> None:
    said = scripts.travel.pack_images(tmp_path / "images.npz", photos)
    assert "1,007 training images as JPEG of quality 98" in said and "23 test images unchanged" in said
    there = load("cifar10", scripts.travel.unpack_images(tmp_path / "images.npz", tmp_path / "there"))
    assert torch.equal(there.test.pixels, photos.test.pixels) and torch.equal(there.test.labels, photos.test.labels)
    assert torch.equal(there.train.labels, photos.train.labels) and there.train.classes == photos.train.classes
    error = (there.train.pixels.double() - photos.train.pixels.double()).square().mean()
    decibel = float(10 * torch.log10(255**2 / error))
    assert decibel > 40 and f"({decibel:.1f} dB" in said


def test_a_pack_that_is_too_large_is_refused(
    scripts: SimpleNamespace, photos: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts.travel, "fetch_wheels", lambda *_: None)
    said = scripts.travel.pack(tmp_path / "pack", photos, Path("constraints.txt"), tmp_path, "3.12")
    assert any(line.startswith("no official AutoAttack") for line in said) and "the limit is 64 MiB" in said[-1]
    monkeypatch.setattr(scripts.travel, "ROOM", 1000)
    assert "quality 75" in scripts.travel.pack_images(tmp_path / "images.npz", photos)
    monkeypatch.setattr(scripts.travel, "LIMIT", 1000)
    with pytest.raises(UserError, match="too much to travel"):
        scripts.travel.pack(tmp_path / "pack", photos, Path("constraints.txt"), tmp_path, "3.12")


def test_the_smallest_checkpoint_comes_home_in_parts(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts.travel, "PART", 100)
    work, out = tmp_path / "work", tmp_path / "out"
    for name, size in {"small=1": 250, "large": 300}.items():
        (work / "runs" / name).mkdir(parents=True)
        (work / "runs" / name / "best.safetensors").write_bytes(bytes(i % 251 for i in range(size)))
        (work / "runs" / name / "metrics.jsonl").write_text(json.dumps({"epoch": 1}))
    out.mkdir()
    (out / "rows.jsonl").write_text("")
    scripts.travel.collect(work, out)
    parts = sorted(out.glob("checkpoint-*"))
    assert [part.name[-2:] for part in parts] == [".0", ".1", ".2"] and "small-1" in parts[0].name
    assert (
        b"".join(part.read_bytes() for part in parts) == (work / "runs" / "small=1" / "best.safetensors").read_bytes()
    )
    for i in range(4):
        (out / f"more{i}").write_text("")
    assert any("stays: it takes 3 files" in line for line in scripts.travel.collect(work, out))
