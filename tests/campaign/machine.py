"""Tasks in forks of one warm process, under a C library that ends them, or fails their calls, at a chosen change of a
file. A fork takes a tenth of a second; importing torch takes several.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from advsphere.errors import UserError

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("interposed.c")
BEFORE, WITHIN, AFTER, FAIL = range(4)
"""What happens at the chosen change: the process is killed before it, when half of it is done, or after it; or the call
fails with an error."""
MOMENTS = {BEFORE: "before", WITHIN: "within", AFTER: "after"}
REFUSED = 3
"""The exit status of a task that ended with a UserError."""


class Ended(NamedTuple):
    """How a fork ended: its exit status (negative: the signal), what it printed, and the changes that it made."""

    status: int
    said: str
    changes: int

    @property
    def refused(self) -> bool:
        """Whether it ended with one clear line."""
        return self.status == REFUSED and "Traceback" not in self.said


def library() -> Path | None:
    """The compiled library; None without a C compiler on Linux."""
    if not sys.platform.startswith("linux") or shutil.which("cc") is None:
        return None
    name = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    built = Path(tempfile.gettempdir(), f"advsphere-campaign-{os.getuid()}", f"{name}.so")
    if not built.exists():
        built.parent.mkdir(mode=0o700, exist_ok=True)
        part = built.with_suffix(f".{os.getpid()}")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", part, SOURCE, "-ldl", "-lpthread"], check=True)
        part.rename(built)
    return built


def under_the_library(arguments: list[str]) -> None:
    """Start this program again with the library preloaded, unless it is; this call then does not return."""
    built = library()
    if built is None:
        raise UserError("the campaign needs Linux and a C compiler, cc, for its kills within a write")
    if os.environ.get("LD_PRELOAD") != str(built):
        one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        place = os.environ | one | {"LD_PRELOAD": str(built), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.campaign", *arguments], place)


def _calls() -> ctypes.CDLL:
    calls = ctypes.CDLL(None)
    calls.arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_char_p]
    calls.arm.restype = calls.set_clock.restype = None
    calls.changes.restype = ctypes.c_long
    calls.set_clock.argtypes = [ctypes.c_double, ctypes.c_double]
    return calls


def arm(
    watched: Path, at: int = 0, how: int = BEFORE, error: int = 0, lasts: int = -1, record: Path | None = None
) -> None:
    """Watch the files in a folder from now on, in this process.

    Args:
        watched: The folder; the changes of the files in it are counted.
        at: The number of the change at which something happens; 0 for none.
        how: What happens.
        error: The error number with which calls fail.
        lasts: How many changes fail; all later ones by default.
        record: A file outside of the folder to which all changes are written with their bytes.
    """
    _calls().arm(str(watched).encode(), at, how, error, lasts, str(record or "").encode())


def changes() -> int:
    """The number of changes so far."""
    return int(_calls().changes())


def set_clock(factor: float, jump: float) -> None:
    """From now on the clocks of this process run `factor` times as fast, after a jump of so many seconds."""
    _calls().set_clock(factor, jump)


NO_MOUNTS = "no mounts here"


def mount_read_only(folder: Path) -> None:
    """From now on, a folder is read-only for this process and for those that it starts. Raises PermissionError where
    the system does not let it.
    """
    system = ctypes.CDLL(None, use_errno=True)
    here = str(folder).encode()
    if system.unshare(0x00020000):  # CLONE_NEWNS
        raise PermissionError(NO_MOUNTS)
    system.mount(b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
    if system.mount(here, here, None, 4096, None) or system.mount(None, here, None, 4096 | 32 | 1, None):
        raise PermissionError(NO_MOUNTS)


def forked(task: Callable[[], object], *, seconds: float = 120.0, place: dict[str, str] | None = None) -> Ended:
    """Run a task in a fork and wait for it; after so many seconds it is killed, and the status is -9."""
    return finished(started(task, place=place), seconds=seconds)


class Fork(NamedTuple):
    """A running fork, and the file of what it prints."""

    pid: int
    said: Path


def started(task: Callable[[], object], *, place: dict[str, str] | None = None) -> Fork:
    """Start a task in a fork, with `place` added to its environment."""
    number, name = tempfile.mkstemp(prefix="campaign-", suffix=".out")
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        os.close(number)
        return Fork(pid, Path(name))
    status = 1
    try:
        os.setsid()
        os.dup2(number, 1)
        os.dup2(number, 2)
        os.environ.update(place or {})
        task()
        status = 0
    except KeyboardInterrupt:
        status = 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = REFUSED
    except SystemExit as asked:
        status = asked.code if isinstance(asked.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(AttributeError):  # the library is not there
            print(f"\nchanges: {changes()}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finished(fork: Fork, *, seconds: float = 120.0) -> Ended:
    """Wait for a fork; one that hangs is killed with all that it started, and its output says so."""
    until = time.monotonic() + seconds
    status, hung = None, False
    while status is None:
        pid, code = os.waitpid(fork.pid, os.WNOHANG)
        if pid:
            status = os.waitstatus_to_exitcode(code)
        elif time.monotonic() > until and not hung:
            hung = True
            os.killpg(fork.pid, signal.SIGKILL)
        else:
            time.sleep(0.005)
    with suppress(ProcessLookupError):  # workers that outlive it
        os.killpg(fork.pid, signal.SIGKILL)
    said = fork.said.read_text(errors="replace")
    fork.said.unlink()
    _, _, counted = said.rpartition("\nchanges: ")
    if hung:
        said += f"\nTraceback: it was killed after {seconds:.0f} seconds"
    return Ended(status, said, int(counted) if counted.strip().isdigit() else 0)
