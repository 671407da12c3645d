from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from advsphere import provenance

WHO = {name: "someone" for part in ("AUTHOR", "COMMITTER") for name in (f"GIT_{part}_NAME", f"GIT_{part}_EMAIL")}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a repository of its own, which `provenance` takes for its own place."""
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    for name in ("provenance.py", "other.py"):
        (package / name).write_text("1\n")
    (tmp_path / "notes.txt").write_text("1\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        git(tmp_path, *arguments)
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    run = subprocess.run(
        ["git", *arguments], cwd=folder, env=os.environ | WHO, check=True, capture_output=True, text=True
    )
    return run.stdout.strip()


def test_the_commit_and_whether_the_code_is_it(checkout: Path) -> None:
    head, package = git(checkout, "rev-parse", "HEAD")[:12], checkout / "src" / "package"
    assert provenance.commit() == head
    (checkout / "notes.txt").write_text("2\n")
    (checkout / "results.json").write_text("{}")
    assert provenance.commit() == head, "only changes to the code count"
    (package / "new.py").write_text("1\n")
    assert provenance.commit() == f"{head}+changes"
    (package / "new.py").unlink()
    (package / "other.py").write_text("2\n")
    assert provenance.commit() == f"{head}+changes"
    git(checkout, "commit", "-qam", "more")
    assert provenance.commit() == git(checkout, "rev-parse", "HEAD")[:12] != head


def test_a_package_installed_inside_somebody_else_s_repository_has_no_commit(checkout: Path) -> None:
    git(checkout, "rm", "-q", "--cached", "src/package/provenance.py")
    assert provenance.commit() is None


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert provenance.commit() is None


def test_the_facts_are_plain_data_and_true() -> None:
    facts = provenance.environment(torch.device("cpu"))
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__ and facts["python"] == platform.python_version()
    assert facts["device"] == "cpu"
    assert facts["threads"] == torch.get_num_threads()
    assert facts["processor"] and "\n" not in facts["processor"]
    assert facts["commit"] is None or len(facts["commit"].removesuffix("+changes")) == 12


def test_a_gpu_is_recorded_with_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    monkeypatch.setattr(provenance, "_output", lambda *command: "580.1\n580.1" if "nvidia-smi" in command[0] else None)
    found = provenance.environment(torch.device("cuda"))
    assert (found["device"], found["cudnn"], found["driver"]) == ("a card", 91000, "580.1")
    assert found["cuda"] == torch.version.cuda
    assert not {"cuda", "cudnn", "driver"} & provenance.environment(torch.device("cpu")).keys()
