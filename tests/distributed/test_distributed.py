"""Processes that are one run: what they share, and that they fail together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from advsphere.distributed import World, cut, joined
from advsphere.errors import UserError
from tests.launching import run_ranks


@pytest.mark.parametrize(("n", "parts"), [(8, 2), (8, 3), (2, 3), (0, 2), (7, 1), (256, 6)])
def test_parts_are_contiguous_and_even(n: int, parts: int) -> None:
    pieces = [list(range(n))[part] for part in cut(n, parts)]
    assert [i for piece in pieces for i in piece] == list(range(n)) and len(pieces) == parts
    sizes = [len(piece) for piece in pieces]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1


def test_without_torchrun_the_world_is_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as world:
        assert world == World() and world.first and world.share(5) == slice(0, 5)
        assert world.sum(torch.tensor([1.5])).item() == 1.5
        assert world.gather("a") == ["a"] and world.from_first("a") == "a"
        world.barrier()


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match="only 2: use torchrun --nproc-per-node 2"), joined():
        pass


TOGETHER = """
import torch
from advsphere.distributed import joined
with joined() as world:
    print(world.sum(torch.tensor([2**53 + world.rank, 1])).tolist(), world.gather("abc"[world.rank]))
    told = world.from_first(world.rank)
    print(all(world.sum(torch.tensor([told, world.share(5).stop])) == torch.tensor([0, 2 + 4 + 5])))
"""


def test_three_ranks_agree_and_the_first_one_speaks() -> None:
    done = run_ranks(3, TOGETHER)
    assert [rank.returncode for rank in done] == [0, 0, 0], done[0].stderr
    assert done[0].stdout == f"[{3 * 2**53 + 3}, 3] ['a', 'b', 'c']\nTrue\n"
    assert done[1].stdout == done[2].stdout == ""


FAILING = """
import os, signal, sys, torch
from advsphere.distributed import joined
from advsphere.errors import UserError
how, which = sys.argv[1], int(sys.argv[2])
with joined() as world:
    if world.rank == which:
        if how == "mistake":
            raise UserError("it is wrong; do it right")
        if how == "bug":
            raise ZeroDivisionError("of ours")
        if how == "usage":
            print("usage: so", file=sys.stderr)
            sys.exit(2)
        os.kill(os.getpid(), signal.SIGKILL)
    if how != "usage":
        world.barrier()
    while world.size:  # as if waiting for something that never comes
        pass
"""


@pytest.mark.parametrize(
    ("how", "which", "statuses", "said"),
    [
        ("mistake", 1, [1, 1], "error: it is wrong; do it right\n"),
        ("bug", 1, [1, 1], "ZeroDivisionError: of ours\n"),
        ("usage", 0, [2, 1], "usage: so\n"),
        ("killed", 1, [1, -9], "another process of this run is gone"),
    ],
)
def test_all_ranks_fail_together_and_say_it_once(how: str, which: int, statuses: list[int], said: str) -> None:
    done = run_ranks(2, FAILING, how, which)
    assert [rank.returncode for rank in done] == statuses
    assert done[0].stderr.endswith(said) if said.endswith("\n") else said in done[0].stderr
    assert done[0].stderr.count("error: ") <= 1
    assert done[1].stderr == "" and done[0].stdout == done[1].stdout == ""


DIFFERENT = """
import sys
from advsphere.distributed import joined
from advsphere.errors import UserError
from advsphere.recipes import recipe
from advsphere.runs.train import train

with joined() as world:
    other = world.rank == 1
    for name, settings in [
        ("digits-fastat", {"seed": 3 * other}),
        ("digits-fastat", {"lr": 0.2 if other else 0.1}),
        ("digits-fastat", {"epochs": 2 if other else 1}),
        ("digits-fastat", {"batch_size": 32 if other else 64}),
        ("digits-pgd-at" if other else "digits-fastat", {}),
    ]:
        try:
            train(recipe(name), sys.argv[1], world=world, **settings)
        except UserError as error:
            print(error)
"""


def test_ranks_with_other_settings_are_told_before_anything_runs(tmp_path: Path) -> None:
    done = run_ranks(2, DIFFERENT, tmp_path / "run")
    assert [one.returncode for one in done] == [0, 0] and not (tmp_path / "run").exists()
    lines = done[0].stdout.splitlines()
    changes = ["training.seed: 0 -> 3", "training.lr: 0.1 -> 0.2", "training.epochs: 1 -> 2"]
    changes += ["training.batch_size: 64 -> 32", "recipe: digits-fastat -> digits-pgd-at"]
    for line, change in zip(lines, changes, strict=True):
        assert line.startswith("the processes were started with different settings: ")
        assert f"{change} on rank 1" in line and line.endswith("start all with the same")
