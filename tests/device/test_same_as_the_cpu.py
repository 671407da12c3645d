"""Everything runs on a GPU's stand-in, and computes the same bits as on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from advsphere.attacks import Attack
from advsphere.classifier import frozen, split
from advsphere.evaluation import Evaluation, evaluate
from advsphere.evaluation.suites import SUITES, Effort
from advsphere.hypersphere import AngularMargin, attach_head
from advsphere.losses import cross_entropy
from advsphere.rng import Rng
from advsphere.threat import ThreatModel
from advsphere.training import Stopped, load_checkpoint
from tests.device.stand_in import DEVICE
from tests.laws import ATTACKS, NORMS, OBJECTIVES, RADII, conv_net, images, labels
from tests.training.tiny import few_images, stopping_after, tiny_trainer, without_time

HERE = torch.device("cpu")
PLACES = ("here", "there")


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


@pytest.mark.parametrize("hypersphere", [False, True], ids=["plain", "HE"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_and_resuming(name, hypersphere, tmp_path):
    def train(device: torch.device, folder: Path, pieces: tuple[int, ...] = ()) -> None:
        for i, steps in enumerate((*pieces, 1000)):
            model, criterion = conv_net(), cross_entropy
            if hypersphere:
                attach_head(model, scale=10.0)
                criterion = AngularMargin(split(model).head, 0.2)
            trainer = tiny_trainer(
                folder, OBJECTIVES[name].objective, criterion=criterion, images=few_images().to(device),
                model=model.to(device), ema=0.9,
            )  # fmt: skip
            trainer.hooks.stop = stopping_after(steps)
            try:
                if i:
                    trainer.resume()
                trainer.fit()
            except Stopped:
                continue

    train(HERE, tmp_path / "here")
    train(DEVICE, tmp_path / "there", pieces=(2, 2))
    for which in ("last", "best"):
        (here, meta), (there, again) = (load_checkpoint(tmp_path / where / f"{which}.safetensors") for where in PLACES)
        assert here.keys() == there.keys() and [name for name in here if not torch.equal(here[name], there[name])] == []
        assert without_time(meta) == without_time(again) or which == "best"


CASES = [*SUITES]
EASY = ("autoattack", "table6", "survival")
"""Their black-box attacks have thousands of queries, so here the radius is so large that few are needed."""


@pytest.mark.parametrize("name", SUITES)
def test_suites_and_evidence_from_the_other_device(name, tmp_path):
    threat = ThreatModel(norm="linf", eps=0.3 if name in EASY else 0.012)

    def evaluated(device: torch.device, ledger: Path) -> Evaluation:
        x, model = images(8), conv_net().eval()
        y = model(x).argmax(1)
        options: dict[str, Any] = {"effort": Effort(steps=3, guides=2), "precision": "float32", "ledger": ledger}
        return evaluate(model.to(device), x.to(device), y.to(device), threat=threat, suite=name, **options)

    here, there = evaluated(HERE, tmp_path / "here.sqlite"), evaluated(DEVICE, tmp_path / "there.sqlite")
    assert there.table() == here.table() and there.to_dict()["ledger"] == here.to_dict()["ledger"]
