"""Images and paths of every kind that people have, wherever the library takes images and paths."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from advsphere.data import ImageSet, from_dataset
from advsphere.errors import UserError
from advsphere.evaluation import evaluate, preflight, verify
from advsphere.objectives import PGDAT, FreeAT, Standard
from advsphere.runs.folder import load_run
from advsphere.runs.train import train
from advsphere.threat import ThreatModel
from advsphere.training import Stopped, load_checkpoint
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


KINDS: dict[str, tuple[Any, ...]] = {
    "image set": (IMAGES,),
    "tensors": (IMAGES.pixels, IMAGES.labels),
    "floating point": (IMAGES.pixels / 255, IMAGES.labels.int()),
    "arrays": (IMAGES.pixels.numpy(), IMAGES.labels.numpy()),
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
