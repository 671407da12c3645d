from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from advsphere.cli.arguments import parse
from advsphere.cli.train import Options
from advsphere.errors import UserError
from advsphere.files import Change
from advsphere.hypersphere import HypersphereConfig
from advsphere.objectives import TRADES, FreeAT
from advsphere.recipes import RECIPES, recipe
from advsphere.runs.config import Config, DataSettings, differences, flags, to_dict
from advsphere.runs.config_yaml import from_yaml, to_yaml
from advsphere.schedule import Constant, Cosine, Linear, Steps
from advsphere.threat import ThreatModel
from advsphere.training import TrainSettings

BASE = recipe("digits-trades-m-he")


def changed(path: str, value: Any) -> str:
    """The YAML of `BASE` with another value at a dotted path."""
    whole = yaml.safe_load(to_yaml(BASE))
    *parents, last = path.split(".")
    part = whole
    for key in parents:
        part = part[key]
    part[last] = value
    return yaml.safe_dump(whole)


def refused(text: str | bytes) -> str:
    with pytest.raises(UserError) as caught:
        from_yaml(text, "run/config.yaml")
    message = str(caught.value)
    assert message.startswith("run/config.yaml") and "\n" not in message
    return message.removeprefix("run/config.yaml").removeprefix(": ")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_its_yaml(name: str) -> None:
    config = RECIPES[name]
    assert from_yaml(to_yaml(config)) == config
    assert to_yaml(from_yaml(to_yaml(config))) == to_yaml(config)


@pytest.mark.parametrize(
    "schedule", [Constant(), Linear(((0.0, 0.1), (1.0, 1 / 3))), Steps((0.5, 0.75), 0.2), Cosine(1.0, 0.1)]
)
def test_every_kind_of_value_survives_its_yaml(schedule: Any) -> None:
    config = Config(
        recipe="no: #1 'recipe'",
        data=DataSettings(root=Path("/some/where else"), image_size=64),
        objective=FreeAT(threat=ThreatModel(norm="l1", eps=12, bounds=(-1, 1)), step_size=1e-7),
        sphere=HypersphereConfig(scale=1e3, scale_schedule=schedule),
        training=TrainSettings(lr_schedule=schedule, lr=5e-4, precision="bfloat16", validate_every=7),
        notes=("Größe: 8 / 255", "yes", "", "- a\n- b"),
    )
    assert from_yaml(to_yaml(config)) == config
    assert from_yaml(to_yaml(config).encode()) == config


def test_what_is_left_out_has_its_default() -> None:
    config = from_yaml("recipe: mine\ntraining: {epochs: 3}\nobjective: {kind: TRADES}\n")
    assert config == Config(recipe="mine", training=TrainSettings(epochs=3), objective=TRADES())


def test_numbers_as_people_write_them() -> None:
    """YAML reads 5e-4 as text and 1 as an integer."""
    config = from_yaml("recipe: mine\ntraining: {weight_decay: 5e-4, lr: 1}\nthreat: {norm: linf, eps: 3e-2}")
    assert config.training.weight_decay == 5e-4 and config.threat.eps == 0.03
    assert config.training.lr == 1.0 and type(config.training.lr) is float


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("traning", "top level: there is no traning (did you mean training?)"),
        ("data.validatoin", "data: there is no validatoin (did you mean validation?)"),
        ("model.pretraned", "model: there is no pretraned (did you mean pretrained?)"),
        ("objective.betta", "objective: there is no betta (did you mean beta?)"),
        ("objective.threat.epsilon", "objective.threat: there is no epsilon (did you mean eps?)"),
        ("sphere.scales", "sphere: there is no scales (did you mean scale?)"),
        ("sphere.margin_schedule.point", "sphere.margin_schedule: there is no point (did you mean points?)"),
        ("training.epoch", "training: there is no epoch (did you mean epochs?)"),
        ("training.augment.pad", "training.augment: there is no pad (did you mean padding?)"),
        ("training.lr_schedule.pionts", "training.lr_schedule: there is no pionts (did you mean points?)"),
        ("threat.radius", "threat: there is no radius"),
        ("epochs", "top level: there is no epochs (did you mean training.epochs?)"),
        ("data.eps", "data: there is no eps (did you mean objective.threat.eps?)"),
    ],
)
def test_an_unknown_key_gets_the_nearest_of_its_level_or_the_place_where_it_belongs(path: str, said: str) -> None:
    assert refused(changed(path, 3)) == said


def test_all_mistakes_are_named_at_once() -> None:
    said = refused("recipe: mine\nepoch: 3\nlr: 1\ntraining: {momentun: 0.9, epochs: many}\n")
    for part in (
        "there is no epoch",
        "there is no lr",
        "there is no momentun",
        "training.epochs: 'many' is not a whole",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("training.epochs", "ten", "training.epochs: 'ten' is not a whole number"),
        ("training.epochs", "10", "training.epochs: '10' is not a whole number"),
        ("training.epochs", 10.5, "training.epochs: 10.5 is not a whole number"),
        ("training.epochs", True, "training.epochs: True is not a whole number"),
        ("training.epochs", None, "training.epochs: None is not a whole number"),
        ("training.epochs", [3], "training.epochs: [3] is not a whole number"),
        ("training.lr", "fast", "training.lr: 'fast' is not a number"),
        ("training.lr", False, "training.lr: False is not a number"),
        ("training.lr", {"a": 1}, "training.lr: {'a': 1} is not a number"),
        ("model.pretrained", "false", "model.pretrained: 'false' is not true or false"),
        ("model.pretrained", 1, "model.pretrained: 1 is not true or false"),
        ("model.name", 18, "model.name: 18 is not text"),
        ("data.root", 5, "data.root: 5 is not text"),
        ("data.image_size", "big", "data.image_size: 'big' is not a whole number"),
        ("threat.norm", "l3", "threat.norm: 'l3' is not one of linf, l2, l1"),
        ("threat.norm", ["l2"], "threat.norm: ['l2'] is not one of linf, l2, l1"),
        ("threat.bounds", [0, 1, 2], "threat.bounds: [0, 1, 2] is not a list of 2"),
        ("threat.bounds", "01", "threat.bounds: '01' is not a list"),
        ("notes", "one note", "notes: 'one note' is not a list"),
        ("sphere.margin_schedule.points", [[0]], "sphere.margin_schedule.points: [0] is not a list of 2"),
        ("sphere.margin_schedule.points", 1, "sphere.margin_schedule.points: 1 is not a list"),
        ("training", 5, "training: settings are expected here, one `name: value` per line"),
        ("training", None, "training: settings are expected here, one `name: value` per line"),
        ("training", ["epochs"], "training: settings are expected here, one `name: value` per line"),
        ("training", "epochs", "training: settings are expected here, one `name: value` per line"),
        ("sphere", 15.0, "sphere: settings are expected here, one `name: value` per line"),
    ],
)
def test_a_value_of_another_type_is_refused_and_never_converted(path: str, value: Any, said: str) -> None:
    assert refused(changed(path, value)) == said


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("threat.eps", -1.0, "threat: eps is -1.0, but"),
        ("training.epochs", 0, "training: 0 epochs with batches of 128: both must be at least 1"),
        ("training.batch_size", -5, "training: 20 epochs with batches of -5"),
        ("training.lr", math.nan, "training: lr is nan"),
        ("training.lr", math.inf, "training: lr is inf"),
        ("training.lr", 0, "training: lr is 0"),
        ("training.weight_decay", -1e-4, "training: lr is 0.1 and weight_decay -0.0001"),
        ("training.momentum", 1.0, "training: momentum is 1.0 and ema 0.0; both must be in [0, 1)"),
        ("training.label_smoothing", 1.0, "training: label_smoothing is 1.0; give a share in [0, 1)"),
        ("training.ema", -0.1, "training: momentum is 0.9 and ema -0.1"),
        ("objective.steps", 0, "objective: crafting takes 0 steps of 0.05; both must be positive"),
        ("training.lr_schedule.points", [[0, 1], [0, 2]], "training.lr_schedule: a Linear schedule needs points in"),
    ],
)
def test_a_value_that_makes_no_sense_says_why(path: str, value: Any, said: str) -> None:
    assert refused(changed(path, value)).startswith(said)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "objective.kind",
            "TRADE",
            "objective: no `kind` is called 'TRADE' (did you mean TRADES?); choose one of Standard, ",
        ),
        ("objective.kind", None, "objective: no `kind` is called None; choose one of Standard, PGDAT, ALP, TRADES, "),
        ("objective.kind", ["TRADES"], "objective: no `kind` is called ['TRADES']"),
        ("objective", "TRADES", "objective: no `kind` is called None"),
        ("objective", {}, "objective: no `kind` is called None"),
        (
            "training.lr_schedule.kind",
            "linear",
            "training.lr_schedule: no `kind` is called 'linear' (did you mean Linear?)",
        ),
        (
            "training.lr_schedule.kind",
            "TRADES",
            "training.lr_schedule: no `kind` is called 'TRADES'; choose one of Constant,",
        ),
        (
            "objective.kind",
            "FreeAT",
            "objective: there is no beta (did you mean objective.beta of ALP?), there is no mode",
        ),
    ],
)
def test_a_kind_that_is_none_or_another_s(path: str, value: Any, said: str) -> None:
    assert refused(changed(path, value)).startswith(said)


@pytest.mark.parametrize("text", ["", "5", "null", "- a\n- b", "just text", "[]"])
def test_yaml_that_is_no_config(text: str) -> None:
    assert refused(text) == " does not hold the settings of a run, such as a line `recipe: digits-pgd-at`"


def test_a_config_without_a_recipe() -> None:
    assert refused("{}") == "recipe: is missing"


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "\t- a", "\0", b"\xff\xfe\x00", b"\x80\x81", "!!python/object/apply:os.getcwd []"]
)
def test_what_is_not_yaml_or_not_plain_data(text: str | bytes) -> None:
    assert refused(text).startswith(" is not YAML: ")


def test_keys_that_are_no_text() -> None:
    assert refused("recipe: mine\n1: 2\nnull: 3\n") == "top level: there is no 1, there is no None"


def test_differences_name_what_and_how() -> None:
    assert differences(BASE, BASE) == []
    training = replace(BASE.training, epochs=3, lr_schedule=Constant())
    found = differences(BASE, replace(BASE, training=training, sphere=None))
    assert Change("training.epochs", 20, 3) in found
    assert Change("training.lr_schedule.kind", "Linear", "Constant") in found
    assert "sphere.scale: 15.0 -> None" in map(str, found)
    assert not any(change.path.startswith(("data", "objective", "model", "recipe")) for change in found)
    found = differences(BASE, replace(BASE, objective=FreeAT()))
    assert {"objective.kind: TRADES -> FreeAT", "objective.repeats: None -> 8"} <= set(map(str, found))


def test_settings_without_effect_on_a_result_are_no_differences() -> None:
    training = replace(BASE.training, checkpoint_minutes=1.0, checkpoint_activations=True, workers=3)
    other = replace(
        BASE, recipe="mine", notes=("mine",), data=replace(BASE.data, root=Path("elsewhere")), training=training
    )
    assert differences(BASE, other) == []


def test_flags_say_what_a_recipe_was_changed_to() -> None:
    plain = recipe("digits-pgd-at")
    training = replace(plain.training, epochs=3, sync_bn=True, fold=False)
    data = replace(plain.data, name="my.data:photos", arguments={"year": 2020, "kind": "cats"})
    changed = replace(plain, training=training, data=data, threat=replace(plain.threat, eps=0.1))
    words = flags(plain, changed)
    assert words == [
        *(
            "--data.name",
            "my.data:photos",
            "--data.arguments",
            '{"year": 2020, "kind": "cats"}',
            "--epochs",
            "3",
            "--no-fold",
            "--sync-bn",
        ),
        *("--threat.eps", "0.1", "--objective.threat.eps", "0.2"),
    ]
    options = parse(Options, words, prog="", default=Options(config=plain))
    assert options.config == changed
    assert flags(plain, replace(plain, training=replace(training, lr_schedule=Steps((0.5,))))) is None


def test_a_config_as_a_dict_is_plain() -> None:
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(part) for key, part in value.items())
        return (
            all(map(plain, value)) if isinstance(value, list | tuple) else isinstance(value, str | int | float | None)
        )

    assert all(plain(to_dict(config)) for config in RECIPES.values())


def test_arguments_are_plain_data_and_a_config_can_be_hashed() -> None:
    config = replace(BASE, data=replace(BASE.data, name="my.data:photos", arguments={"size": (3, 4), "names": ["a"]}))
    assert hash(config) == hash(replace(config, notes=config.notes))
    again = from_yaml(to_yaml(config))
    assert again.data.arguments == {"size": [3, 4], "names": ["a"]} and differences(config, again) == []
    assert (
        refused(changed("data.arguments", [3]))
        == "data.arguments: arguments are expected here, one `name: value` per line"
    )
    with pytest.raises(UserError, match="plain data"):
        to_yaml(replace(BASE, model=replace(BASE.model, arguments={"layer": object()})))
