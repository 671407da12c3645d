"""Ranks that stand still, and ranks that the others wait for, are named."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from advsphere.errors import UserError
from advsphere.heartbeat import Exchanges, Heartbeat, hang_seconds
from tests.launching import run_ranks

STOPPED = """
import os, signal, subprocess, time
from advsphere.distributed import joined
with joined() as world:
    first = world.from_first(os.getpid())
    if world.rank == 1:
        time.sleep(1.5)  # so that the first rank hears it
        again = f"while kill -0 {first}; do sleep 0.1; done; kill -CONT {os.getpid()}"
        subprocess.Popen(["sh", "-c", again], stderr=subprocess.DEVNULL)
        os.kill(os.getpid(), signal.SIGSTOP)
    world.barrier()
"""


def test_a_stopped_rank_ends_the_run_and_is_named() -> None:
    done = run_ranks(2, f"import os; os.environ['ADVSPHERE_HANG_SECONDS'] = '4'\n{STOPPED}", seconds=240)
    assert [rank.returncode for rank in done] == [1, 1]
    errors = [line for line in done[0].stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "rank 1 has shown no sign of life for 4 s" in errors[0], done[0].stderr
    assert "<rank>" in errors[0] and "Traceback" not in done[0].stderr  # the place where it was stopped


def pair(monkeypatch: pytest.MonkeyPatch, size: int = 2) -> list[tuple[Heartbeat, Exchanges]]:
    monkeypatch.setenv("ADVSPHERE_HANG_SECONDS", "3")
    store, exchanges = dist.HashStore(), [Exchanges() for _ in range(size)]
    return [(Heartbeat(store, rank, size, one, every=0.5), one) for rank, one in enumerate(exchanges)]


@pytest.mark.parametrize(("stopped", "living"), [(1, 0), (0, 1)])
def test_only_a_missing_heartbeat_ends_a_run(stopped: int, living: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = pair(monkeypatch)
    for _ in range(20):  # both work, and neither exchanges anything
        assert [heartbeat.beat() for heartbeat, _ in ranks] == ["", ""] and ranks[0][0].late() == ""
    told = [ranks[living][0].beat() for _ in range(8)]
    assert told[:5] == [""] * 5 and f"rank {stopped} has shown no sign of life for 3 s" in told[7]
    assert "it was last in " in told[7] and "\n" not in told[7]
    ranks[stopped][0].beat()
    assert ranks[living][0].beat() == ""


def test_who_has_not_arrived_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = pair(monkeypatch, 3)
    for late in (2, 1):
        with ranks[0][1].one(), ranks[3 - late][1].one():
            told = []
            for _ in range(20):
                assert not any(heartbeat.beat() for heartbeat, _ in ranks)
                told.append(ranks[0][0].late())
            (said,) = [line for line in told if line]
            assert said.startswith(f"the processes have waited for each other for 3 s: rank {late} is in ")
        with ranks[late][1].one():
            pass


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf"])
def test_a_time_that_is_none_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVSPHERE_HANG_SECONDS", given)
    with pytest.raises(UserError, match="ADVSPHERE_HANG_SECONDS"):
        hang_seconds()
    monkeypatch.delenv("ADVSPHERE_HANG_SECONDS")
    assert hang_seconds() == 300
