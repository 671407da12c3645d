"""Images and paths of every kind that people have, wherever the library takes images and paths."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import advsphere
from advsphere import recipe
from advsphere.analysis import Curve
from advsphere.corruption import CorruptionRecord, read_published
from advsphere.data import ImageSet, from_dataset, image_folder, load, load_test
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation, Ledger, evaluate, preflight, verify
from advsphere.losses import cross_entropy
from advsphere.models import load_weights
from advsphere.objectives import PGDAT, Crafting, FreeAT, Standard
from advsphere.rng import Rng
from advsphere.runs.config import DataSettings, ModelSettings
from advsphere.runs.folder import load_run
from advsphere.runs.target import EvaluationTarget
from advsphere.runs.train import train
from advsphere.threat import ThreatModel
from advsphere.training import Stopped, load_checkpoint, read_metrics
from tests.laws import conv_net
from tests.training.tiny import few_images, stopping_after, tiny_trainer

THREAT = ThreatModel(norm="linf", eps=0.02)
IMAGES = few_images(24)


class HuggingFace(list[Any]):
    """The protocol of `datasets.Dataset`: items are dictionaries, `features` and `with_format`."""

    features: ClassVar = {"image": None, "label": SimpleNamespace(names=["a", "b", "c", "d"])}

    def with_format(self, kind: None) -> dict[str, list[int]]:
        return {"label": [item["label"] for item in self]}


def pictures() -> HuggingFace:
    arrays = IMAGES.pixels.permute(0, 2, 3, 1).numpy()
    return HuggingFace(
        {"image": Image.fromarray(x), "label": int(y)} for x, y in zip(arrays, IMAGES.labels, strict=True)
    )


def read_only(values: Any) -> Any:
    copied = values.copy()
    copied.flags.writeable = False
    return copied


KINDS: dict[str, tuple[Any, ...]] = {
    "image set": (IMAGES,),
    "tensors": (IMAGES.pixels, IMAGES.labels),
    "floating point": (IMAGES.pixels / 255, IMAGES.labels.int()),
    "arrays": (IMAGES.pixels.numpy(), IMAGES.labels.numpy()),
    "read-only arrays": (read_only(IMAGES.pixels.numpy()), read_only(IMAGES.labels.numpy())),
    "arrays, list": (IMAGES.pixels.numpy() / 255, IMAGES.labels.tolist()),
    "Dataset": (TensorDataset(IMAGES.pixels, IMAGES.labels),),
    "DataLoader": (DataLoader(TensorDataset(IMAGES.pixels, IMAGES.labels), batch_size=5, shuffle=True),),
    "Hugging Face": (pictures(),),
}


def learnt() -> nn.Module:
    """A network that gets a part of the images right."""
    model = conv_net().eval()
    with torch.no_grad():
        x, _ = IMAGES.batch(torch.arange(len(IMAGES)))
        features = model[:-1](x)
        model[-1].weight.copy_(torch.stack([features[IMAGES.labels == k].mean(0) for k in range(4)]))
        model[-1].bias.copy_(-model[-1].weight.square().sum(1) / 2)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_and_verify_take(kind: str, tmp_path: Path) -> None:
    model, ledger = learnt(), tmp_path / "ledger.sqlite"
    found = evaluate(model, *KINDS[kind], threat=THREAT, ledger=ledger)
    assert [row.outcomes for row in found.attacks] == [row.outcomes for row in _expected()]
    found.save(tmp_path / "evaluation.json")
    given = KINDS[kind][:1]
    assert verify(tmp_path / "evaluation.json", ledger, model, *given).passed


def _expected() -> Any:
    return evaluate(learnt(), IMAGES, threat=THREAT).attacks


@pytest.mark.parametrize("kind", [kind for kind in KINDS if len(KINDS[kind]) == 1])
def test_the_trainer_takes(kind: str, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, Standard(), images=KINDS[kind][0])
    assert torch.equal(trainer.images.stored(torch.arange(24))[0], IMAGES.pixels)


def test_what_an_evaluation_can_not_take_is_told_with_its_cure() -> None:
    model, (pixels, labels) = learnt(), KINDS["tensors"]
    for given, message in [
        ((pixels,), "images need their labels"),
        ((pixels.permute(0, 2, 3, 1).numpy(), labels), r"the channels last: .*transpose"),
        ((pixels.numpy().astype(float), labels), "divide by 255"),
        ((pixels / 255 * torch.nan, labels), "remove the images with NaN"),
        ((pixels / 255 - 0.5, labels), "put the normalisation inside the model"),
        ((pixels, torch.eye(4)[labels]), r"class numbers, not soft labels: use labels.argmax\(1\)"),
        ((TensorDataset(pixels, torch.eye(4)[labels]),), r"class numbers, not soft labels: use labels.argmax\(1\)"),
        (("photos",), "photos is a name: load its images with"),
    ]:
        with pytest.raises(UserError, match=message):
            preflight(model, *given)
    for bounds in ((0.0, 255.0), (-1.0, 1.0)):
        with pytest.raises(UserError, match=r"images are in \[0, 1\] here"):
            evaluate(model, IMAGES, threat=ThreatModel(norm="linf", eps=0.1, bounds=bounds))
    for budget in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="give a positive number of seconds"):
            evaluate(model, IMAGES, threat=THREAT, budget=budget)
    with pytest.raises(UserError, match="the images have pixels from"):
        evaluate(model, IMAGES, threat=ThreatModel(norm="linf", eps=0.1, bounds=(0.3, 0.6)))


@pytest.mark.parametrize("bounds", [(0.0, 255.0), (0.3, 0.6)])
def test_the_trainer_refuses_bounds_that_do_not_fit(bounds: tuple[float, float], tmp_path: Path) -> None:
    objective = PGDAT(threat=ThreatModel(norm="linf", eps=0.1, bounds=bounds))
    with pytest.raises(UserError, match=r"the bounds are|but the bounds are"):
        tiny_trainer(tmp_path, objective).fit()


@pytest.mark.parametrize("objective", [PGDAT(steps=2), FreeAT(repeats=2)], ids=["PGDAT", "FreeAT"])
def test_training_with_soft_labels_resumes_to_the_same_bits(objective: Any, tmp_path: Path) -> None:
    soft = 0.8 * nn.functional.one_hot(IMAGES.labels, 4) + 0.2 * nn.functional.one_hot((IMAGES.labels + 1) % 4, 4)
    images = ImageSet(IMAGES.pixels, soft, IMAGES.classes)
    tiny_trainer(tmp_path / "at once", objective, images=images).fit()
    stopped = tiny_trainer(tmp_path / "in pieces", objective, images=images)
    stopped.hooks.stop = stopping_after(2)
    with pytest.raises(Stopped):
        stopped.fit()
    resumed = tiny_trainer(tmp_path / "in pieces", objective, images=images)
    resumed.resume()
    resumed.fit()
    ours, theirs = (load_checkpoint(tmp_path / name / "last.safetensors")[0] for name in ("at once", "in pieces"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("mix", [v2.MixUp(num_classes=4), v2.CutMix(num_classes=4)], ids=["mixup", "cutmix"])
def test_a_batch_of_torchvision_s_mixing_in_a_loop_of_one_s_own(mix: Any) -> None:
    model, (x, y) = learnt(), mix(*IMAGES.batch(torch.arange(24)))
    objective = PGDAT(threat=THREAT, steps=2, step_size=0.01)
    x_adv = objective.craft(model, x, y, Crafting(Rng.of(x)))
    clean, robust = (objective.loss(model, x, at, y, criterion=cross_entropy).total for at in (x, x_adv))
    assert y.shape == (24, 4) and THREAT.contains(x_adv, x).all() and clean < robust
    robust.backward()


def test_a_run_with_soft_labels_is_validated_and_loaded_with_class_numbers(tmp_path: Path) -> None:
    soft = torch.eye(4)[IMAGES.labels]
    data = ((IMAGES.pixels, soft), (IMAGES.pixels.numpy(), soft.numpy()))
    seen: list[Tensor] = []
    model = train(
        data=data, model=conv_net(), folder=tmp_path / "run", epochs=1, on_epoch=lambda metrics: seen.append(metrics)
    )
    assert "clean" in seen[0]
    loaded = load_run(tmp_path / "run", model=conv_net(), test=data[1])
    assert loaded.test.labels.tolist() == IMAGES.labels.tolist()
    assert isinstance(from_dataset(loaded.test), ImageSet) and isinstance(model, nn.Module)


def public_callables() -> dict[str, Any]:
    """Every public function, and every method of a public class, by its name."""
    packages = [advsphere, *(m for m in (importlib.import_module(f"advsphere.{p}") for p in PACKAGES))]
    named = {f"{p.__name__}.{n}": getattr(p, n) for p in packages for n in getattr(p, "__all__", ())}
    methods = {
        f"{name}.{attribute}": getattr(value, "__func__", value)
        for name, kind in named.items()
        if inspect.isclass(kind)
        for attribute, value in vars(kind).items()
        if attribute == "__init__" or not attribute.startswith("_")
    }
    return {name: f for name, f in (named | methods).items() if inspect.isfunction(f)}


PACKAGES = sorted(p.name for p in pkgutil.iter_modules(advsphere.__path__) if p.ispkg and p.name not in ("cli", "runs"))
WITH_PATHS = {
    name: {p: str(a) for p, a in function.__annotations__.items() if "Path" in str(a) and p != "return"}
    for name, function in public_callables().items()
}


def test_every_public_path_may_be_text() -> None:
    found = {f"{name}({p})": kind for name, paths in WITH_PATHS.items() for p, kind in paths.items()}
    assert len(found) > 25
    inner = "advsphere.evaluation.Evaluation.__init__(ledger_file)"  # bytes or a path that was read from a ledger
    assert [name for name, kind in found.items() if "str" not in kind and name != inner] == []


NOWHERE: dict[str, Callable[[Any], Any]] = {
    "load": advsphere.load,
    "load_run": advsphere.load_run,
    "load_run's images": lambda place: advsphere.load_run(place, data_root=place),
    "load_weights": lambda place: load_weights(conv_net(), place),
    "load_checkpoint": load_checkpoint,
    "image_folder": lambda place: image_folder(place, 8),
    "data.load": lambda place: load("imagefolder", place, image_size=8),
    "load_test": lambda place: load_test("imagefolder", place, image_size=8),
    "Evaluation.load": Evaluation.load,
    "Ledger.read": Ledger.read,
    "verify": lambda place: verify(place, place, conv_net(), IMAGES),
    "Curve.load": Curve.load,
    "CorruptionRecord.load": CorruptionRecord.load,
    "read_published": lambda place: read_published(place, IMAGES),
    "EvaluationTarget": lambda place: EvaluationTarget(run=place, data=place, weights=place).load(),
    "train's weights": lambda place: train(
        replace(recipe("digits-standard"), model=ModelSettings(weights=place)), place, epochs=1
    ),
    "train's images": lambda place: train(
        replace(recipe("folder-pgd-at"), data=DataSettings(name="imagefolder", root=place)), place, epochs=1
    ),
}


@pytest.mark.parametrize("name", NOWHERE)
def test_a_place_where_nothing_is_gives_the_same_line_as_text_and_as_a_path(name: str, tmp_path: Path) -> None:
    said = []
    for place in (tmp_path / "nowhere", str(tmp_path / "nowhere")):
        with pytest.raises(UserError) as caught:
            NOWHERE[name](place)
        said.append(str(caught.value))
    assert said[0] == said[1] and "nowhere" in said[0]


def test_what_is_written_by_text_is_written(tmp_path: Path) -> None:
    folder = str(tmp_path / "made")
    trainer = tiny_trainer(f"{folder}/run", Standard())  # type: ignore[arg-type]
    trainer.fit()
    assert load_checkpoint(f"{folder}/run/last.safetensors")[1]["cursor"] == [2, 0, 0]
    assert read_metrics(f"{folder}/run") == []
    found = evaluate(learnt(), IMAGES, threat=THREAT, ledger=f"{folder}/ledger.sqlite")
    found.save(f"{folder}/evaluation.json")
    assert Evaluation.load(f"{folder}/evaluation.json") == found
