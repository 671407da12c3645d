from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from advsphere.attacks import pgd
from advsphere.classifier import fooled, frozen
from advsphere.data import Dataset, ImageSet, load
from advsphere.errors import UserError
from advsphere.hypersphere import HypersphereHead
from advsphere.recipes import recipe
from advsphere.rng import Rng
from advsphere.runs import build as building
from advsphere.runs.build import build_model
from advsphere.runs.config import Config
from advsphere.runs.config_yaml import from_yaml, to_yaml
from advsphere.runs.folder import held_out, load_run, read_config
from advsphere.runs.train import Validation, train
from advsphere.schedule import Constant, Linear
from advsphere.threat import ThreatModel
from advsphere.training import Stopped, Trainer, load_checkpoint, read_metrics
from tests.data.layouts import write_image
from tests.laws import RADII, conv_net, global_randomness_untouched, images, linear_net
from tests.training.tiny import (
    assert_same_run,
    few_digits,
    left_behind,
    names_in,
    stopping_after,
    tiny_config,
)

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
FILES = {"config.yaml", "provenance.json", "last.safetensors", "best.safetensors", "metrics.jsonl", "tensorboard"}
FILES |= {"classes.json", "previous.safetensors", "good.safetensors", ".lock"}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    few_digits(monkeypatch)


pytestmark = pytest.mark.usefixtures("few")


# What a run leaves, and reads back.


def test_a_run_s_folder(tmp_path: Path) -> None:
    config = tiny_config("pgd-at-he")
    said: list[str] = []
    model = train(config, tmp_path / "run", on_epoch=said.append)
    assert names_in(tmp_path / "run") == FILES
    assert read_config(tmp_path / "run") == config
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["torch"] == torch.__version__
    lines = read_metrics(tmp_path / "run")
    assert lines == said and [m["epoch"] for m in lines] == [1, 2]
    assert all({"loss", "lr", "clean", "robust", "seconds", "images_per_second"} <= m.keys() for m in lines)
    (board,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert all(name.encode() in board.read_bytes() for name in ("robust", "clean", "loss"))
    last, best = load_run(tmp_path / "run", "last"), load_run(tmp_path / "run")
    assert last.config == best.config == config and len(last.test) == 20
    x, _ = last.test.batch(torch.arange(20))
    assert torch.equal(last.model(x), model.eval()(x)) and not last.model.training
    kept = load_checkpoint(tmp_path / "run" / "best.safetensors")[0]
    assert all(torch.equal(kept[f"model.{name}"], t) for name, t in best.model.state_dict().items())


def test_the_same_seed_is_the_same_run_whatever_the_caller_did(tmp_path: Path) -> None:
    torch.manual_seed(1)
    train(tiny_config("fastat-he"), tmp_path / "one")
    torch.manual_seed(2)
    np.random.seed(3)
    train(tiny_config("fastat-he"), tmp_path / "again")
    assert_same_run(tmp_path / "one", tmp_path / "again")
    train(tiny_config("fastat-he", seed=1), tmp_path / "other")
    one, other = left_behind(tmp_path / "one"), left_behind(tmp_path / "other")
    assert one["last model.network.conv1.weight"] != other["last model.network.conv1.weight"]


def test_only_the_loop_sets_the_global_generator(tmp_path: Path) -> None:
    """Building, splitting, starting and reading back leave it alone."""

    def stop_before_the_first_step(trainer: object, notes: list[str]) -> None:
        raise Stopped

    with global_randomness_untouched():
        with pytest.raises(Stopped):
            train(tiny_config("freeat-he"), tmp_path / "run", on_start=stop_before_the_first_step)
        build_model(tiny_config("standard-he"), load("digits").train)
    train(tiny_config("freeat-he"), tmp_path / "other")
    with global_randomness_untouched():
        load_run(tmp_path / "other")


def test_the_seed_decides_the_initial_weights() -> None:
    def initial(seed: int) -> dict[str, Tensor]:
        return build_model(tiny_config("standard-he", seed=seed), load("digits").train).state_dict()

    first, again, other = initial(0), initial(0), initial(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.conv1.weight"], other["network.conv1.weight"])
    assert not torch.equal(first["network.fc.weight"], other["network.fc.weight"])


def test_the_sphere_s_schedules_and_its_margin_in_the_attack_reach_the_loop(tmp_path: Path) -> None:
    config = tiny_config("trades-m-he")
    assert config.sphere is not None and config.sphere.margin_in_attack
    moving = replace(config.sphere, scale_schedule=Linear(((0.0, 0.4), (1.0, 1.0))))
    for name, sphere in {
        "m-he": config.sphere,
        "outside": replace(config.sphere, margin_in_attack=False),
        "steady": replace(config.sphere, margin_schedule=Constant()),
        "moving": moving,
    }.items():
        train(replace(config, sphere=sphere), tmp_path / name)
    left = {name: left_behind(tmp_path / name) for name in ("m-he", "outside", "steady", "moving")}
    assert len({str(each["last model.network.fc.weight"]) for each in left.values()}) == 4, "each trains differently"
    assert left["m-he"]["last model.network.fc.scale"][1] == [15.0]
    assert left["moving"]["last model.network.fc.scale"][1] == pytest.approx([15 * moving.scale_schedule(3 / 4)])


class Untouchable:
    """A test set that must not be looked at."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the test set was asked for its {name}")


def test_the_test_set_chooses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load("digits").train.first(40)
    monkeypatch.setattr(building, "load", lambda *_, **__: Dataset(digits, Untouchable()))
    train(tiny_config("pgd-at"), tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    chosen = load_checkpoint(tmp_path / "run" / "best.safetensors")[1]["metrics"]
    assert chosen["robust"] == max(m["robust"] for m in lines)


def test_validation_images_are_never_trained_on(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def note(trainer: Trainer, notes: list[str]) -> None:
        validate: Any = trainer.hooks.validate
        seen["train"], seen["validation"] = trainer.images, validate.images

    train(tiny_config("standard"), tmp_path / "run", on_start=note)
    rows = [{tuple(row) for row in part.pixels.flatten(1).tolist()} for part in seen.values()]
    assert [len(part) for part in rows] == [25, 15] and not rows[0] & rows[1]


# Validation.


def test_validation_of_a_linear_network_is_the_known_one() -> None:
    """An example resists eps exactly if its margin exceeds eps times the l1 norm of the weights' difference."""
    generator = torch.Generator().manual_seed(0)
    weight, pixels = torch.randn(2, 192, generator=generator), torch.rand(60, 3, 8, 8, generator=generator)
    difference = weight[0] - weight[1]
    margin = (0.3 + 0.4 * pixels).flatten(1) @ difference
    y = (margin < 0).long()
    y[:10] = 1 - y[:10]  # misclassified
    few = ImageSet(0.3 + 0.4 * pixels, y, ("a", "b"))
    sizes = margin[10:].abs().sort().values
    threat = ThreatModel(norm="linf", eps=float((sizes[24] + sizes[25]) / 2 / difference.abs().sum()))
    expected = {"clean": 50 / 60, "robust": 25 / 60}
    for batch_size in (500, 7):
        found = Validation(few, threat, None, batch_size)(linear_net(weight).train())
        assert found == pytest.approx(expected)


def test_validation_counts_what_no_iterate_fools_and_leaves_the_model_alone() -> None:
    threat, net, x = ThreatModel(norm="linf", eps=RADII["linf"]), conv_net(), images(40)
    with frozen(net) as classify:
        y = classify(x).argmax(1)
    y[::8] = (y[::8] + 1) % 4
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with global_randomness_untouched():
        found = Validation(ImageSet(x, y, ("a", "b", "c", "d")), threat, None)(net)
    assert net.training and all(torch.equal(before[name], t) for name, t in net.state_dict().items())
    with frozen(net) as classify:
        fell = fooled(classify(x), y)
        for steps in range(1, 11):
            x_adv = pgd(classify, x, y, threat=threat, steps=steps, step_size=threat.eps / 4, rng=Rng.of(x))
            fell |= fooled(classify(x_adv), y)
    assert found["robust"] == pytest.approx(1 - float(fell.float().mean()), abs=1 / 40)
    assert 0.1 < found["robust"] < found["clean"] == 35 / 40


def test_validation_draws_by_example_and_not_by_who_else_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    attacked: list[int] = []

    def noted(model: object, x: Tensor, y: Tensor, *, rng: Rng, **settings: object) -> Tensor:
        attacked.extend(rng.ids.tolist())
        return pgd(model, x, y, rng=rng, **settings)

    monkeypatch.setattr("advsphere.runs.validation.pgd", noted)
    weight, y = torch.eye(4, 192), torch.tensor([0, 3, 0, 0, 2, 0, 1, 0])
    few = ImageSet(torch.zeros(8, 3, 8, 8), y, tuple("abcd"))
    Validation(few, ThreatModel(norm="linf", eps=0.1), None, batch_size=3)(linear_net(weight))
    assert attacked == [0, 2, 3, 5, 7], "those of class 0, which it predicts for black"


def test_validation_where_everything_is_wrong() -> None:
    weight = torch.eye(4, 192)
    wrong = ImageSet(
        torch.ones(8, 3, 8, 8) * torch.tensor([0.0, 1.0] * 4).view(8, 1, 1, 1), torch.full((8,), 3), tuple("abcd")
    )
    assert Validation(wrong, ThreatModel(norm="l2", eps=0.1), None)(linear_net(weight)) == {"clean": 0.0, "robust": 0.0}


# A folder of images, with a network of timm's.


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """pets/{train,val}/{cat,dog}: 15 and 4 images of each, 32x32; cats are reddish."""
    chance = np.random.default_rng(0)
    for part, count in (("train", 15), ("val", 4)):
        for name, red in (("cat", 90), ("dog", 0)):
            for i in range(count):
                pixels = chance.integers(0, 160, (32, 32, 3), dtype=np.uint8)
                pixels[..., 0] += red
                write_image(tmp_path / "pets" / part / name / f"{i}.png", pixels)
    return tmp_path / "pets"


def folder_config(root: Path, image_size: int, **settings: object) -> Config:
    config = recipe("folder-standard-he")
    return replace(
        config,
        data=replace(config.data, root=root, image_size=image_size, validation=6),
        training=replace(config.training, epochs=1, **settings),
    )


def test_standard_training_of_a_timm_network_on_an_image_folder(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real folder
    config = folder_config(pets, 32, batch_size=8)
    assert config.model.name == "timm:resnet18" and config.sphere is not None
    assert from_yaml(to_yaml(config)) == config
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop=stopping_after(2))
    model = train(config, tmp_path / "run", resume=True)
    run = load_run(tmp_path / "run", "last")
    (head,) = [module for module in run.model.modules() if isinstance(module, HypersphereHead)]
    assert head.out_features == 2 and run.test.classes == ("cat", "dog")
    x, _ = run.test.batch(torch.arange(8))
    logits = run.model(x)
    assert logits.abs().max() <= 15 and torch.equal(logits, model.eval()(x))
    (line,) = read_metrics(tmp_path / "run")
    assert 0 <= line["robust"] <= line["clean"] <= 1
    renamed = shutil.copytree(pets, tmp_path / "renamed")
    for part in ("train", "val"):
        (renamed / part / "cat").rename(renamed / part / "zebra")
    with pytest.raises(UserError, match=r"not trained on: zebra; it knows cat, dog"):
        load_run(tmp_path / "run", data_root=renamed)
    (renamed / "val" / "zebra").rename(renamed / "val" / "cat")
    (renamed / "train" / "zebra").rename(renamed / "train" / "cat")
    again = load_run(tmp_path / "run", "last", data_root=renamed)
    assert torch.equal(again.model(x), logits) and again.test.classes == ("cat", "dog")


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "unpack.py").exists(), reason="no real images in ../shared/data")
def test_standard_training_on_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch on ten classes of tiny-imagenet-40 is at least twice as good as chance."""
    monkeypatch.undo()
    photos = tmp_path / "photos"
    subprocess.run([sys.executable, SHARED / "unpack.py", "tiny-imagenet-40", photos], check=True)
    for part in ("train", "val"):
        for folder in sorted((photos / part).iterdir())[10:]:
            shutil.rmtree(folder)
    config = folder_config(photos, 64, batch_size=64)
    train(replace(config, data=replace(config.data, validation=300)), tmp_path / "run")
    (line,) = read_metrics(tmp_path / "run")
    assert line["clean"] > 2 / 10
    assert load_run(tmp_path / "run").test.shape == (3, 64, 64)


def test_a_small_set_is_not_used_up_by_validation(tmp_path: Path) -> None:
    pixels = (torch.arange(60 * 64).view(60, 1, 8, 8) * 37 % 256).to(torch.uint8)
    notes = list[str]()

    def started(trainer: Trainer, lines: list[str]) -> None:
        notes.extend(lines)
        assert len(trainer.images) == 54 - 5  # a tenth is the test set, and a tenth of the rest is held out

    train(
        recipe("digits-standard"), tmp_path / "run", data=(pixels, torch.arange(60) % 3), epochs=1, validation=500,
        on_start=started,
    )  # fmt: skip
    told = "5 of the 54 training images are held out to choose the checkpoint; --data.validation 500 would be more than"
    assert any(note.startswith(told) for note in notes)
    assert held_out(tmp_path / "run") == 5
