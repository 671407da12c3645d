from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from advsphere.errors import UserError
from advsphere.files import Change, differences, disk_errors, file_lock, folder_lock, some, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_writes_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.bin"
    for data in (b"first\r\n\0", b"", b"x" * 3_000_000):
        write_atomically(path, data)
        assert path.read_bytes() == data and names(path.parent) == ["c.bin"]


def test_all_is_on_the_disk_before_the_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is file, fsync, rename, fsync of the folder; until the rename a reader finds the old content."""
    path, steps = tmp_path / "c.bin", []
    path.write_bytes(b"old")
    fsync, replace = os.fsync, os.replace

    def watched_fsync(number: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else f"file {path.read_text()}")
        fsync(number)

    def watched_replace(source: Path, target: Path) -> None:
        steps.append(f"{Path(source).read_text()} over {Path(target).read_text()}")
        assert Path(source).parent == path.parent, "a rename within one folder is atomic"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_atomically(path, b"new")
    assert steps == ["file old", "new over old", "folder"]


class FullFile:
    """An open file on a disk that is full."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def write_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: FullFile(opened(path, mode)))


FAILURES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "write": write_fails,
    "fsync": lambda monkeypatch: monkeypatch.setattr(os, "fsync", no_space),
    "rename": lambda monkeypatch: monkeypatch.setattr(os, "replace", no_space),
}


@pytest.mark.parametrize("fails", FAILURES)
def test_a_full_disk_leaves_what_was_there_and_nothing_else(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "last.bin", tmp_path / "new.bin"
    old.write_bytes(b"precious")
    with monkeypatch.context() as patch:
        FAILURES[fails](patch)
        with pytest.raises(UserError) as caught:
            write_atomically(old, b"x" * 100)
        said = f"could not write {old}: No space left on device; the earlier last.bin is intact. Fix that and try"
        assert str(caught.value) == f"{said} again"
        with pytest.raises(UserError) as caught:
            write_atomically(new, b"x" * 100)
        assert str(caught.value) == f"could not write {new}: No space left on device. Fix that and try again"
    assert old.read_bytes() == b"precious" and names(tmp_path) == ["last.bin"]
    write_atomically(old, b"x")
    assert old.read_bytes() == b"x"


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.bin"
    write_atomically(path, b"precious")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"precious" and names(tmp_path) == ["last.bin"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB; only root may have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(tiny_disk: Path) -> None:
    path = tiny_disk / "last.bin"
    write_atomically(path, b"a" * 30_000)
    with pytest.raises(UserError, match=r"No space left on device; the earlier last\.bin is intact"):
        write_atomically(path, b"b" * 50_000)
    assert path.read_bytes() == b"a" * 30_000 and names(tiny_disk) == ["last.bin"]
    write_atomically(path, b"c" * 10_000)
    assert path.read_bytes() == b"c" * 10_000


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "folder").mkdir()
    for path, reason in {
        tmp_path / "file" / "below": "File exists|Not a directory",
        tmp_path / "file" / "below" / "it": "Not a directory",
        tmp_path / "folder": "Is a directory",
        tmp_path / ("n" * 250): "File name too long",
    }.items():
        with pytest.raises(UserError, match=f"could not write .*({reason})") as caught:
            write_atomically(path, b"x")
        assert "intact" not in str(caught.value)
    assert names(tmp_path) == ["file", "folder"] and (tmp_path / "file").read_bytes() == b"precious"


def test_only_the_disk_s_errors_become_the_user_s(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"could not write {tmp_path}: odd"), disk_errors(tmp_path):
        raise OSError("odd")
    with pytest.raises(ZeroDivisionError), disk_errors(tmp_path):
        raise ZeroDivisionError


def test_a_folder_is_held_by_one_process_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    code = "import sys, time; from pathlib import Path; from advsphere.files import folder_lock\n"
    code += "with folder_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is writing into"), folder_lock(folder, patience=0):
            pass
        other.kill()
    with folder_lock(folder, patience=0):
        assert names(folder) == [".lock"]
    with folder_lock(folder, patience=0):
        pass


@pytest.mark.parametrize("writes", [lambda path: None, lambda path: shutil.rmtree(path.parent)])
def test_a_locked_folder_that_is_removed_during_a_write(tmp_path: Path, writes: Callable[[Path], None]) -> None:
    """The first finds its unfinished file deleted while the lock is still there."""
    with pytest.raises(UserError, match="run was removed or replaced while"), folder_lock(tmp_path / "run"):
        write_atomically(tmp_path / "run" / "a", writes)


@pytest.mark.parametrize("how", ["removed", "emptied", "replaced", "linked elsewhere"])
def test_a_locked_folder_that_goes_away_is_not_made_again(tmp_path: Path, how: str) -> None:
    real, folder = tmp_path / "real", tmp_path / "run"
    real.mkdir()
    (tmp_path / "other").mkdir()
    folder.symlink_to(real)
    with pytest.raises(UserError, match="run was removed or replaced while"), folder_lock(folder):
        write_atomically(folder / "below" / "a", b"")
        if how == "emptied":
            shutil.rmtree(real)
            real.mkdir()
        elif how == "linked elsewhere":
            folder.unlink()
            folder.symlink_to(tmp_path / "other")
        else:
            real.rename(tmp_path / "moved")
            if how == "replaced":
                shutil.copytree(tmp_path / "moved", real)
        before = sorted(tmp_path.rglob("*"))
        for path in (folder / "a", folder / "new" / "a"):
            with pytest.raises(UserError, match="was removed or replaced"):
                write_atomically(path, b"")
        assert sorted(tmp_path.rglob("*")) == before
    write_atomically(tmp_path / "real" / "a", b"after the lock")


def test_the_holder_of_a_lock_is_named(tmp_path: Path) -> None:
    said = rf"another process is writing into {tmp_path} \(process {os.getpid()} on .+, since 20\d\d-.+\); wait"
    with folder_lock(tmp_path), pytest.raises(UserError, match=said), folder_lock(tmp_path, patience=0):
        pass
    assert (tmp_path / ".lock").read_text() == ""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuses(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuses)
    for lock, path in ((folder_lock, tmp_path), (file_lock, tmp_path / "ledger")):
        with pytest.warns(UserWarning, match="has no locks, so nothing keeps two processes"), lock(path, patience=0):
            write_atomically(tmp_path / "a", b"x")


def test_what_killed_writers_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "[a]*.bin"
    code = "import os, sys; from pathlib import Path; from advsphere.files import write_atomically\n"
    code += "write_atomically(Path(sys.argv[1]), lambda to: (to.write_bytes(b'half'), os._exit(9)))"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    mine = left.with_suffix(f".{os.getpid()}")  # of a process that lives
    other = tmp_path / f".b.bin{left.name.removeprefix('.[a]*.bin')}"
    for kept in (mine, other):
        kept.write_bytes(b"")
    mine.rename(left.with_suffix(f".{os.getppid()}"))
    write_atomically(path, b"whole")
    assert names(tmp_path) == sorted([path.name, other.name, f"{left.stem}.{os.getppid()}"])


def test_differences_of_json_values() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": [1]}
    new = {"b": {"c": [1, 3], "d": "x"}, "e": [1, 2], "f": None, "g": "y" * 90}
    found = differences(old, new)
    assert found == [
        Change("a", 1, None),
        Change("b.c[1]", 2, 3),
        Change("e", [1], [1, 2]),
        Change("g", None, "y" * 90),
    ]
    assert some(found, 2) == "a: 1 -> None, b.c[1]: 2 -> 3 and 2 more"
    assert len(str(found[-1])) < 80 and differences(new, new) == []
