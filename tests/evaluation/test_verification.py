"""A verification passes for an honest evaluation, and says what is wrong with any other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation, Finding, Ledger, SuiteContext, Verification, evaluate, verify
from advsphere.evaluation.probes import PROBES
from advsphere.evaluation.suites import attacks_of
from advsphere.files import packed
from advsphere.reproduce.results import replace_between
from tests.evaluation.cases import FEW, THREAT, change, forge, linear, pgd_spec
from tests.evaluation.forgeries import FORGERIES, KNOWN, LABEL, MARKERS, PAGE, SHORT, Claim, as_expected, honest, table


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Claim:
    return honest("plain", tmp_path_factory.mktemp("honest"))


@pytest.fixture
def claim(original: Claim, tmp_path: Path) -> Claim:
    """A copy of an honest one, to be tampered with."""
    return original.copied(tmp_path)


def failed(verification: Verification) -> dict[str, str]:
    assert verification.passed == all(f.status != "failed" for f in verification.findings)
    return {f.check: f.detail for f in verification.findings if f.status == "failed"}


def test_an_honest_evaluation_is_verified(claim: Claim) -> None:
    told = list[Finding]()
    result = claim.verify(share=1.0, on_finding=told.append)
    assert tuple(told) == result.findings
    assert {f.status for f in result.findings} == {"ok"} and str(result).endswith("\nverified")
    assert [f.check for f in result.findings] == [
        "file", "numbers", "pairs", "model", "images", "clean", "FGSM", "PGD-20", "margin PGD-20",
        "findings", "signs", "sentences", "resisted", "fooled",
    ]  # fmt: skip


def test_an_evaluation_in_low_precision_is_verified(
    claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = Claim(claim.known, tmp_path / "low")
    low.folder.mkdir()
    evaluate(*low.known, threat=THREAT, batch_size=64, ledger=low.ledger, precision="bfloat16").save(low.json)
    assert low.verify(share=1.0).passed
    for native, says in {
        torch.bfloat16: "second run",
        None: "in float32 as this device emulates bfloat16",
    }.items():
        monkeypatch.setattr("advsphere.evaluation.evidence.low_precision", lambda device, native=native: native)
        result = low.verify(share=1.0)
        assert result.passed and says in result.findings[-1].detail
        assert ("float32" in result.findings[-1].detail) == (native is None)


def test_takes_a_set_of_images_as_well(claim: Claim) -> None:
    _, images, labels = claim.known
    assert claim.verify(images=ImageSet(images, labels, tuple("abc"))).passed
    assert claim.verify(labels=labels).passed
    assert "images" in failed(claim.verify(labels=labels.roll(1)))


@pytest.mark.parametrize("checksum", ["left as it was", "made to fit"])
def test_a_changed_number(claim: Claim, checksum: str) -> None:
    k = Evaluation.load(claim.json).worst.k
    if checksum == "made to fit":
        forge(claim.json, worst={"k": k + 3})
        assert set(failed(claim.verify())) == {"numbers"}
    else:
        claim.json.write_text(claim.json.read_text().replace(f'"k": {k},', f'"k": {k + 3},'))
        assert set(failed(claim.verify())) == {"file", "numbers"}
    assert f"{k + 3} -> {k}" in failed(claim.verify())["numbers"]


@pytest.mark.parametrize("entry", [{"clean": {"accuracy": 1.0}}, {"worst": {"low": 0.9}}, {"strongest": None}])
def test_any_changed_entry(claim: Claim, entry: dict[str, object]) -> None:
    forge(claim.json, **entry)
    assert next(iter(entry)) in failed(claim.verify())["numbers"]


def test_a_changed_ledger(claim: Claim) -> None:
    change(claim.ledger, "UPDATE cells SET status = 'resisted' WHERE attack = 'PGD-20' AND status = 'fooled'")
    assert "numbers" in failed(claim.verify())


def first_fooled(claim: Claim, attack: str = "PGD-20") -> int:
    with Ledger.read(claim.ledger) as book:
        return next(c.example for c in book.cells(attack) if c.status == "fooled")


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (lambda x: packed(x), "is not misclassified"),
        (lambda x: packed(1 - x), "is outside the ball"),
        (lambda x: b"garbage", "is damaged"),
        (lambda x: packed(x.flatten()[:4]), "is damaged"),
        (lambda x: None, "is not stored"),
    ],
)
def test_a_changed_adversarial_image(
    claim: Claim, monkeypatch: pytest.MonkeyPatch, tamper: Callable[[Tensor], bytes | None], says: str
) -> None:
    monkeypatch.setattr("advsphere.evaluation.evidence._FEW", 1000)  # the changed image is among those drawn
    i = first_fooled(claim)
    blob = tamper(claim.known.images[i])
    change(claim.ledger, "UPDATE cells SET x_adv = ? WHERE attack = 'PGD-20' AND example = ?", blob, i)
    claim.write_again()
    found = failed(claim.verify())
    assert "PGD-20" in found and says in found["PGD-20"]


def test_a_swapped_model(claim: Claim) -> None:
    other = linear(classes=3, n=120, wrong=12).model
    with torch.no_grad():
        other[1].weight.mul_(-1)  # type: ignore[index, operator]
    found = failed(claim.verify(model=other))
    assert set(found) == {"model"} and "another model" in found["model"]


def test_other_images_end_it(claim: Claim) -> None:
    result = claim.verify(images=claim.known.images.clamp(max=0.99))
    assert set(failed(result)) == {"images"} and result.findings[-1].check == "images"


def test_misclassified_images_that_were_hidden(claim: Claim) -> None:
    """Claiming clean accuracy that is not there, with everything else made to fit."""
    wrong = int(claim.known.labels.ne(claim.known.model(claim.known.images).argmax(1)).nonzero()[0])
    change(claim.ledger, "UPDATE cells SET status = 'resisted' WHERE example = ?", wrong)
    claim.write_again()
    assert str(wrong) in failed(claim.verify())["clean"]


def test_images_that_were_left_out(claim: Claim) -> None:
    i = first_fooled(claim)
    change(claim.ledger, "UPDATE cells SET status = 'not_run', x_adv = NULL WHERE attack = 'PGD-20' AND example = ?", i)
    claim.write_again()
    assert f"PGD-20 on {i}" in failed(claim.verify())["pairs"]
    change(claim.ledger, "DELETE FROM cells WHERE attack = 'PGD-20' AND example = ?", i)
    assert "unreached: 0 -> 1" in failed(claim.verify())["numbers"]
    claim.write_again()
    assert f"PGD-20 on {i} was deleted" in failed(claim.verify())["pairs"]
    change(claim.ledger, "DELETE FROM batches WHERE attack = 'PGD-20'")
    claim.write_again()
    assert "there was no budget (PGD-20: 1)" in failed(claim.verify())["pairs"]


def test_a_ledger_that_went_on(tmp_path: Path) -> None:
    """As when a second call with a budget is killed: the file still holds the numbers of the first."""
    claim = honest("in turn", tmp_path)
    change(claim.ledger, "DELETE FROM cells WHERE attack = 'margin PGD-20' AND example >= 64")
    change(claim.ledger, "DELETE FROM batches WHERE attack = 'margin PGD-20' AND batch = 1")
    claim.write_again()
    before = claim.json.read_text()
    first = claim.verify()
    assert first.passed and "margin PGD-20: " in next(f.detail for f in first.findings if f.check == "pairs")
    change(claim.ledger, "DELETE FROM cells WHERE attack = 'margin PGD-20'")
    change(claim.ledger, "DELETE FROM batches WHERE attack = 'margin PGD-20'")
    assert "went on" not in failed(claim.verify())["numbers"]
    evaluate(*claim.known, threat=THREAT, batch_size=64, ledger=claim.ledger, precision="float32",
             effort=replace(SHORT, cascade=True))  # fmt: skip
    assert claim.json.read_text() == before
    assert "the ledger was continued after they were printed" in failed(claim.verify())["numbers"]


def test_a_single_flip_is_noted_and_named(claim: Claim) -> None:
    i = first_fooled(claim, "FGSM")
    change(claim.ledger, f"UPDATE cells SET status = 'resisted', x_adv = NULL, prediction = {LABEL} "
           "WHERE attack = 'FGSM' AND example = ?", i)  # fmt: skip
    claim.write_again()
    result = claim.verify(share=1.0)
    assert result.passed and f"FGSM on {i}" in next(f.detail for f in result.findings if f.status == "noted")


def test_the_sample_is_large_enough(claim: Claim) -> None:
    with Ledger.read(claim.ledger) as book:
        resisted = sum(book.counts(name)["resisted"] for name in book.attacks)

    def tried(**options: object) -> str:
        return resampled(claim, **options).split(", of")[0]

    assert tried() == "0 of 20 resisted cells" and tried(share=0.5) == f"0 of {(resisted + 1) // 2} resisted cells"
    assert tried(share=0.0, at_least=30) == "0 of 30 resisted cells"
    assert tried(at_least=999) == f"0 of {resisted} resisted cells"
    with pytest.raises(UserError, match="share is 5; give a share"):
        claim.verify(share=5)


def resampled(claim: Claim, **options: object) -> str:
    return next(f.detail for f in claim.verify(**options).findings if f.check == "resisted")


def test_the_sample_is_drawn_anew_and_can_be_repeated(claim: Claim) -> None:
    change(claim.ledger, f"UPDATE cells SET status = 'resisted', x_adv = NULL, prediction = {LABEL} "
           "WHERE status = 'fooled' AND attack = 'FGSM'")  # fmt: skip
    first, second = resampled(claim), resampled(claim)
    assert first != second, "nobody who wrote the ledger could know the sample"
    drawn = re.search(r"drawn with --seed (\d+)", first)
    assert drawn is not None and resampled(claim, seed=int(drawn[1])) == first


def test_other_words_are_noted_and_other_values_fail(claim: Claim) -> None:
    """As a file of another version, which says the same otherwise."""
    found = json.loads(claim.json.read_text())
    forge(claim.json, findings=[f | {"detail": f"{f['detail']}!"} for f in found["findings"]], note="other words")
    result = claim.verify()
    assert result.passed and [f.check for f in result.findings if f.status == "noted"] == ["sentences"]
    forge(claim.json, signs=found["signs"][1:], findings=found["findings"][1:])
    assert claim.verify().passed, "a check that an earlier version did not make hides nothing, if it is not raised"


def test_attacks_of_ones_own_have_to_be_given(claim: Claim, tmp_path: Path) -> None:
    own = Claim(claim.known, tmp_path / "own")
    own.folder.mkdir()
    specs = [pgd_spec(steps=10)]
    evaluate(*own.known, threat=THREAT, suite=specs, ledger=own.ledger).save(own.json)
    with pytest.raises(UserError, match="give them as suite="):
        own.verify()
    assert own.verify(suite=specs).passed
    assert "PGD.steps: 10 -> 11" in failed(own.verify(suite=[pgd_spec(steps=11)]))["attacks"]
    assert claim.verify(suite=attacks_of("quick", SuiteContext(threat=THREAT, effort=SHORT))).passed
    own = Claim(claim.known, tmp_path / "in turn")
    own.folder.mkdir()
    evaluate(*own.known, threat=THREAT, suite=FEW, budget=600.0, ledger=own.ledger).save(own.json)
    assert own.verify(suite=FEW).passed


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"advsphere": "0.1.7"}, "advsphere 0.1.7 made it, and this is 0.9.0; use the same version"),
        ({"advsphere": "0.9.0"}, "this version, 0.9.0, made it: give the attacks that it ran, or use the same commit"),
        ({}, "this is advsphere 0.9.0; use the version that made it"),
    ],
)
def test_attacks_that_differ_are_told_with_the_versions(
    claim: Claim, made: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advsphere.__version__", "0.9.0", raising=False)
    change(claim.ledger, f"UPDATE environments SET value = '{json.dumps(made)}'")
    assert failed(claim.verify(suite=[pgd_spec()]))["attacks"].endswith(f"; {says}")


def test_a_named_suite_with_a_budget_is_verified(claim: Claim, tmp_path: Path) -> None:
    """A budget changes the attacks, and the record of the suite says so."""
    own = Claim(claim.known, tmp_path / "in time")
    own.folder.mkdir()
    evaluate(*own.known, threat=THREAT, suite="quick", effort=SHORT, budget=600.0, ledger=own.ledger).save(own.json)
    assert own.verify().passed


def test_files_that_are_missing(claim: Claim) -> None:
    claim.ledger.rename(claim.folder / "elsewhere.sqlite")
    with pytest.raises(UserError, match="there is no ledger"):
        claim.verify()
    with pytest.raises(UserError, match="there is no file"):
        verify(claim.folder / "nothing.json", claim.ledger, nn.Identity(), claim.known.images)


def test_every_forgery_is_caught_or_named_and_the_table_is_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(PROBES, "planted")  # it takes half of the time
    base = {kind: honest(kind, tmp_path) for kind in KNOWN}
    found = {f.says: f.tried(base[f.of], tmp_path / str(i)) for i, f in enumerate(FORGERIES)}
    assert [f.says for f in FORGERIES if not as_expected(f, found[f.says])] == []
    assert all(f.caught or f.why for f in FORGERIES) and len(found) == len(FORGERIES)
    page = PAGE.read_text()
    assert replace_between(page, table(found), **MARKERS) == page, "run python -m tests.evaluation.forgeries"
