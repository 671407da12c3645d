"""Everything runs on a GPU's stand-in, and computes the same bits as on the CPU."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from advsphere.attacks import Attack
from advsphere.classifier import frozen, split
from advsphere.corruption.generate import BY_NAME, corrupt
from advsphere.evaluation import Evaluation, evaluate, verify
from advsphere.evaluation.suites import SUITES, Effort
from advsphere.hypersphere import AngularMargin, attach_head
from advsphere.losses import cross_entropy
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from advsphere.training import Stopped
from tests.corruption.pictures import pictures
from tests.device.stand_in import DEVICE
from tests.laws import ATTACKS, NORMS, OBJECTIVES, RADII, conv_net, images, labels
from tests.training.tiny import State, few_images, kept, same, stopping_after, tiny_trainer

HERE = torch.device("cpu")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name, norm):
    row = ATTACKS[name]
    if norm not in row.norms:
        pytest.skip(f"this attack has no {norm}")
    attack: Attack = row.make(ThreatModel(norm=norm, eps=RADII[norm]), steps=3)

    def crafted(device: torch.device) -> torch.Tensor:
        x, y = images(8).to(device), labels(8).to(device)
        with frozen(conv_net().to(device)) as classify:
            return attack(classify, x, y, rng=Rng(3, torch.arange(8, device=device)))

    there = crafted(DEVICE)
    assert there.device == DEVICE and torch.equal(there.cpu(), crafted(HERE))


def train(name: str, device: torch.device, folder: Path, *, hypersphere: bool, pieces: tuple[int, ...] = ()) -> State:
    """The weights after a short run, stopped after so many steps and resumed."""
    for i, steps in enumerate((*pieces, 1000)):
        model, criterion = conv_net(), cross_entropy
        if hypersphere:
            attach_head(model, scale=10.0)
            criterion = AngularMargin(split(model).head, 0.2)
        trainer = tiny_trainer(
            folder, OBJECTIVES[name].objective, criterion=criterion, images=few_images().to(device),
            model=model.to(device), make_optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9), ema=0.9,
        )  # fmt: skip
        trainer.hooks.stop = stopping_after(steps)
        with suppress(Stopped):
            if i:
                trainer.resume()
            trainer.fit()
    return kept(folder, "last")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_and_resuming(name, tmp_path):
    here = train(name, HERE, tmp_path / "here", hypersphere=False)
    there = train(name, DEVICE, tmp_path / "there", hypersphere=False, pieces=(2, 2))
    assert same(here, there)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_with_hypersphere_embedding(name, tmp_path):
    """Its head rounds in another way on a GPU."""
    there = train(name, DEVICE, tmp_path / "there", hypersphere=True)
    again = train(name, DEVICE, tmp_path / "again", hypersphere=True, pieces=(2, 2))
    assert same(there, again)
    for key, value in train(name, HERE, tmp_path / "here", hypersphere=True).items():
        torch.testing.assert_close(there[key], value, rtol=0.1, atol=5e-3)  # the sign of a slope of zero may change


EASY = ("autoattack", "table6", "survival")
"""Their black-box attacks have thousands of queries, so here the radius is so large that few are needed."""


def evaluated(suite: str, device: torch.device, ledger: Path) -> Evaluation:
    x, y, model = images(6), labels(6), conv_net().eval()
    threat = ThreatModel(norm="linf", eps=0.3 if suite in EASY else RADII["linf"])
    effort = Effort(steps=2, guides=2)
    x, y, model = x.to(device), y.to(device), model.to(device)
    return evaluate(model, x, y, threat=threat, suite=suite, effort=effort, precision="float32", ledger=ledger)


@pytest.mark.parametrize("suite", SUITES)
def test_suites(suite, tmp_path):
    here, there = evaluated(suite, HERE, tmp_path / "here.sqlite"), evaluated(suite, DEVICE, tmp_path / "there.sqlite")
    assert [row.outcomes for row in there.rows] == [row.outcomes for row in here.rows]
    assert there.identity == here.identity and there.ledger == here.ledger and there.signs == here.signs


@pytest.mark.parametrize(("made", "verified"), [(HERE, DEVICE), (DEVICE, HERE)], ids=["made here", "made there"])
def test_evidence_of_the_other_device_is_verified(made, verified, tmp_path):
    ledger, file = tmp_path / "ledger.sqlite", tmp_path / "evaluation.json"
    evaluated("paper", made, ledger).save(file)
    said = verify(file, ledger, conv_net().eval().to(verified), images(6).to(verified), labels(6).to(verified))
    assert said.passed, str(said)


@pytest.mark.parametrize("name", BY_NAME)
def test_corruptions(name):
    images = pictures(2, 32)
    assert torch.equal(corrupt(images.to(DEVICE), name, 3).cpu(), corrupt(images, name, 3))
