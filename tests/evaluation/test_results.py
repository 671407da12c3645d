from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from advsphere.errors import UserError
from advsphere.evaluation import Evaluation, compare, evaluate
from advsphere.stats import wilson
from advsphere.threat import ThreatModel, radius
from tests.evaluation.cases import THREAT, linear


@pytest.fixture(scope="module")
def result() -> Evaluation:
    return evaluate(*linear(), threat=THREAT, batch_size=16)


def test_rows_are_numbers_with_their_interval(result: Evaluation) -> None:
    assert [row.name for row in result.rows] == ["clean", "FGSM", "PGD-20", "PGD-100", "margin PGD-100", "worst case"]
    for row in result.rows:
        assert row.accuracy == row.k / row.n and row.interval == wilson(row.k, row.n)
    assert result.row("PGD-20") is result.attacks[1]
    with pytest.raises(UserError, match="there are clean, FGSM"):
        result.row("PGD-21")
    assert result.worst.forwards == sum(row.forwards for row in result.rows[:-1]) > 0


def test_what_is_saved_is_what_is_loaded(result: Evaluation, tmp_path: Path) -> None:
    result.save(tmp_path / "evaluation.json")
    assert Evaluation.load(tmp_path / "evaluation.json") == result
    data = json.loads((tmp_path / "evaluation.json").read_text())
    assert data["worst"]["k"] == result.worst.k and data["worst"]["n"] == 60
    assert data["attacks"][1]["settings"]["steps"] == 20 and "upper bound" in data["note"]
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]


def test_a_file_that_was_changed_or_is_another_is_refused(result: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    result.save(path)
    text = path.read_text()
    path.write_text(text.replace(f'"k": {result.worst.k}', f'"k": {result.worst.k + 1}'))
    with pytest.raises(UserError, match="was changed after it was written"):
        Evaluation.load(path)
    for broken in (text[: len(text) // 2], "[]", '{"format": "something else"}'):
        path.write_text(broken)
        with pytest.raises(UserError, match=r"evaluation\.json"):
            Evaluation.load(path)
    with pytest.raises(UserError, match="can't be read"):
        Evaluation.load(tmp_path / "nothing.json")


def test_the_table_says_what_it_is(result: Evaluation) -> None:
    text = result.table()
    assert text.startswith("robust accuracy, an upper bound: linf, eps = 0.1")
    low, high = result.worst.interval
    line = next(line for line in text.splitlines() if "worst case" in line)
    assert f"{100 * result.worst.accuracy:.1f} %" in line and f"{100 * low:.1f} - {100 * high:.1f}" in line
    assert f"{result.worst.k} / 60" in line
    assert all(row.name in text for row in result.rows)


def test_what_was_not_stored_is_none_and_said(result: Evaluation, tmp_path: Path) -> None:
    rows = {
        name: replace(result.row(name), invalid=None, unreached=None, forwards=None) for name in ("clean", "PGD-20")
    }
    old = replace(result, clean=rows["clean"], attacks=(rows["PGD-20"],), findings=None, signs=None)
    old.save(tmp_path / "evaluation.json")
    assert Evaluation.load(tmp_path / "evaluation.json") == old
    assert old.to_dict()["clean"]["invalid"] is None
    assert any("not stored" in flag for flag in old.flags) and "not stored" in old.table()


def test_another_environment_is_flagged(result: Evaluation) -> None:
    here = dict(result.environments[0])
    moved = replace(result, environments=(here, here | {"threads": 99}))
    assert moved.flags == (f"continued in another environment: threads: {here['threads']} -> 99",)


def test_two_models_are_compared_on_the_same_images(result: Evaluation) -> None:
    model, images, labels = linear()
    model[1].bias.data += 0.3  # type: ignore[index]  # for both classes: nothing changes
    same = compare(result, evaluate(model, images, labels, threat=THREAT))
    assert same.difference == 0 and same.cannot_tell and "cannot tell" in str(same)
    model[1].bias.data[0] += 1.0  # type: ignore[index]
    worse = compare(result, evaluate(model, images, labels, threat=THREAT), "clean")
    assert worse.n == 60 and worse.only_first > worse.only_second


def test_what_is_not_comparable_is_refused(result: Evaluation) -> None:
    model, images, labels = linear()
    for other in (
        evaluate(model, images, labels, threat=ThreatModel(norm="linf", eps=0.05)),
        evaluate(model, images.flip(0), labels.flip(0), threat=THREAT),
    ):
        with pytest.raises(UserError, match="can't be compared"):
            compare(result, other)
    with pytest.raises(UserError, match="there is no row"):
        compare(result, result, "PGD-21")


def test_radii_are_written_as_people_write_them() -> None:
    assert [radius(e) for e in (8 / 255, 1 / 255, 0.031, 0.5, 0.0)] == ["8/255", "1/255", "0.031", "0.5", "0"]
