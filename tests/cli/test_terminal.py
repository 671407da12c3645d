"""What a terminal shows: names as they are, one line for an error of the machine, and nothing after a closed pipe."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from advsphere import cli
from advsphere.cli.terminal import terminal
from advsphere.data.encoded import Encoded
from advsphere.errors import UserError, in_one_line, out_of_memory
from advsphere.files import cache_folder
from advsphere.runs.config_yaml import from_yaml
from tests.launching import ROOT

ODD = r"m[red]:car:[/]\[x"


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    terminal(file=(out := io.StringIO()), width=200).print(ODD)
    assert out.getvalue() == f"{ODD}\n"
    assert cli.main(["evaluate", ODD]) == 1
    assert f"error: {ODD} holds no run" in capsys.readouterr().err
    places = [path for path in (ROOT / "src").rglob("*.py") if path.name != "terminal.py"]
    calls = [call for path in places for call in re.findall(r"\bConsole\(.+\)", path.read_text())]
    assert all("markup=False, emoji=False" in call or call == "Console(stderr=True)" for call in calls), calls


@pytest.mark.parametrize("command", [["--help"], ["recipes"], ["train", "--help"]])
def test_a_closed_pipe_is_no_error(command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "advsphere", *command], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("so"), "so"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "--batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "--batch-size"),
        (MemoryError(), "--batch-size"),
        (OSError(errno.EMFILE, "Too many open files", "a"), "a: Too many open files; raise the limit"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "a: Read-only file system; name a folder on another"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), "a: No such file"),
        (RuntimeError("shapes"), None),
        (BrokenPipeError(), None),
        (KeyError("x"), None),
    ],
)
def test_errors_of_the_machine_are_one_line(
    error: Exception, said: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = in_one_line(error)
    assert found is None if said is None else said in (found or "")

    def fails(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr("advsphere.cli.recipes.main", fails)
    if said is not None:
        assert cli.main(["recipes", "x"]) == 1 and said in capsys.readouterr().err
    assert out_of_memory(error) == (said == "--batch-size")


def test_a_pipe_among_the_images_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match="it is no regular file"):
        Encoded("a.png", str(tmp_path / "a.png")).open()


def test_without_a_home_the_cache_is_a_folder_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() == cache_folder() and cache_folder().parent.is_dir()


LAUGHS = "a: &a [x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 3000,
        LAUGHS,
        f"recipe: {'x' * 2**21}",
        f"recipe: x\ntraining: {{epochs: {'9' * 5000}}}",
        f"recipe: x\ntraining: {{epochs: {'9' * 400}, lr: {'9' * 400}}}",
        "recipe: 2024-01-01",
        "recipe: 2024-13-45",
        "recipe: !!timestamp x",
        "recipe: x\nobjective: {kind: 2024-01-01}",
        "recipe: x\ntraining: {optimizer_arguments: {a: 2024-01-01}}",
        "recipe: x\ntraining: {optimizer_arguments: &a {a: *a}}",
    ],
)
def test_configs_that_are_no_config_say_so_at_once(text: str) -> None:
    with pytest.raises(UserError) as caught:
        from_yaml(text)
    assert len(str(caught.value)) < 700
