"""A verification passes for an honest evaluation, and says what is wrong with any other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation, Ledger, SuiteContext, Verification, evaluate, verify
from advsphere.evaluation.suites import attacks_of
from advsphere.files import packed
from tests.evaluation.cases import FEW, THREAT, Known, change, forge, linear, pgd_spec


@dataclass
class Claim:
    """An evaluation on disk."""

    known: Known
    folder: Path

    @property
    def json(self) -> Path:
        return self.folder / "evaluation.json"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.sqlite"

    def verify(self, **options: object) -> Verification:
        settings = {"model": self.known.model, "images": self.known.images} | options
        return verify(self.json, self.ledger, **settings)  # type: ignore[arg-type]

    def write_again(self) -> None:
        """The numbers that a changed ledger gives, with checksums that fit."""
        before = Evaluation.load(self.json)
        with Ledger.read(self.ledger) as book:
            Evaluation.of(book, before.findings).save(self.json)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Claim:
    claim = Claim(linear(classes=3, n=120, wrong=12), tmp_path_factory.mktemp("honest"))
    evaluate(*claim.known, threat=THREAT, batch_size=64, ledger=claim.ledger).save(claim.json)
    return claim


@pytest.fixture
def claim(honest: Claim, tmp_path: Path) -> Claim:
    """A copy of an honest one, to be tampered with."""
    shutil.copytree(honest.folder, tmp_path, dirs_exist_ok=True)
    return Claim(linear(classes=3, n=120, wrong=12), tmp_path)


def failed(verification: Verification) -> dict[str, str]:
    assert verification.passed == all(f.status != "failed" for f in verification.findings)
    return {f.check: f.detail for f in verification.findings if f.status == "failed"}


def test_an_honest_evaluation_is_verified(claim: Claim) -> None:
    result = claim.verify(share=1.0)
    assert {f.status for f in result.findings} == {"ok"} and str(result).endswith("\nverified")
    assert [f.check for f in result.findings] == [
        "file", "numbers", "statuses", "model", "images",
        "clean", "FGSM", "PGD-20", "PGD-100", "margin PGD-100", "resisted",
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
        None: "in float32 because this device computes bfloat16",
    }.items():
        monkeypatch.setattr("advsphere.evaluation.verification.low_precision", lambda device, native=native: native)
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


@pytest.mark.parametrize("entry", [{"clean": {"accuracy": 1.0}}, {"worst": {"low": 0.9}}, {"flags": ["all is well"]}])
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
def test_a_changed_adversarial_image(claim: Claim, tamper: Callable[[Tensor], bytes | None], says: str) -> None:
    i = first_fooled(claim)
    blob = tamper(claim.known.images[i])
    change(claim.ledger, "UPDATE cells SET x_adv = ? WHERE attack = 'PGD-20' AND example = ?", blob, i)
    claim.write_again()
    found = failed(claim.verify())
    assert set(found) == {"PGD-20"} and says in found["PGD-20"]


def test_a_swapped_model(claim: Claim) -> None:
    other = linear(classes=3, n=120, wrong=12).model
    with torch.no_grad():
        other[1].weight.mul_(-1)  # type: ignore[index, operator]
    found = failed(claim.verify(model=other))
    assert "another model" in found["model"] and {"clean", "PGD-20"} <= set(found)
    with torch.no_grad():
        other[1].weight.mul_(-1.0000001)  # type: ignore[index, operator]
    assert set(failed(claim.verify(model=other))) == {"model"}


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
    assert f"PGD-20 on {i}" in failed(claim.verify())["statuses"]
    change(claim.ledger, "DELETE FROM cells WHERE attack = 'PGD-20' AND example = ?", i)
    assert "unreached: 0 -> 1" in failed(claim.verify())["numbers"]
    claim.write_again()
    assert claim.verify().passed and "1 of 120 images not reached in time" in claim.json.read_text()


def test_a_ledger_that_went_on(claim: Claim) -> None:
    """As when a second call with a budget is killed: the file still holds the numbers of the first."""
    change(claim.ledger, "DELETE FROM cells WHERE attack = 'PGD-100' AND example >= 64")
    claim.write_again()
    before = claim.json.read_text()
    assert claim.verify().passed
    known = claim.known
    change(claim.ledger, "DELETE FROM cells WHERE attack = 'PGD-100'")
    change(claim.ledger, "DELETE FROM batches WHERE attack = 'PGD-100'")
    assert "went on" not in failed(claim.verify())["numbers"]
    evaluate(*known, threat=THREAT, batch_size=64, ledger=claim.ledger)
    assert claim.json.read_text() == before
    assert "the ledger was continued after they were printed" in failed(claim.verify())["numbers"]


TRUE_LABEL = "(SELECT label FROM examples WHERE examples.example = cells.example)"


@pytest.mark.parametrize("status", ["resisted", "invalid"])
def test_a_model_that_is_weaker_than_claimed(claim: Claim, status: str) -> None:
    """A third of the successes are struck out and all numbers made to fit: only attacking again can tell."""
    struck = "status = 'fooled' AND attack != 'clean' AND example % 3 = 0"
    change(claim.ledger, f"UPDATE cells SET status = ?, x_adv = NULL, prediction = {TRUE_LABEL} WHERE {struck}", status)
    claim.write_again()
    found = failed(claim.verify(share=0.3))
    assert set(found) == {"resisted"} and "fooled on a second run" in found["resisted"]


def test_a_single_flip_is_noted_and_named(claim: Claim) -> None:
    i = first_fooled(claim, "FGSM")
    change(claim.ledger, f"UPDATE cells SET status = 'resisted', x_adv = NULL, prediction = {TRUE_LABEL} "
           "WHERE attack = 'FGSM' AND example = ?", i)  # fmt: skip
    claim.write_again()
    result = claim.verify(share=1.0)
    assert result.passed and f"FGSM on {i}" in next(f.detail for f in result.findings if f.status == "noted")


def test_the_sample_is_large_enough(claim: Claim) -> None:
    with Ledger.read(claim.ledger) as book:
        resisted = sum(book.counts(name)["resisted"] for name in book.attacks)

    def tried(**options: object) -> str:
        return claim.verify(**options).findings[-1].detail.split(" resisted")[0]

    assert tried() == "0 of 20" and tried(share=0.5) == f"0 of {(resisted + 1) // 2}"
    assert tried(share=0.0, at_least=30) == "0 of 30" and tried(at_least=999) == f"0 of {resisted}"


def test_the_sample_is_drawn_by_the_seed(claim: Claim) -> None:
    change(claim.ledger, f"UPDATE cells SET status = 'resisted', x_adv = NULL, prediction = {TRUE_LABEL} "
           "WHERE status = 'fooled' AND attack = 'FGSM'")  # fmt: skip

    def flipped(seed: int | None) -> str:
        return claim.verify(seed=seed).findings[-1].detail

    assert flipped(1) == flipped(1) != flipped(2) and flipped(None) == flipped(None)


def test_attacks_of_ones_own_have_to_be_given(claim: Claim, tmp_path: Path) -> None:
    own = Claim(claim.known, tmp_path / "own")
    own.folder.mkdir()
    specs = [pgd_spec(steps=10)]
    evaluate(*own.known, threat=THREAT, suite=specs, ledger=own.ledger).save(own.json)
    with pytest.raises(UserError, match="give them as suite="):
        own.verify()
    assert own.verify(suite=specs).passed
    with pytest.raises(UserError, match=r"PGD\.steps: 10 -> 11"):
        own.verify(suite=[pgd_spec(steps=11)])
    assert claim.verify(suite=attacks_of("quick", SuiteContext(threat=THREAT))).passed
    own = Claim(claim.known, tmp_path / "in turn")
    own.folder.mkdir()
    evaluate(*own.known, threat=THREAT, suite=FEW, budget=600.0, ledger=own.ledger).save(own.json)
    assert own.verify(suite=FEW).passed


def test_files_that_are_missing(claim: Claim) -> None:
    claim.ledger.rename(claim.folder / "elsewhere.sqlite")
    with pytest.raises(UserError, match="there is no ledger"):
        claim.verify()
    with pytest.raises(UserError, match="can't be read"):
        verify(claim.folder / "nothing.json", claim.ledger, nn.Identity(), claim.known.images)
