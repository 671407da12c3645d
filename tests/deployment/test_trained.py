"""A trained network is loaded without its images, classifies photos, and goes to the Hub's format and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import advsphere as adv
from advsphere.cli import main
from advsphere.data import load as load_data
from advsphere.deployment import TrainedClassifier
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation
from advsphere.runs.config import to_dict
from advsphere.runs.folder import load_run
from tests.deployment.conftest import SIZE


def test_it_needs_no_images_and_gives_the_run_s_logits(digits_run: Path) -> None:
    run, model = load_run(digits_run), adv.load(digits_run)
    x, _ = run.test.batch(torch.arange(8))
    with torch.no_grad():
        assert torch.equal(model(x), run.model(x)) and not model.training
    assert model.classes == tuple("0123456789") and model.shape == (1, 8, 8)
    assert (
        repr(model) == f"<TrainedClassifier {run.config.recipe}: {run.config.model.name}, images 1 x 8 x 8, 10 classes>"
    )
    assert repr(run).startswith(f"<Run {run.config.recipe}: ") and "\n" not in repr(run)
    best = model(x).detach().softmax(1).max(1)
    for i, prediction in enumerate(model.predict(list(x), top=3, batch_size=3)):
        assert prediction.classes[0] == str(int(best.indices[i])) and len(prediction.classes) == 3
        assert prediction.probabilities[0] == pytest.approx(float(best.values[i]))


def test_a_photo_is_prepared_as_the_test_images_were(photos_run: Path) -> None:
    run, model = load_run(photos_run), adv.load(photos_run)
    files = sorted((photos_run.parent / "photos" / "val").glob("*/*.png"))
    for i, file in enumerate(files):
        expected = run.test.batch(torch.tensor([i]))[0][0]
        assert torch.equal(model.preprocess(file), expected) and expected.shape == (3, SIZE, SIZE)
        picture = Image.open(file)
        assert torch.equal(model.preprocess(picture), expected)
        assert torch.equal(model.preprocess(np.array(picture)), expected)
        assert torch.equal(model.preprocess(expected), expected)
    assert model.classes == ("bright", "dark")
    assert {p.classes[0] for p in model.predict(files)} <= {"bright", "dark"}
    assert model.predict(torch.stack([model.preprocess(file) for file in files])) == model.predict(files)


def test_what_is_no_image_is_named(photos_run: Path, tmp_path: Path) -> None:
    model = adv.load(photos_run)
    (tmp_path / "note.jpg").write_text("no image")
    for image, said in (
        (tmp_path / "note.jpg", "cannot read the image .*note.jpg"),
        (tmp_path / "missing.jpg", "cannot read the image .*missing.jpg"),
        (torch.zeros(3, 5, 5), r"takes images of shape \(3, 12, 12\), not \(3, 5, 5\)"),
        (np.zeros((4, 4, 9)), r"an array has to be \(H, W, 3\)"),
    ):
        with pytest.raises(UserError, match=said):
            model.predict(image)  # type: ignore[arg-type]


def test_the_hub_s_format_and_back(digits_run: Path, tmp_path: Path) -> None:
    model = adv.load(digits_run)
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match=r"could not write .*taken: File exists"):
        model.save_pretrained(tmp_path / "taken")
    model.save_pretrained(tmp_path / "hub")
    again = TrainedClassifier.from_pretrained(str(tmp_path / "hub"))
    x = load_data("digits").test.batch(torch.arange(4))[0]
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert (again.classes, again.shape, again.config) == (model.classes, model.shape, model.config)
    card = (tmp_path / "hub" / "README.md").read_text()
    evaluation = Evaluation.load(next(digits_run.glob("evaluations/*/evaluation.json")))
    low, high = evaluation.worst.interval
    assert f"({100 * low:.1f} to {100 * high:.1f})" in card and evaluation.ledger[:16] in card
    assert "linf, radius 0.2" in card and "digits-fastat-he" in card


def test_the_card_has_the_evaluations_of_this_network_alone(digits_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(digits_run, tmp_path / "run")
    (evaluated,) = run.glob("evaluations/*/evaluation.json")
    assert len(adv.load(run).evaluations) == 1
    assert main(["train", "digits-fastat-he", "--epochs", "2", "--resume", "--out", str(run)]) == 0
    assert adv.load(run, "last").evaluations == []
    evaluated.write_text('{"format": "advsphere evaluation 1"}')
    assert adv.load(run).evaluations == []


def test_what_the_hub_refuses_is_told_in_one_line(tmp_path: Path) -> None:
    model = TrainedClassifier(to_dict(adv.recipe("digits-pgd-at")), list("0123456789"), [1, 8, 8])
    with pytest.raises(UserError, match=r"me/my nets can't be published: HFValidationError.*; check name and conn"):
        model.push_to_hub("me/my nets")
    with pytest.raises(UserError, match=r"me/mine/nets can't be read: .*check the name and the connection"):
        TrainedClassifier.from_pretrained("me/mine/nets")
    with pytest.raises(UserError, match=r"holds no network: there is no config.json"):
        TrainedClassifier.from_pretrained(tmp_path)


def test_a_user_s_network_is_not_built_from_somebody_s_folder(digits_run: Path, tmp_path: Path) -> None:
    """A name in a file from the Hub must not run code."""
    adv.load(digits_run).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["settings"]["model"]["name"] = "evil:build"
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="built by evil:build, which is not part of the saved files"):
        TrainedClassifier.from_pretrained(str(tmp_path))


def test_predict_on_the_command_line(photos_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photos = photos_run.parent / "photos" / "val" / "dark"
    assert main(["predict", str(photos_run), str(photos), "--top", "2"]) == 0
    shown = capfd.readouterr().out
    assert shown.count(".png") == 2 and shown.count("dark") >= 2 and shown.count("%") == 4
    assert main(["predict", str(photos_run), str(photos.parent)]) == 0  # at any depth
    assert len(capfd.readouterr().out.splitlines()) == 4
    for words, said in (
        ([str(photos_run)], "name image files or folders"),
        ([str(photos_run), "nowhere.jpg"], "there is no image nowhere.jpg"),
        (["nowhere", str(photos)], "holds no run"),
        ([str(photos_run), str(photos), "--top", "0"], "name at least one class"),
    ):
        assert main(["predict", *words]) == 1
        assert said in capfd.readouterr().err


def test_photos_that_cannot_be_read_are_named_after_the_others(
    photos_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(photos_run), str(tmp_path / "empty")]) == 1
    assert "no images in" in capfd.readouterr().err
    Image.new("RGB", (9, 9)).save(tmp_path / "a [red] photo.JPG", "jpeg")
    for name in ("b.jpg", "c.png", "._a.jpg"):  # the last one is macOS's own
        (tmp_path / name).write_text("no image")
    assert main(["predict", str(photos_run), str(tmp_path)]) == 1
    said = capfd.readouterr()
    assert "a [red] photo.JPG  " in said.out and len(said.out.splitlines()) == 1
    assert "cannot read 2 images" in said.err and "b.jpg" in said.err and "c.png" in said.err
