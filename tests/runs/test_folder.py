"""A run and its folder: what is refused, what a full disk costs, what broken files say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import Any

import pytest

from advsphere.errors import UserError
from advsphere.files import folder_lock, write_atomically
from advsphere.hypersphere import HypersphereConfig
from advsphere.runs import build as building
from advsphere.runs.folder import load_run, read_config
from advsphere.runs.train import train
from advsphere.training import read_metrics
from tests.training.tiny import (
    assert_same_run,
    few_digits,
    left_behind,
    names_in,
    tiny_config,
)

FILES = {"config.yaml", "provenance.json", "last.safetensors", "best.safetensors", "metrics.jsonl", "tensorboard"}
FILES |= {"classes.json", "previous.safetensors", "good.safetensors", ".lock"}


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    few_digits(monkeypatch)


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    config, folder = tiny_config("fastat"), tmp_path / "run"
    train(config, folder)
    before = left_behind(folder)
    for other in (config, tiny_config("trades")):
        with pytest.raises(UserError, match="already holds a run; continue it with --resume, or name another folder"):
            train(other, folder)
    with pytest.raises(UserError) as caught:
        train(replace(tiny_config("fastat", epochs=7, lr=0.5), sphere=HypersphereConfig()), folder, resume=True)
    for change in ("training.epochs: 2 -> 7", "training.lr: 0.1 -> 0.5", "sphere.scale: None -> 15.0"):
        assert change in str(caught.value)
    assert "objective" not in str(caught.value)
    assert left_behind(folder) == before and read_config(folder) == config


def test_two_processes_do_not_train_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advsphere.runs.train.folder_lock", partial(folder_lock, patience=0))
    folder = tmp_path / "run"
    with folder_lock(folder), pytest.raises(UserError, match="another process is writing into"):
        train(tiny_config("fastat"), folder, resume=True)
    assert names_in(folder) == {".lock"}
    train(tiny_config("fastat"), folder, resume=True)


@pytest.mark.parametrize("when", [1, 2])
@pytest.mark.parametrize("how", ["removed", "replaced", "emptied of all that is visible"])
def test_a_folder_that_goes_away_while_training_ends_the_run(tmp_path: Path, how: str, when: int) -> None:
    folder = tmp_path / "run"

    def go_away(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == when:
            if how == "removed":
                while folder.exists():  # a checkpoint is written meanwhile, so files appear and vanish
                    shutil.rmtree(folder, ignore_errors=True)
            elif how == "replaced":
                folder.rename(tmp_path / "moved")
                folder.mkdir()
            else:
                for path in folder.glob("[!.]*.*"):
                    path.unlink()

    with pytest.raises(UserError, match=r"was removed or replaced|config\.yaml.* disappeared from"):
        train(tiny_config("fastat"), folder, on_epoch=go_away)
    assert how.startswith("emptied") or not folder.exists() or not names_in(folder)


def test_a_part_of_a_run_is_refused_with_the_cure(tmp_path: Path) -> None:
    config, folder = tiny_config("standard", epochs=1), tmp_path / "run"
    train(config, folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"a checkpoint and no config.yaml, .* put it back, remove the rest, or name"):
        train(config, folder, resume=True)


def test_resume_begins_where_there_is_nothing_yet(tmp_path: Path) -> None:
    train(tiny_config("fastat"), tmp_path / "new", resume=True)
    train(tiny_config("fastat"), tmp_path / "plain")
    assert_same_run(tmp_path / "new", tmp_path / "plain")


def test_a_run_that_never_reached_a_checkpoint_gives_way(tmp_path: Path) -> None:
    """With other settings too: nothing is lost. What is said of its provenance is then the new one's."""
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        train(tiny_config("fastat"), folder, stop=lambda: bool(1 // 0))
    assert names_in(folder) == FILES - {"last.safetensors", "best.safetensors", "previous.safetensors"}
    (folder / "provenance.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    train(tiny_config("trades"), folder)
    train(tiny_config("trades"), tmp_path / "plain")
    assert_same_run(folder, tmp_path / "plain")
    assert read_config(folder) == tiny_config("trades") and (folder / "provenance.json").read_text() != "{}"


def test_somebody_else_s_config_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("site: my homepage\n")
    with pytest.raises(UserError, match=r"config\.yaml: .*there is no site"):
        train(tiny_config("fastat"), tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "site: my homepage\n" and names_in(tmp_path) == {
        "config.yaml",
        ".lock",
    }


def test_folders_without_a_run_and_broken_ones(tmp_path: Path) -> None:
    for call in (read_config, load_run):
        with pytest.raises(UserError, match=r"holds no run: there is no config\.yaml"):
            call(tmp_path / "nothing")
    train(tiny_config("standard"), tmp_path / "run")
    for name, damage, said in (
        ("best.safetensors", None, "there is no checkpoint at"),
        ("last.safetensors", lambda data: data[:-5], "truncated or no safetensors file"),
        ("config.yaml", lambda data: data.replace(b"small-cnn", b"wrn-10-1"), "was changed or damaged after the run"),
        ("config.yaml", lambda data: data[: data.index(b"threat:")], "was changed or damaged after the run"),
        ("classes.json", lambda data: data.replace(b'"0"', b'"1"'), "was changed or damaged after the run"),
        ("provenance.json", lambda data: data.replace(b"ranks", b"rants"), "was changed after the run started"),
        ("provenance.json", lambda data: data[:-9], "can't be read"),
    ):
        file = tmp_path / "run" / name
        whole = file.read_bytes()
        file.unlink() if damage is None else file.write_bytes(damage(whole))
        with pytest.raises(UserError, match=said) as caught:
            load_run(tmp_path / "run", "last" if name == "last.safetensors" else "best")
        assert "\n" not in str(caught.value)
        file.write_bytes(whole)


def test_a_run_is_read_back_with_images_that_have_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny_config("standard"), tmp_path / "run")
    asked: list[Any] = []
    found: Any = vars(building)["load_test"]
    monkeypatch.setattr(building, "load_test", lambda name, root, **_: asked.append((name, root)) or found(name))
    load_run(tmp_path / "run", data_root=Path("elsewhere"))
    assert asked == [("digits", Path("elsewhere"))]


@pytest.mark.parametrize("which", ["best", "metrics", "last"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_disk_that_fills_up_costs_nothing_already_written(
    which: str, epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once there is room again, a resume ends where an undisturbed run does."""
    config, folder = tiny_config("freeat", ema=0.5), tmp_path / "run"
    writes: Counter[str] = Counter()

    def full(path: Path, data: bytes, *, write: object = write_atomically) -> None:
        writes[path.name.split(".")[0]] += bool(data)
        if writes[which] == epoch and path.name.startswith(which):
            with monkeypatch.context() as patch:
                patch.setattr("os.fsync", partial(no_space, get_ident(), os.fsync))
                write(path, data)
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("advsphere.training.checkpoint.write_atomically", full)
        patch.setattr("advsphere.training.log.write_atomically", full)
        with pytest.raises(UserError, match=f"could not write .*{which}.*No space left on device"):
            train(config, folder)
    assert names_in(folder) <= FILES and (epoch == 1 or "last.safetensors" in names_in(folder))
    train(config, folder, resume=True)
    train(config, tmp_path / "plain")
    assert_same_run(folder, tmp_path / "plain")


def no_space(thread: int, fsync: Callable[[int], None], file: int) -> None:
    """For one thread alone: a checkpoint may be written beside it."""
    if get_ident() == thread:
        raise OSError(28, "No space left on device")
    fsync(file)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread, at 8 kB
@pytest.mark.parametrize("kilobytes", [8, 300, 600])
def test_a_disk_that_is_really_full(kilobytes: int, tmp_path: Path) -> None:
    """Full at TensorBoard's first byte, at the first checkpoint, at the second; then it grows."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        config = tiny_config("standard")
        with pytest.raises(UserError, match=r"could not write .*: No space left on device"):
            train(config, folder / "run")
        assert not [path for path in (folder / "run").iterdir() if path.name.startswith(".") and path.name != ".lock"]
        subprocess.run(["mount", "-o", "remount,size=9m", str(folder)], check=True, capture_output=True)
        train(config, folder / "run", resume=True)
        train(config, tmp_path / "plain")
        assert_same_run(folder / "run", tmp_path / "plain")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_run_of_an_earlier_version_has_no_checksums(tmp_path: Path) -> None:
    """Its config is then read as it is, unless a section is missing: a cut config must not be filled up by defaults."""
    folder = tmp_path / "run"
    train(tiny_config("standard"), folder)
    (folder / "provenance.json").write_text('{"ranks": 1}')
    config = folder / "config.yaml"
    whole = config.read_bytes()
    for content, said in (
        (whole.replace(b"small-cnn", b"wrn-10-1"), "holds another network than"),
        (whole.replace(b"small-cnn", b"tiny-cnn"), "no network is called 'tiny-cnn'"),
        (b"\x80\x81", "is not YAML"),
        (whole[: whole.index(b"threat:\n  norm")], "threat, notes: missing, so the file was cut off"),
    ):
        config.write_bytes(content)
        with pytest.raises(UserError, match=said):
            load_run(folder)
    config.write_bytes(whole)
    assert load_run(folder).config == tiny_config("standard")


def test_a_damaged_log_is_named_and_does_not_keep_a_run_from_being_resumed(tmp_path: Path) -> None:
    config, folder = tiny_config("standard"), tmp_path / "run"
    train(config, folder)
    log = folder / "metrics.jsonl"
    first, second = log.read_bytes().splitlines(keepends=True)
    for damaged in (b"{", b"[]\n", b"\xff\n", b'{"loss": 1}\n', b'{"epoch": "x"}\n'):
        log.write_bytes(first + damaged)
        with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl is damaged; remove it"):
            read_metrics(folder)
    log.write_bytes(b"{" + first + second)
    train(config, folder, resume=True)
    assert log.read_bytes() == second


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_checkpoint_costs_what_came_after_the_one_before(tmp_path: Path, damage: str) -> None:
    config, folder = tiny_config("fastat"), tmp_path / "run"
    train(config, folder)
    train(config, tmp_path / "whole")
    last = folder / "last.safetensors"
    content = last.read_bytes()
    if damage == "missing":
        last.unlink()
    else:
        last.write_bytes(content[:-7] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    notes = list[str]()
    train(config, folder, resume=True, on_start=lambda trainer, lines: notes.extend(lines))
    assert any("continued from the checkpoint before it, previous.safetensors" in line for line in notes)
    assert_same_run(folder, tmp_path / "whole")
    (folder / "previous.safetensors").unlink()
    last.write_bytes(content[:-7])
    with pytest.raises(UserError, match="truncated or no safetensors file"):
        train(config, folder, resume=True)
