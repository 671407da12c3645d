"""Stories that are known, told out of ledgers written by hand; replays against evaluations that were run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from advsphere.attacks import deepfool
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.evaluation import CLEAN, AttackSpec, Cell, Cost, Ledger, evaluate
from advsphere.evaluation.cascades import cascade
from advsphere.evaluation.trace import Trace, find_name, notable, replay, trace_example
from advsphere.identity import describe
from tests.evaluation.cases import FEW, SHAPE, THREAT, change, do_nothing, leave_the_ball, linear, pgd_spec

CLASSES = ("cat", "dog", "bird")
IMAGE = torch.zeros(SHAPE)
ATTACKS = {"PGD": {"name": "pgd", "steps": 20}, "CW": {"name": "cw", "minimal": True}, "Last": {"after": ["PGD"]}}
LABELS = [0, 1, 2, 0, 1, 2]
CELLS = {
    CLEAN: [Cell(0, "fooled", 1, 0.0), *(Cell(i, "resisted", LABELS[i], 0.0) for i in range(1, 5))],
    "PGD": [
        Cell(0, "not_run"),
        Cell(1, "fooled", 2, 0.1, IMAGE),
        Cell(2, "resisted", 2, 0.1),
        Cell(3, "invalid", None, 0.7),
        Cell(4, "resisted", 1, 0.1),
    ],
    "CW": [
        Cell(0, "not_run"),
        Cell(1, "fooled", 0, 0.05, IMAGE),
        Cell(2, "resisted", -1, 0.3, IMAGE),
        Cell(3, "invalid", None, 0.2),
    ],
    "Last": [Cell(0, "not_run"), Cell(1, "not_run"), Cell(2, "fooled", 0, 0.0999, IMAGE)],
}


def written(attacks: dict[str, dict[str, object]], cells: dict[str, list[Cell]], labels: list[int]) -> Ledger:
    identity = {
        "threat": describe(THREAT),
        "seed": 7,
        "attacks": attacks,
        "model": {"checksum": "0", "scale": 1.0},
        "data": {"shape": SHAPE, "checksum": "0", "n": len(labels)},
        "suite": {"name": "own"},
        "search": "float32",
        "batch_size": 2,
    }
    book = Ledger.create_or_resume(None, identity=identity, labels=labels, environment={})
    for name, found in cells.items():
        book.record(name, 0, found, Cost(0.0, 0))
    return book


@pytest.fixture(scope="module")
def book() -> Ledger:
    return written(ATTACKS, CELLS, LABELS)


def outcomes(told: Trace) -> list[str]:
    return [told.words(attempt) for attempt in told.attempts]


def test_what_became_of_each_is_told(book: Ledger) -> None:
    assert outcomes(trace_example(book, 0, CLASSES)) == ["skipped: misclassified anyway"] * 3
    assert outcomes(trace_example(book, 1, CLASSES)) == [
        "fooled: bird",
        "fooled: cat",
        "skipped: already fooled by PGD",
    ]
    assert outcomes(trace_example(book, 2, CLASSES)) == [
        "resisted",
        "resisted: NaN is outside the ball",
        "fooled: cat",
    ]
    assert outcomes(trace_example(book, 3, CLASSES))[:2] == [
        "left the ball, so it counts as resisted",
        "left the pixel range, so it counts as resisted",
    ]
    late = "not reached: out of time, or interrupted"
    assert outcomes(trace_example(book, 4, CLASSES)) == ["resisted", late, late]


def test_what_an_attack_would_skip_needs_no_time() -> None:
    early = written(ATTACKS, {CLEAN: CELLS[CLEAN], "PGD": CELLS["PGD"]}, LABELS)  # the budget ended after PGD
    assert outcomes(trace_example(early, 0, CLASSES)) == ["skipped: misclassified anyway"] * 3
    assert outcomes(trace_example(early, 1, CLASSES))[2] == "skipped: already fooled by PGD"


def test_the_nearest_is_the_one_with_the_smallest_distance(book: Ledger) -> None:
    told = trace_example(book, 1, CLASSES)
    assert told.nearest is told.attempt("CW") and told.summary == "nearest: CW, cat at 0.05"
    assert trace_example(book, 2).nearest == trace_example(book, 2).attempt("Last")  # CW's find is outside the ball
    assert (
        trace_example(book, 3).nearest is None and "images that resisted are not kept" in trace_example(book, 3).summary
    )
    assert trace_example(book, 4).summary.startswith("no attack fooled it so far")
    even = replace(told.attempts[0], distance=0.0500000001)
    assert replace(told, attempts=(even, told.attempts[1])).nearest == even  # rounding does not decide


def test_what_is_stored_is_what_the_ledger_has(book: Ledger) -> None:
    for example in range(5):
        for attempt in trace_example(book, example).attempts:
            assert attempt.stored == (book.adversarial(attempt.attack, example) is not None)


def test_the_text_says_it_all(book: Ledger) -> None:
    text = str(trace_example(book, 1, CLASSES))
    assert text.startswith(
        "example 1: dog, classified correctly\nlinf, eps = 0.1 (0.1); random numbers: seed 7, example 1"
    )
    for said in ("pgd, steps 20", "fooled: bird", "0.05", "minimal", "nearest: CW"):
        assert said in text
    assert "class 1" not in text and "class 2" in str(trace_example(book, 1))
    assert trace_example(book, 0, CLASSES).title == "example 0: cat, misclassified as dog without an attack"
    for width in (60, 80, 120):
        assert max(map(len, trace_example(book, 2, CLASSES).table(width=width).splitlines())) <= width


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("DELETE FROM meta WHERE key = 'seed'", "KeyError: 'seed'"),
        ("UPDATE meta SET value = '[]' WHERE key = 'model'", "does not hold what advsphere writes"),
        ("UPDATE meta SET value = 'true' WHERE key = 'seed'", "its seed is True"),
        ("UPDATE meta SET value = '0' WHERE key = 'batch_size'", "its batches 0"),
        ("""UPDATE meta SET value = '"float8"' WHERE key = 'search'""", "searched in float8"),
        ("UPDATE attacks SET settings = '[]' WHERE name = 'Last'", "the settings of an attack are no table"),
    ],
)
def test_a_ledger_that_does_not_say_all_of_its_evaluation_is_refused(change: str, says: str) -> None:
    damaged = written(ATTACKS, CELLS, LABELS)
    damaged._db.execute(change)
    with pytest.raises(UserError, match=says) as caught:
        trace_example(damaged, 0)
    assert "\n" not in str(caught.value)


def test_what_is_not_there(book: Ledger) -> None:
    for missing in (-1, 6):
        with pytest.raises(UserError, match="the evaluation has 6, numbered from 0"):
            trace_example(book, missing)
    with pytest.raises(UserError, match="example 5 was not predicted yet"):
        trace_example(book, 5)
    with pytest.raises(UserError, match="did you mean 'PGD'"):
        trace_example(book, 1).attempt("PDG")


@pytest.mark.parametrize(
    ("given", "says"),
    [("pgd20", "mean 'PGD-20'"), ("apgd-t", r"mean 'AutoAttack: \+ APGD-T'"), ("xyz", "there are 'PGD-20', 'Auto")],
)
def test_the_nearest_name(given: str, says: str) -> None:
    names = ["PGD-20", "AutoAttack: + APGD-T"]
    assert find_name("PGD-20", names) == "PGD-20"
    with pytest.raises(UserError, match=says):
        find_name(given, names)


def told_by(cells: dict[str, str], *, after: bool = False) -> dict[str, list[int]]:
    """What is worth looking at, from a line of marks for each attack: x fooled, o resisted, - not run."""
    known = linear(len(next(iter(cells.values()))), wrong=1)
    status = {"x": "fooled", "o": "resisted", "-": "not_run"}
    names = list(cells)
    attacks = {name: {"after": names[:i]} if after else {} for i, name in enumerate(names)}
    labels = known.labels.tolist()
    wrong = known.model(known.images).argmax(1) != known.labels
    found = {CLEAN: [Cell(i, "fooled" if w else "resisted", labels[i]) for i, w in enumerate(wrong.tolist())]}
    found |= {name: [Cell(i, status[m]) for i, m in enumerate(line)] for name, line in cells.items()}  # type: ignore[arg-type]
    images = ImageSet(known.images, known.labels, ("a", "b"))
    groups = notable(written(attacks, found, labels), known.model, images)
    return {
        next(word for word in ("late", "single", "first", "closest") if word in group.kind): list(group.examples)
        for group in groups
    }


def test_what_is_worth_looking_at() -> None:
    assert told_by({"A": "-xooo", "B": "--xoo", "C": "---oo"}, after=True)["late"] == [2]
    assert "late" not in told_by({"A": "-xoo", "B": "--oo"}, after=True)  # the first attack had them all
    alone = told_by({"A": "-xooxx", "B": "-xxoxo", "C": "-xooxo"})
    assert alone["late"] == [2] and alone["single"] == [5]  # each listed once
    assert told_by({"A": "-xxxxxx", "B": "-oooooo"})["single"] == [1, 2, 3]
    assert told_by({"A": "-xxx"}) == {"first": [1, 2, 3]}
    assert told_by({"A": "-xox", "B": "--"}, after=True) == {"first": [1, 3], "closest": [2]}  # the budget ended in B


def test_the_closest_to_the_boundary_come_first() -> None:
    line = "-" + "o" * 9 + "x" * 10
    close = told_by({"A": line})["closest"]
    known = linear(20, wrong=1)
    logits = known.model(known.images)
    lead = (logits[:, 0] - logits[:, 1]).abs()
    assert close == sorted(range(1, 10), key=lambda i: lead[i].item())[:3]


MINIMAL = AttackSpec("DeepFool", partial(deepfool, norm="linf"), minimal=True)
TWICE = replace(pgd_spec("PGD-3", steps=3), restarts=2)
SPECS = (*cascade((TWICE, *FEW)), MINIMAL, AttackSpec("cheat", leave_the_ball), AttackSpec("nothing", do_nothing))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("story") / "ledger.sqlite"
    evaluate(*linear(classes=3), threat=THREAT, suite=SPECS, batch_size=16, ledger=path, seed=3)
    return path


def image_set() -> ImageSet:
    known = linear(classes=3)
    return ImageSet(known.images, known.labels, CLASSES)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_replay_comes_to_the_recorded_outcome(run: Path, spec: AttackSpec) -> None:
    model, seen = linear(classes=3).model, set()
    with Ledger.read(run) as book:
        for cell in book.cells(spec.name):
            if cell.status == "not_run" and trace_example(book, cell.example).prediction != book.labels[cell.example]:
                continue
            again = replay(book, model, image_set(), spec.name, cell.example, suite=SPECS)
            seen.add(cell.status)
            if cell.status == "not_run":
                assert again.same is None and again.then.before
                continue
            assert again.same and again.now.distance == pytest.approx(cell.distance, rel=1e-4)
            stored = book.adversarial(spec.name, cell.example)
            assert stored is None or torch.allclose(again.x_adv, stored, atol=1e-5)
    assert seen >= ({"invalid"} if spec.name == "cheat" else {"resisted"})


def test_a_replay_says_where_the_outcome_is_another(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ledger.sqlite"
    copy.write_bytes(run.read_bytes())
    with Ledger.read(run) as book:
        fooled = next(c for c in book.cells("PGD-3") if c.status == "fooled")
    for sql in ("status = 'resisted', prediction = 9", "status = 'fooled', prediction = 9"):
        change(copy, f"UPDATE cells SET {sql} WHERE attack = 'PGD-3' AND example = ?", fooled.example)
        with Ledger.read(copy) as book:
            again = replay(book, linear(classes=3).model, image_set(), "PGD-3", fooled.example, suite=SPECS)
        assert again.same is False and again.now.prediction == fooled.prediction


def test_a_replay_needs_what_was_evaluated(run: Path) -> None:
    known = linear(classes=3)
    wrong = int(known.labels.ne(known.model(known.images).argmax(1)).nonzero()[0])
    other = linear(classes=3)
    with torch.no_grad():
        other.model[1].weight.mul_(-1)  # type: ignore[index, operator]
    with Ledger.read(run) as book:
        for model, images, example, says in (
            (other.model, image_set(), 1, "another model"),
            (known.model, replace(image_set(), labels=known.labels.roll(1)), 1, "other images"),
            (known.model, image_set(), wrong, "nothing to replay"),
            (known.model, image_set(), 99, "there is no example 99"),
        ):
            with pytest.raises(UserError, match=says):
                replay(book, model, images, "PGD-3", example, suite=SPECS)
        with pytest.raises(UserError, match="give them as suite="):
            replay(book, known.model, image_set(), "PGD-3", 1)
