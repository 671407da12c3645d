"""A budget keeps what was found, and every call makes progress, however short it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advsphere.attacks import apgd_targeted, square
from advsphere.evaluation import CLEAN, AttackSpec, Cell, Cost, Ledger, evaluate
from advsphere.evaluation.pace import Pace, leading
from tests.evaluation.cases import THREAT, linear, pgd_spec

STEPS = 50


class Clock(nn.Module):
    """A model that takes a second for each image; `now` is the time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.now = model, 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.now += len(x)
        logits: Tensor = self.model(x)
        return logits


def tried(path: Path) -> int:
    """The number of attacked images in a ledger."""
    with Ledger.read(path) as book:
        counts = [book.counts(name) for name in book.attacks]
    return sum(number for one in counts for status, number in one.items() if status != "not_run")


@pytest.mark.parametrize(("budget", "most"), [(400.0, None), (1.0, 1)])
def test_every_call_makes_progress(
    budget: float, most: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch of PGD takes 1,500 seconds, and one image up to 51."""
    known, path = linear(30, classes=5, wrong=3), tmp_path / "ledger.sqlite"
    model = Clock(known.model)
    monkeypatch.setattr("time.monotonic", lambda: model.now)
    given = {"threat": THREAT, "suite": [pgd_spec(steps=STEPS)], "ledger": path, "precision": "float32"}
    done: list[int] = []
    while True:
        result = evaluate(model, *known[1:], budget=budget, **given)  # type: ignore[arg-type]
        done.append(tried(path))
        if not result.worst.unreached:
            break
        assert done[-1] > (done[-2] if len(done) > 1 else 0)
        assert result.worst.seconds - budget * len(done) <= 100 + (STEPS + 3) * len(done), "an image too long, at most"
    steps = [b - a for a, b in zip([0, *done], done, strict=False)]
    assert len(done) > 1 and (most is None or max(steps) == most)
    at_once = evaluate(*known, budget=1e9, **{**given, "ledger": None})  # type: ignore[arg-type]
    assert [row.outcomes for row in result.rows] == [row.outcomes for row in at_once.rows]
    assert [row.forwards for row in result.attacks] == [row.forwards for row in at_once.attacks]


def test_a_part_takes_half_of_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pgd = pgd_spec(steps=100)
    targeted = AttackSpec("APGD-T", partial(apgd_targeted, threat=THREAT, steps=100, targets=9))
    own = AttackSpec("own", lambda model, x, y, /, *, rng=None: x)
    identity: dict[str, Any] = {"attacks": {"PGD": {}, "APGD-T": {}, "own": {}}}
    standing = torch.ones(250, dtype=torch.bool)
    with Ledger.create_or_resume(None, identity=identity, labels=[0] * 250, environment={}) as book:
        book.record(CLEAN, 0, [Cell(i, "resisted", 0, 0.0) for i in range(250)], Cost(2.5, 250))
        assert Pace(None).part(book, targeted, standing) == 250
        pace = Pace(300.0)  # a forward with its backward takes 30 ms
        assert pace.part(book, pgd, standing) == int(150 / (100 * 0.03))
        assert pace.part(book, targeted, standing) == int(150 / (900 * 0.03))
        assert pace.part(book, own, standing) == int(150 / (1000 * 0.03))
        book.record("PGD", 0, [Cell(i, "resisted", 0, 0.0) for i in range(50)], Cost(40.0, 4000), more=True)
        assert pace.part(book, pgd, standing) == int(150 / (80 * 0.01))
        now = 299.9
        assert pace.part(book, targeted, standing) == 1
        assert pace.part(book, targeted, torch.tensor([False, True, False, True])) == 3
    assert [leading(torch.tensor([True, False, True]), count) for count in (1, 2)] == [2, 3]


def test_a_targeted_attack_tries_the_likeliest_class_of_every_image_first() -> None:
    known = linear(60, classes=5)
    specs = [AttackSpec("APGD-T", partial(apgd_targeted, threat=THREAT, steps=5, targets=4)),
             AttackSpec("Square", partial(square, threat=THREAT, queries=5))]  # fmt: skip
    result = evaluate(*known, threat=THREAT, suite=specs, budget=1e9)
    assert [row.name for row in result.attacks][1:] == ["APGD-T, first target", "APGD-T", "Square"]
    first, rest = result.attacks[1:3]
    assert first.settings["targets"] == 1 and rest.settings["targets"] == 4
    alone = evaluate(*known, threat=THREAT, suite=[specs[0]])
    assert alone.worst.k >= rest.k
