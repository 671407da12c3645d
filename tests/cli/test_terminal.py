"""What a terminal shows: names as they are, one line for an error of the machine, and nothing after a closed pipe."""

from __future__ import annotations

import errno
import io
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from advsphere import cli
from advsphere.bars import Bars
from advsphere.cli.printing import program, terminal
from advsphere.data.encoded import Encoded
from advsphere.errors import UserError, in_one_line, out_of_memory
from advsphere.files import cache_folder
from advsphere.recipes import recipe
from advsphere.runs.config_yaml import from_yaml
from tests.launching import ROOT

ODD = r"m[red]:car:[/]\[x"


def test_the_next_command_is_one_that_the_shell_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / ".venv" / "bin" / "advsphere"
    script.parent.mkdir(parents=True)
    script.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(script.parent))
    assert program() == "advsphere"
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert program() == ".venv/bin/advsphere"
    monkeypatch.setattr(sys, "argv", ["__main__.py"])
    assert program() == f"{sys.executable} -m advsphere"
    assert program("verify", "a run").endswith(" -m advsphere verify 'a run'")


def test_beneath_a_notebook_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert terminal(file=io.StringIO()).is_terminal and not Bars().disable
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as a kernel sets it
    assert not terminal(file=io.StringIO()).is_terminal and Bars().disable


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    terminal(file=(out := io.StringIO()), width=200).print(ODD)
    assert out.getvalue() == f"{ODD}\n"
    assert cli.main(["evaluate", ODD]) == 1
    assert f"error: {ODD} holds no run" in capsys.readouterr().err
    places = [path for path in (ROOT / "src").rglob("*.py") if path.name != "terminal.py"]
    calls = [call for path in places for call in re.findall(r"\bConsole\(.+\)", path.read_text())]
    assert all("markup=False, emoji=False" in call or call.startswith("Console(stderr=True") for call in calls), calls


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
        (OSError(errno.EEXIST, "File exists", "a"), "a: File exists; a file has that name, so name another place"),
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

    monkeypatch.setattr("advsphere.cli.evaluate.main", fails)
    if said is not None:
        assert cli.main(["evaluate", "x"]) == 1 and said in capsys.readouterr().err
    assert out_of_memory(error) == (said == "--batch-size")


def test_a_pipe_or_a_socket_among_the_images_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    os.mkfifo("a.png")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("b.png")
        for name in ("a.png", "b.png"):
            with pytest.raises(UserError, match="it is no regular file"):
                Encoded(name, name).open()


@pytest.mark.parametrize("command", [["diagnose", "RUN"], ["compare", "RUN", "OTHER"]])
@pytest.mark.parametrize("how", ["a file", "read-only"])
def test_a_folder_that_cannot_be_written_is_found_before_the_work(
    command: list[str], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*arguments: object, **settings: object) -> None:
        raise AssertionError("it has begun")

    monkeypatch.setattr("advsphere.cli.diagnose._loaded", lambda target: (None, None))
    monkeypatch.setattr("advsphere.cli.diagnose._network", work)
    monkeypatch.setattr("advsphere.cli.evaluate.evaluated", work)
    monkeypatch.setattr("advsphere.cli.compare.read_config", lambda run: recipe("digits-fastat"))
    out = tmp_path / "out"
    if how == "a file":
        out.touch()
    else:
        opened = os.open

        def refused(path: object, flags: int, *rest: int, **settings: int) -> int:
            if str(path).startswith(str(out)) and flags & (os.O_WRONLY | os.O_RDWR):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return opened(path, flags, *rest, **settings)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", refused)
    assert cli.main([*command, "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert f"could not write {out}" in said.replace("\n", "") and ("exists" if how == "a file" else "Read-only") in said


@pytest.mark.parametrize(
    "given", ["[" * 3000, "{a: b", "3", "{1: 2}", "{a: 2024-13-45}", "{a: 2024-01-01}", "{a: &x [*x]}"]
)
def test_arguments_that_are_none_are_refused_on_the_command_line(
    given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "digits-fastat", "--optimizer-arguments", given])
    said = " ".join("".join(capsys.readouterr()).split())
    assert "holds no arguments" in said and "Traceback" not in said


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
