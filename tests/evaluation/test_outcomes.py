"""The outcomes as records and data frames, and the adversarial images as tensors."""

from __future__ import annotations

import pickle
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas
import pytest
import torch

from advsphere.attacks import deepfool
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.evaluation import CLEAN, AttackSpec, Evaluation, Ledger, evaluate
from advsphere.threat import ThreatModel
from tests.evaluation.cases import FEW, THREAT, linear, pgd_spec, robust

KNOWN = linear(24, classes=3, wrong=4)
FILES = tuple(f"class-{int(label)}/{i}.png" for i, label in enumerate(KNOWN.labels))
IMAGES = ImageSet(KNOWN.images, KNOWN.labels, ("a", "b", "c"), files=FILES)
NEAREST = AttackSpec("DeepFool", partial(deepfool, norm="linf", steps=10), minimal=True)
SUITE = (*FEW, pgd_spec("weak", steps=1), NEAREST)


@pytest.fixture(scope="module")
def result() -> Evaluation:
    return evaluate(KNOWN.model, IMAGES, threat=THREAT, suite=SUITE, batch_size=10)


def test_records_have_the_outcomes_that_the_rows_count(result: Evaluation) -> None:
    found = result.records()
    assert [(one["image"], one["attack"]) for one in found] == [(i, s.name) for i in range(24) for s in SUITE]
    truth = robust(KNOWN, THREAT)
    for one in found:
        i = one["image"]
        clean = int(KNOWN.model(KNOWN.images[i : i + 1]).argmax())
        assert (one["file"], one["label"], one["clean_prediction"]) == (FILES[i], int(KNOWN.labels[i]), clean)
        right = clean == one["label"]
        assert (one["outcome"] == "not tried") == (not right)
        assert not (one["outcome"] == "fooled" and truth[i])
        assert (one["prediction"] is None) == (not right)
        assert (one["norm"] is not None) == (right and one["prediction"] != one["label"])
        if one["outcome"] == "fooled":
            assert one["norm"] <= THREAT.eps * (1 + 1e-6)
        elif one["norm"] is not None:  # DeepFool found the nearest image outside the ball
            assert one["norm"] > THREAT.eps and one["outcome"] == "robust"
    for row in result.attacks:
        outcomes = [one["outcome"] for one in found if one["attack"] == row.name]
        assert outcomes.count("robust") == row.k and outcomes.count("fooled") == result.clean.k - row.k
    assert {"fooled", "robust", "not tried"} == {one["outcome"] for one in found}


def test_an_image_that_an_earlier_attack_fooled_is_not_tried_again() -> None:
    suite = (FEW[0], replace(pgd_spec("later"), after=("PGD-5",)))
    found = evaluate(*KNOWN, threat=THREAT, suite=suite).records()
    first, later = ([one["outcome"] for one in found if one["attack"] == spec.name] for spec in suite)
    assert "fooled" in first
    assert all(b == "not tried" for a, b in zip(first, later, strict=True) if a != "robust")
    assert all(one["file"] is None for one in found)


def test_the_data_frame_has_a_row_for_each_record(result: Evaluation) -> None:
    frame = result.to_pandas()
    assert list(frame.columns) == list(result.records()[0])
    assert frame["norm"].dtype == "float64" and frame["prediction"].dtype == "Int64"
    same = frame.astype(object).where(frame.notna(), None).to_dict("records")
    assert same == result.records()
    fooled = frame[frame["outcome"] == "fooled"].groupby("attack").size()
    assert dict(fooled) == {row.name: result.clean.k - row.k for row in result.attacks}
    assert isinstance(frame, pandas.DataFrame)


def test_adversarial_images_fool_the_model_inside_the_ball(result: Evaluation) -> None:
    clean, worst = result.clean.outcomes, result.worst.outcomes
    x, y, index = result.adversarial()
    assert index.tolist() == [i for i in range(24) if clean[i] == "1" and worst[i] == "0"]
    every = {row.name: result.adversarial(row.name) for row in result.attacks}
    for images, labels, indices in ((x, y, index), *every.values()):
        assert images.shape == (len(indices), *KNOWN.images.shape[1:]) and images.dtype == torch.float32
        assert torch.equal(labels, KNOWN.labels[indices])
        assert bool((KNOWN.model(images).argmax(1) != labels).all())
        assert bool(THREAT.contains(images, KNOWN.images[indices]).all())
    norm = dict(zip(index.tolist(), THREAT.distance(x, KNOWN.images[index]).tolist(), strict=True))
    for images, _, indices in every.values():
        distances = THREAT.distance(images, KNOWN.images[indices]).tolist()
        assert all(norm[i] <= d * (1 + 1e-3) for i, d in zip(indices.tolist(), distances, strict=True))
    assert sum(norm.values()) < THREAT.eps * len(norm) * 0.9  # DeepFool's are nearer than those of PGD


def test_without_success_there_are_no_images() -> None:
    tiny = ThreatModel(norm="linf", eps=1e-7)
    x, y, index = evaluate(*KNOWN, threat=tiny, suite=(pgd_spec(threat=tiny),)).adversarial()
    assert x.shape == (0, *KNOWN.images.shape[1:]) and len(y) == len(index) == 0


@pytest.mark.parametrize("name", [CLEAN, "worst case", "PGD-6"])
def test_an_unknown_attack_is_refused(result: Evaluation, name: str) -> None:
    with pytest.raises(UserError, match="there are"):
        result.adversarial(name)


def test_a_stored_evaluation_has_the_same_outcomes(result: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    stored = evaluate(KNOWN.model, IMAGES, threat=THREAT, suite=SUITE, batch_size=10, ledger=path)
    stored.save(tmp_path / "evaluation.json")
    with Ledger.read(path) as book:
        assert book.files == list(FILES) and "files" not in book.identity
        read = Evaluation.of(book)
    for again in (stored, Evaluation.load(tmp_path / "evaluation.json"), read, pickle.loads(pickle.dumps(result))):
        assert again.ledger == result.ledger and again.records() == result.records()
        assert all(map(torch.equal, again.adversarial(), result.adversarial()))


def test_without_the_ledger_or_with_another_one_there_are_no_outcomes(result: Evaluation, tmp_path: Path) -> None:
    result.save(tmp_path / "evaluation.json")
    with pytest.raises(UserError, match="without its ledger"):
        Evaluation.load(tmp_path / "evaluation.json").records()
    evaluate(*KNOWN, threat=THREAT, suite=FEW, ledger=tmp_path / "other.sqlite")
    shutil.move(tmp_path / "other.sqlite", tmp_path / "ledger.sqlite")
    with pytest.raises(UserError, match=r"ledger\.sqlite has changed since"):
        Evaluation.load(tmp_path / "evaluation.json").adversarial()


def test_names_of_files_are_no_part_of_the_checksum(result: Evaluation) -> None:
    bare = ImageSet(KNOWN.images, KNOWN.labels, IMAGES.classes)
    assert evaluate(KNOWN.model, bare, threat=THREAT, suite=SUITE, batch_size=10).ledger == result.ledger


def test_the_how_to_runs(result: Evaluation) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "results.md").read_text().replace("APGD-T", "PGD-5")
    _, *blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for code in blocks:
        exec(compile(code, "results.md", "exec"), {"result": result})
    assert len(blocks) == 2
