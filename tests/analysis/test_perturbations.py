"""Pictures out of a ledger: the right examples, the pixels that fooled, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from advsphere.analysis.perturbations import Picture, fooled_by, pictures, strongest
from advsphere.data import ImageSet
from advsphere.errors import UserError
from advsphere.evaluation import WORST, Evaluation, Ledger, evaluate
from advsphere.threat import ThreatModel
from tests.analysis import linear
from tests.report import made

THREAT = ThreatModel(norm="linf", eps=0.02)
ATTACK = "PGD-20"


@pytest.fixture(scope="module")
def networks() -> list[nn.Sequential]:
    return [linear.model(4, seed=0), linear.model(4, seed=0)]


@pytest.fixture(scope="module")
def images(networks: list[nn.Sequential]) -> ImageSet:
    with torch.no_grad():
        networks[1][1].bias += torch.tensor([0.1, 0.0, -0.1, 0.0])
    return linear.images(networks[0], wrong=2)


@pytest.fixture(scope="module")
def ledgers(networks: list[nn.Sequential], images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    folder: Path = tmp_path_factory.mktemp("ledgers")
    for i, network in enumerate(networks):
        evaluate(network, images, threat=THREAT, suite="quick", ledger=folder / f"{i}.sqlite")
    books = [Ledger.read(folder / f"{i}.sqlite") for i in range(2)]
    yield books
    for book in books:
        book.close()


def test_the_first_of_each_class_that_fools_them_all(ledgers: list[Ledger], images: ImageSet) -> None:
    chosen = fooled_by(ledgers, ATTACK)
    both = [i for i in range(len(images)) if all(book.adversarial(ATTACK, i) is not None for book in ledgers)]
    labels = images.labels.tolist()
    assert chosen and {labels[i] for i in chosen} == {labels[i] for i in both}
    assert all(i == min(j for j in both if labels[j] == labels[i]) for i in chosen)
    assert [labels[i] for i in chosen] == sorted({labels[i] for i in chosen})
    assert 0 not in chosen and 1 not in chosen, "those were misclassified without any attack"


def test_a_picture_holds_what_fooled_the_model(
    networks: list[nn.Sequential], ledgers: list[Ledger], images: ImageSet
) -> None:
    chosen = fooled_by(ledgers, ATTACK)
    for network, ledger in zip(networks, ledgers, strict=True):
        for found, example in zip(pictures(ledger, images, ATTACK, chosen), chosen, strict=True):
            x, y = images.batch(torch.tensor([example]))
            assert found.example == example and torch.equal(found.clean, x[0])
            assert found.label == images.classes[int(y)] != found.prediction
            said = network(found.adversarial[None]).argmax(1)
            assert found.prediction == images.classes[int(said)]
            assert 0 < found.perturbation.abs().max() <= THREAT.eps + 1e-6


def test_a_perturbation_is_grey_where_nothing_changed() -> None:
    clean = torch.full((1, 1, 4), 0.5)
    moved = torch.tensor([0.5, 0.7, 0.3, 0.95]).view(1, 1, 4)
    picture = Picture(example=0, label="a", prediction="b", clean=clean, adversarial=moved)
    torch.testing.assert_close(picture.scaled(0.2).flatten(), torch.tensor([0.5, 1.0, 0.0, 1.0]))


def test_the_strongest_attack_leaves_the_fewest_over_all_models() -> None:
    counts = [
        {"clean": 190, "FGSM": 100, "PGD": 120, "only here": 1, WORST: 1},
        {"clean": 190, "FGSM": 150, "PGD": 120, WORST: 120},
    ]
    evaluations: list[Evaluation] = [made.evaluation(c) for c in counts]
    assert strongest(evaluations) == "PGD"
    assert strongest(evaluations[:1]) == "only here"
    with pytest.raises(UserError, match="share no attack"):
        strongest([evaluations[0], made.evaluation({"clean": 190, "other": 3, WORST: 3})])
