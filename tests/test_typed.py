"""Settings and arguments of another type are refused where they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from advsphere import load_run, pgd, recipe, train, verify
from advsphere.data import Augment
from advsphere.errors import UserError
from advsphere.evaluation import Effort
from advsphere.hypersphere import HypersphereConfig
from advsphere.objectives import NFGSM, PGDAT, TRADES, FreeAT
from advsphere.threat import ThreatModel
from advsphere.training import Hooks, TrainSettings
from tests.laws import conv_net, images, labels

SHORT = {"threat": ThreatModel(norm="linf", eps=0.1), "steps": 2, "step_size": 0.1}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TrainSettings(precision="fp16"), "precision is 'fp16'; give one of 'auto', 'float32', 'bfloat16'"),
        (lambda: TrainSettings(guard="yes"), "guard is 'yes'; give one of 'remedy'"),
        (lambda: TrainSettings(epochs="3"), "epochs is '3'; give a whole number"),
        (lambda: TrainSettings(lr="0.1"), "lr is '0.1'; give a number"),
        (lambda: TrainSettings(fold="no"), "fold is 'no'; give True or False"),
        (lambda: TrainSettings(workers=1.5), "workers is 1.5; give a whole number or None"),
        (
            lambda: TrainSettings(augment="crop"),
            r"augment is 'crop'; give an object of Augment \(advsphere.data.augmentation",
        ),
        (lambda: PGDAT(threat=0.1), r"threat is 0.1; give an object of ThreatModel \(such as ThreatModel\(norm="),
        (lambda: TRADES(mode="test"), "mode is 'test'; give one of"),
        (lambda: NFGSM(noise=True), "noise is True; give a number"),
        (lambda: FreeAT(repeats="8"), "repeats is '8'; give a whole number"),
        (lambda: HypersphereConfig(scale="15"), "scale is '15'; give a number"),
        (lambda: Augment(padding=4.0), "padding is 4.0; give a whole number"),
        (lambda: Effort(steps="ten"), "steps is 'ten'; give a whole number or None"),
        (lambda: ThreatModel(norm="linf", eps="8/255"), "eps is '8/255'; give a number"),
        (lambda: ThreatModel(norm="linf", eps=0.1, bounds=1), r"bounds is 1; give \(a number, a number\)"),
        (lambda: ThreatModel(norm=["linf"], eps=0.1), r"norm is \['linf'\]; give one of 'linf', 'l2', 'l1'"),
        (lambda: Hooks(on_tick={}), "on_tick is {}; give a function or a class"),
        (lambda: recipe(3), "name is 3; give a string"),
        (lambda: load_run(3), "folder is 3; give a path or a string"),
        (lambda: train("digits-pgd-at"), r"config is .*Config \(such as advsphere.recipe\('digits-pgd-at'\)\)"),
        (lambda: verify("e", "l", conv_net(), images(2), suite="quick"), "suite is 'quick'; give several: each an obj"),
        (lambda: verify("e", "l", None, images(2)), "model is None; give an object of Module"),
        (lambda: pgd(conv_net(), images(2), None, **SHORT), "target is None; give an object of Tensor"),
        (lambda: pgd(conv_net(), images(2), labels(2), **SHORT | {"steps": 2.5}), "steps is 2.5; give a whole number"),
        (lambda: pgd(conv_net(), images(2), labels(2), **SHORT, rng=3), "rng is 3; give an object of Rng"),
        (lambda: pgd(conv_net(), images(2), labels(2), **SHORT, start=images(3)), r"start has shape \(3, "),
        (lambda: pgd(conv_net(), images(2), labels(2).to("meta"), **SHORT), "images are on cpu and the labels on meta"),
        (lambda: pgd(conv_net().to("meta"), images(2), labels(2), **SHORT), "meta"),
    ],
)
def test_a_value_of_another_type_is_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_and_functions_for_schedules_are_taken() -> None:
    made = TrainSettings(epochs=np.int64(3), lr=np.float32(0.5), weight_decay=0, lr_schedule=lambda progress: 1.0)
    assert made.epochs == 3


def test_a_user_s_class_may_declare_other_types() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Mine(PGDAT):
        step_size: float | None = None  # type: ignore[assignment]
        beta: int = 0.5  # type: ignore[assignment]

        def __post_init__(self) -> None:
            super(PGDAT, self).__post_init__()

    assert Mine().step_size is None
    with pytest.raises(UserError, match="steps is None; give a whole number"):
        Mine(steps=None)  # type: ignore[arg-type]
