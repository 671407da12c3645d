"""A rank that is killed under torchrun: all are started again and go on from the last checkpoint, to the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from advsphere.training import load_checkpoint
from tests.launching import ROOT, run_ranks
from tests.training.tiny import assert_same_run

MORTAL = """
import os, signal, sys
from pathlib import Path
import pytest
from advsphere import cli
from advsphere.cli import train as command
from tests.training.tiny import few_digits

few_digits(pytest.MonkeyPatch())
folder, dies_after = Path(sys.argv[1]), int(sys.argv[2])
train, rank, life = command.train, os.environ["RANK"], os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")

def mortal(*arguments, stop, **options):
    steps = []

    def dying():
        steps.append(1)
        if rank == "0":
            (folder / f"steps of life {life}").write_text(str(len(steps)))
        if (rank, life, len(steps)) == ("1", "0", dies_after):
            os.kill(os.getpid(), signal.SIGKILL)
        return stop()

    return train(*arguments, stop=dying, **options)

command.train = mortal
settings = "--data.validation 15 --batch-size 9 --epochs 3 --objective.repeats 2 --checkpoint-minutes 0".split()
sys.exit(cli.main(["train", "digits-freeat-he", "--out", str(folder / "run"), "--resume", *settings]))
"""


def train_under_torchrun(folder: Path, *, dies_after: int) -> subprocess.CompletedProcess[str]:
    (folder / "mortal.py").write_text(MORTAL)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    return subprocess.run(
        [*torchrun, str(folder / "mortal.py"), str(folder), str(dies_after)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src:.", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def steps(folder: Path) -> dict[str, int]:
    return {path.name.removeprefix("steps of "): int(path.read_text()) for path in folder.glob("steps of *")}


def test_a_rank_that_is_killed(tmp_path: Path) -> None:
    """Three epochs of three batches (9, 9 and 7 images) of two replays, with a checkpoint after each batch."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    first, second = run_ranks(2, MORTAL, whole, 0)
    assert (first.returncode, second.returncode) == (0, 0) and steps(whole) == {"life 0": 18}, first.stderr
    done = train_under_torchrun(killed, dies_after=11)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("another process of this run is gone") == 1
    # In the second epoch, within the replays of its last batch, which are taken again.
    taken = steps(killed)
    assert taken["life 0"] in (10, 11) and taken["life 1"] in (8, 10), (
        "it went on from a checkpoint, not from the start"
    )
    assert load_checkpoint(whole / "run" / "last.safetensors")[1]["environment"]["ranks"] == 2
    assert_same_run(whole / "run", killed / "run")
