"""Other optimizers than SGD: by name from the settings or as a function, with the schedule, and resumable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from advsphere.errors import UserError
from advsphere.objectives import Standard
from advsphere.recipes import recipe
from advsphere.runs.config_yaml import from_yaml, to_yaml
from advsphere.schedule import Linear
from advsphere.training import Hooks, Stopped, TrainSettings
from advsphere.training.settings import make_optimizer
from tests.laws import conv_net
from tests.training.tiny import kept, same, stopping_after, tiny_trainer

RAMP = Linear(((0.0, 0.5), (1.0, 1.0)))
ADAMW: dict[str, Any] = {"optimizer": "torch.optim:AdamW", "optimizer_arguments": {"betas": (0.8, 0.9)}}


def test_an_optimizer_by_name_is_given_the_settings_that_it_has() -> None:
    weights = [nn.Parameter(torch.zeros(2))]
    made = make_optimizer(TrainSettings(lr=0.3, weight_decay=0.02, **ADAMW), weights)
    assert type(made) is optim.AdamW
    assert (
        made.defaults["lr"] == 0.3
        and made.defaults["weight_decay"] == 0.02
        and tuple(made.defaults["betas"]) == (0.8, 0.9)
    )
    other = make_optimizer(TrainSettings(optimizer="torch.optim:RMSprop", momentum=0.7), weights)
    assert other.defaults["momentum"] == 0.7


def test_the_settings_are_kept_in_a_config() -> None:
    config = recipe("digits-standard")
    config = replace(config, training=replace(config.training, **ADAMW))
    assert from_yaml(to_yaml(config)) == config
    assert replace(config.training, optimizer_arguments={"eps": "1e-3"}).optimizer_arguments == {"eps": 0.001}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "torch.optim:Nothing"}, "no attribute 'Nothing'"),
        ({"optimizer": "adam"}, "write package.module:object"),
        ({"optimizer": "torch.optim:Adam", "optimizer_arguments": {"beta": 1}}, "unexpected keyword argument 'beta'"),
        ({"optimizer": "torch.nn:ParameterList", "optimizer_arguments": {}}, "could not be called|returned a"),
        ({"optimizer_arguments": {"nesterov": True}}, "use torch.optim:SGD"),
        ({"optimizer": "torch.optim:Adam", "optimizer_arguments": {"lr": 1}}, "is set by lr"),
        ({"optimizer": "torch.optim:Adam", "optimizer_arguments": {"eps": object}}, "can't be written into a config"),
    ],
)
def test_what_does_not_fit_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_optimizer(TrainSettings(**settings), [nn.Parameter(torch.zeros(2))])


def test_the_schedule_moves_every_group_from_its_own_rate(tmp_path: Path) -> None:
    def two_groups(parameters: Any) -> optim.Optimizer:
        first, *others = parameters
        return optim.Adam([{"params": [first], "lr": 0.002}, {"params": others}], lr=0.001)

    rates: list[list[float]] = []
    trainer = tiny_trainer(tmp_path, Standard(), make_optimizer=two_groups, lr_schedule=RAMP, epochs=1)
    trainer.optimizer.register_step_pre_hook(lambda made, *_: rates.append([g["lr"] for g in made.param_groups]))
    trainer.fit()
    assert rates == [pytest.approx([0.002 * f, 0.001 * f]) for f in (1 / 2, 2 / 3, 5 / 6)]


@pytest.mark.parametrize("steps", [1, 4])
def test_a_resumed_run_ends_with_the_same_bits(steps: int, tmp_path: Path) -> None:
    settings = {**ADAMW, "lr": 1e-3, "lr_schedule": RAMP}
    tiny_trainer(tmp_path / "whole", Standard(), **settings).fit()
    with pytest.raises(Stopped):
        hooks = Hooks(stop=stopping_after(steps))
        tiny_trainer(tmp_path / "pieces", Standard(), hooks=hooks, **settings).fit()
    resumed = tiny_trainer(tmp_path / "pieces", Standard(), **settings)
    resumed.resume()
    resumed.fit()
    for part in ("model", "optimizer"):
        assert same(kept(tmp_path / "whole", "last", part), kept(tmp_path / "pieces", "last", part))
    assert not same(kept(tmp_path / "whole", "last"), conv_net().state_dict())


def test_a_state_that_no_checkpoint_can_hold_is_named(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, Standard())
    first = next(trainer.model.parameters())
    trainer.optimizer.register_step_post_hook(lambda made, *_: made.state[first].update(history=[1]))
    with pytest.raises(UserError, match=r"SGD keeps 0.weight/history, .* use another optimizer"):
        trainer.fit()


def test_settings_can_be_hashed() -> None:
    assert hash(TrainSettings(**ADAMW)) == hash(TrainSettings(**ADAMW))
