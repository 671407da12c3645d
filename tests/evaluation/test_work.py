"""An evaluation by several processes is the one by a single process, whatever happens in between."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import apgd_targeted
from advsphere.distributed import World
from advsphere.errors import UserError
from advsphere.evaluation import AttackSpec, Evaluation, Ledger, checks, evaluate, verify
from advsphere.evaluation.checks import fitting_batch_size, usual_batch_size
from advsphere.evaluation.work import Begin, assign_batches, own_part
from advsphere.threat import ThreatModel
from tests.data.layouts import write_image
from tests.evaluation.cases import THREAT, linear, pgd_spec
from tests.evaluation.sharing import SPECS, digits, shared
from tests.launching import run_ranks

PROGRAM = "import sys; from tests.evaluation.sharing import main; main(sys.argv[1:])"
PATIENT = 240.0
"""Seconds: three ranks may share a core with other tests."""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are then the same bits as in the ranks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def content(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of an evaluation, but times and places."""
    columns = dict.fromkeys(("meta", "examples", "attacks", "probes", "cells"), "*")
    with closing(sqlite3.connect(path)) as db:
        return {
            table: sorted(db.execute(f"SELECT {which} FROM {table}"), key=str)
            for table, which in (columns | {"batches": "attack, batch, forwards"}).items()
        }


def test_two_and_three_ranks_come_to_the_ledger_of_one(tmp_path: Path, one_thread: None) -> None:
    alone, by_three, by_two, killed = (tmp_path / f"{name}.sqlite" for name in ("alone", "three", "two", "killed"))
    expected = shared(digits(), alone).ledger

    first = run_ranks(3, PROGRAM, by_three, "kill", killed, seconds=PATIENT)
    assert [rank.returncode for rank in first] == [1, 1, -9], first[0].stderr
    assert first[0].stdout == f"{expected}\n" and "another process of this run is gone" in first[0].stderr
    parts = sorted(tmp_path.glob("killed.rank-*.sqlite"))
    assert [part.name for part in parts] == [f"killed.rank-{rank}.sqlite" for rank in range(3)]
    assert 0 < sum(finished(part) for part in parts) < finished(alone)
    later = tmp_path / "later" / killed.name
    shutil.copytree(tmp_path, later.parent)

    command, out = photos(tmp_path)
    second = run_ranks(2, PROGRAM, by_two, killed, *command, seconds=PATIENT)
    assert [rank.returncode for rank in second] == [0, 0], second[0].stderr
    assert second[0].stdout.startswith(f"{expected}\n{expected}\n") and second[1].stdout == ""
    assert second[0].stdout.count("worst case") == 1 and "2 processes" in second[0].stdout
    visible = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    assert visible == ["evaluation.json", "ledger.sqlite", "subject.json"]
    assert Evaluation.load(out / "evaluation.json").clean.n == 10

    result = shared(digits(), later)
    assert result.ledger == expected
    assert content(by_three) == content(by_two) == content(killed) == content(later) == content(alone)
    assert not [*tmp_path.rglob("*.rank-*")]
    result.save(tmp_path / "evaluation.json")
    assert verify(tmp_path / "evaluation.json", later, *digits(), suite=SPECS).passed


def finished(path: Path) -> int:
    """How many batches of attacks are finished."""
    with Ledger.read(path) as book:
        return sum(len(book.done(name)) for name in ("clean", *book.attacks))


def photos(folder: Path) -> tuple[list[object], Path]:
    """A command that evaluates a model of one's own on ten images, and where it writes."""
    generator = torch.Generator().manual_seed(0)
    for i in range(10):
        pixels = torch.randint(256, (6, 6, 3), generator=generator, dtype=torch.uint8).numpy()
        write_image(folder / "val" / f"class{i % 2}" / f"{i}.png", pixels)
    settings: dict[str, object] = {"model": "tests.evaluation.cases:tiny", "data": folder, "image-size": 6, "steps": 3}
    settings |= {"batch-size": 4, "precision": "float32", "budget": "60s", "out": folder / "out"}
    return ["evaluate", *(word for name, value in settings.items() for word in (f"--{name}", value))], folder / "out"


def begin(seed: int) -> Begin:
    identity = {"seed": seed, "attacks": {}}
    return partial(Ledger.create_or_resume, identity=identity, labels=[0], environment={})


def test_several_processes_need_a_file() -> None:
    with pytest.raises(UserError, match="give the ledger a path"), own_part(None, begin(0), World(0, 2)):
        pass


def test_a_rank_that_means_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "barrier", lambda self: None)
    path = tmp_path / "ledger.sqlite"
    with own_part(path, begin(0), World(0, 2)):
        pass
    with pytest.raises(UserError, match="seed: 0 -> 1"), own_part(path, begin(1), World(1, 2)):
        pass


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_every_batch_has_one_taker_and_all_take_as_much_that_is_equally_far(size: int) -> None:
    done = [{0, 1, 2, 3, 4, 5}, {0, 2, 4}]
    shares = [assign_batches(range(8), done, World(rank, size)) for rank in range(size)]
    assert sorted(batch for share in shares for batch in share) == list(range(8))
    for alike in ({0, 2, 4}, {1, 3, 5}, {6, 7}):
        numbers = [len(alike & {*share}) for share in shares]
        assert max(numbers) - min(numbers) <= 1


def test_a_batch_is_as_large_as_memory_allows() -> None:
    assert [usual_batch_size((3, side, side)) for side in (8, 32, 64, 224, 4000)] == [250, 250, 250, 27, 1]


@pytest.mark.parametrize(("gib", "expected"), [(0.1, 250), (2, 250), (4.1, 500), (8.1, 1000), (16.1, 2000), (80, 2000)])
def test_a_gpu_takes_a_batch_whose_gradient_fits(gib: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 4 MiB for each image and half of the free memory."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert fitting_batch_size(model, (3, 2, 2)) == 250
    monkeypatch.setattr(checks, "device_of", lambda model: FakeGPU())
    monkeypatch.setattr(torch, "full", lambda shape, value, device: torch.ones(shape) * value)
    monkeypatch.setattr(torch, "zeros", lambda n, dtype, device: torch.ones(n, dtype=dtype) - 1)
    for name, value in {
        "memory_allocated": 2**30,
        "memory_reserved": 2**30,
        "max_memory_allocated": 2**30 + 32 * 2**22,
        "reset_peak_memory_stats": None,
        "mem_get_info": (int(gib * 2**30), 80 * 2**30),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert fitting_batch_size(model, (3, 2, 2)) == expected


class FakeGPU:
    type = "cuda"


class Small(nn.Module):
    """Memory for so many images; `sizes` are those of the batches that had a gradient."""

    def __init__(self, inner: nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most, self.sizes = inner, most, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            if len(x) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.sizes.append(len(x))
        logits: Tensor = self.inner(x)
        return logits


@pytest.mark.parametrize(
    ("memory", "sizes"), [(18, [6, 6, 18, 18]), (17, [6, 6] + [3] * 8 + [3, 3, 9, 9]), (8, [6, 6] + [3] * 10 + [2] * 8)]
)
def test_an_attack_may_fill_the_batch_but_not_where_memory_ran_out(memory: int, sizes: list[int]) -> None:
    """Of four targets the first comes alone, and the other three make batches three times as large."""
    known, threat = linear(6, classes=5), ThreatModel(norm="linf", eps=1e-6)
    attack = AttackSpec("APGD-T", partial(apgd_targeted, threat=threat, steps=1, targets=4))
    model = Small(known.model, memory)
    labels = known.model(known.images).argmax(1)
    result = evaluate(model, known.images, labels, threat=threat, suite=[attack], batch_size=20, precision="float32")
    assert result.worst.k == 6 and str(sizes)[1:-1] in str(model.sizes)


def test_a_ledger_keeps_its_batch_size(tmp_path: Path) -> None:
    known = linear()
    options = {"threat": THREAT, "suite": [pgd_spec()], "ledger": tmp_path / "ledger.sqlite"}
    first = evaluate(known.model, known.images, known.labels, batch_size=7, **options)  # type: ignore[arg-type]
    again = evaluate(known.model, known.images, known.labels, **options)  # type: ignore[arg-type]
    assert again.identity["batch_size"] == 7 and again.attacks == first.attacks
    with pytest.raises(UserError, match="batch_size"):
        evaluate(known.model, known.images, known.labels, batch_size=8, **options)  # type: ignore[arg-type]
