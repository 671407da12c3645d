from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from advsphere.errors import UserError
from advsphere.evaluation import Evaluation, compare, evaluate
from advsphere.files import content_checksum
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
    with pytest.raises(UserError, match="there is no file"):
        Evaluation.load(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("the outcomes of 'PGD-20' contradict its low", lambda data: data["attacks"][1].pop("low")),
        ("the attacks are not those of its settings", lambda data: data["attacks"].pop()),
        ("the attacks are not those of its settings", lambda data: data["attacks"].append(data["attacks"][0])),
        ("the worst case has other forwards", lambda data: data["worst"].update(forwards=1)),
        ("clean images were not reached", lambda data: data["clean"].update(unreached=1)),
        ("a sign has a status that is none of 'raised'", lambda data: data["signs"][0].update(status="fine")),
        ("under another threat model", lambda data: data["identity"]["threat"].update(eps=0.5)),
        ("signs of gradient masking are others", lambda data: data["signs"].pop()),
        ("signs of gradient masking are others", lambda data: data["signs"].insert(0, data["signs"][0])),
        ("a sign of gradient masking contradicts", lambda data: data["signs"][-4].update(status="raised", advice="x")),
        ("a raised sign has no advice", lambda data: data["signs"][3].update(status="raised", advice="")),
        ("other seconds", lambda data: data["worst"].update(seconds=100.0)),
        ("has a median norm", lambda data: data["worst"].update(median=0.1)),
        ("another name", lambda data: data["worst"].update(name="best case")),
        ("its model.scale is None", lambda data: data["identity"]["model"].update(scale=None)),
        ("some rows have no forwards", lambda data: data["attacks"][0].update(forwards=None)),
        ("a number below 0", lambda data: data["attacks"][0].update(seconds=-1.0)),
        ("a number below 0, or one that is not finite", lambda data: data["worst"].update(seconds=float("inf"))),
        ("the rows are of different numbers", lambda data: data["identity"]["data"].update(n=6000)),
    ],
)
def test_contradictions_under_a_checksum_that_fits_are_refused(
    result: Evaluation, says: str, change: Callable[[dict[str, Any]], object]
) -> None:
    data = json.loads(json.dumps(result.to_dict()))
    change(data)
    with pytest.raises(UserError, match=says) as caught:
        Evaluation.from_dict(data | {"checksum": content_checksum(data)})
    assert "\n" not in str(caught.value)


def test_an_earlier_version_may_lack_the_sign_of_a_probe(result: Evaluation) -> None:
    data = json.loads(json.dumps(result.to_dict()))
    assert data["signs"].pop(3)["check"] == "planted examples missed"
    assert len(Evaluation.from_dict(data | {"checksum": content_checksum(data)}).signs or ()) == len(data["signs"])


def test_the_table_says_what_it_is(result: Evaluation) -> None:
    text = result.table()
    assert text.startswith("robust accuracy, an upper bound: linf, eps = 0.1")
    low, high = result.worst.interval
    line = next(line for line in text.splitlines() if "worst case" in line)
    assert f"{100 * result.worst.accuracy:.1f} %" in line and f"{100 * low:.1f} - {100 * high:.1f}" in line
    assert f"{result.worst.k} / 60" in line
    assert all(row.name in text for row in result.rows)


def test_what_was_not_stored_is_none_and_said(result: Evaluation, tmp_path: Path) -> None:
    clean, *attacks, worst = (replace(row, invalid=None, unreached=None, forwards=None) for row in result.rows)
    old = replace(result, clean=clean, attacks=tuple(attacks), worst=worst, findings=None, signs=None)
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
