"""Several ranks train as one: the same steps as a single process, whatever the world and however a batch divides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from advsphere.data import Augment
from advsphere.distributed import World
from advsphere.errors import UserError
from advsphere.objectives import Standard
from advsphere.training import load_checkpoint
from advsphere.training.step import Division
from tests.launching import run_ranks
from tests.training import ranks
from tests.training.tiny import State, kept, tiny_trainer

PROGRAM = """
import sys
from pathlib import Path
from advsphere.distributed import joined
from tests.training import ranks
new, begun = map(Path, sys.argv[1:])
with joined() as world:
    ranks.first_steps(new, world)
    ranks.normalised(new, world)
    ranks.partly_used(new, world)
    ranks.collapsing(new, world)
    ranks.go_on(begun, world)
"""


def test_two_and_three_ranks_train_as_one(tmp_path: Path) -> None:
    """The first steps, and a resume in a larger world: 1 to 2, 2 to 3, to the end. One test, so that the processes are
    started once.
    """
    one = tmp_path / "1"
    ranks.first_steps(one, World())
    ranks.normalised(one, World())
    ranks.partly_used(one, World())
    ranks.collapsing(one, World())
    shutil.copytree(one, tmp_path / "1 to 1")
    ranks.go_on(tmp_path / "1 to 1", World())
    for size in (2, 3):
        several, resumed = tmp_path / f"{size}", tmp_path / f"{size - 1} to {size}"
        shutil.copytree(tmp_path / f"{size - 1}", resumed)
        done = run_ranks(size, PROGRAM, several, resumed, seconds=180)
        assert [rank.returncode for rank in done] == [0] * size, "\n".join(rank.stderr for rank in done)
        for name in ranks.TOGETHER:
            assert_as_far(one / name, name)
            assert_equal_in_float64(one / name, several / name)
            assert load_checkpoint(tmp_path / "1 to 1" / name / "last.safetensors")[1]["cursor"] == [2, 0, 0]
            assert_equal_in_float64(tmp_path / "1 to 1" / name, resumed / name)
        assert_equal_in_float64(one / "aside", several / "aside")
        assert_equal_in_float64(one / "collapsing" / "FastAT", several / "collapsing" / "FastAT")
        went_on = json.loads((several / "collapsing.json").read_text())
        assert len(went_on) == size and all(rank[0].startswith("NFGSM") and rank[1] == 1 for rank in went_on)
        seen = json.loads((several / "seen.json").read_text())
        assert len(seen) == size and len(set(seen)) == 1, "all ranks have one network"
        assert_averaged(kept(one / "normalised", "last"), kept(several / "normalised", "last"))
    for name in ("PGDAT", "FreeAT"):
        assert_equal_in_float64(one / name, one / f"{name} in two parts")


def assert_equal_in_float64(one: Path, other: Path) -> None:
    """All that a checkpoint holds, to 1e-9 of each tensor's length."""
    a, b = (load_checkpoint(path / "last.safetensors") for path in (one, other))
    assert a[1]["cursor"] == b[1]["cursor"] and a[1]["lr"] == b[1]["lr"] and a[1]["best"] == b[1]["best"]
    assert a[0].keys() == b[0].keys()
    for name, t in a[0].items():
        distance, length = (float(d.double().norm()) for d in (t - b[0][name], t))
        assert distance <= 1e-9 * length, f"{name} of {other}"


def assert_as_far(one: Path, name: str) -> None:
    """Five steps were taken, and they would show; free training is in the middle of a batch's replays."""
    tensors, meta = load_checkpoint(one / "last.safetensors")
    assert all(t.dtype == torch.float64 for part, t in tensors.items() if part.endswith("weight"))
    assert meta["cursor"] == ([0, 1, 2] if "Free" in name else [1, 1, 0])
    start = ranks.trainer_of(name, one, World()).model.state_dict()
    assert max(float((t - tensors[f"raw.{part}"]).abs().max()) for part, t in start.items()) > 1e-3
    if "Free" in name:
        assert len(tensors["carry"]) == 7 and (tensors["carry"].flatten(1).abs().amax(1) > 1e-3).all()


def assert_averaged(one: State, several: State) -> None:
    """Running statistics are averaged by the sizes of the shares, so the means are those of the whole batch. Within
    shares images vary less than within the batch.
    """
    torch.testing.assert_close(several["1.running_mean"], one["1.running_mean"], rtol=1e-9, atol=1e-12)
    assert not torch.equal(several["1.running_var"], one["1.running_var"])
    torch.testing.assert_close(several["1.running_var"], one["1.running_var"], rtol=0.1, atol=0.0)


# How a batch divides.


@pytest.mark.parametrize(("size", "parts"), [(1, 1), (1, 3), (2, 1), (3, 2), (4, 2)])
@pytest.mark.parametrize("n", range(1, 10))
def test_every_image_is_taken_once_and_keeps_its_position(size: int, parts: int, n: int) -> None:
    batch = torch.arange(n)
    taken: list[Tensor] = []
    for rank in range(size):
        division = Division(8, parts, World(rank, size))
        share, mine = division.share(batch), division.parts(n)
        assert mine
        for part in mine:
            images = share[part.places]
            if part.number is None:
                assert part.images == 0 and images.tolist() == [0], "a stand-in"
                continue
            position = division.positions(rank)[part.number]
            assert part.images == len(images) > 0 and torch.equal(images, batch[position])
            taken.append(images)
    assert torch.equal(torch.cat(taken), batch)


def test_layers_that_wait_for_each_other_run_equally_often_on_all_ranks() -> None:
    for n in range(1, 10):
        counts = {len(Division(8, 2, World(rank, 3), even=True).parts(n)) for rank in range(3)}
        assert len(counts) == 1


def test_a_batch_too_small_for_its_ranks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a batch of 8 images can't be divided over 3 processes in 3 parts each"):
        Division(8, 3, World(0, 3))
    with pytest.raises(UserError, match="can't be taken in 9 parts"):
        tiny_trainer(tmp_path, Standard(), accumulate=9, augment=Augment())
