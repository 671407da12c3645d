"""The networks of Table 4, at 224 pixels and 1,000 classes: a batch of photos under its PGD-10, from clean images to
the ledger. Weights are random, so labels are what the network says of each photo, but for one.
"""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
import torch

from advsphere.classifier import frozen
from advsphere.data import ImageSet, load_test
from advsphere.evaluation import CLEAN, Ledger, SuiteContext, evaluate
from advsphere.evaluation.suites import attacks_of
from advsphere.recipes import recipe
from advsphere.runs.build import build_model

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "imagenet-sample-1000.tar"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Three photos, with the names of all the classes."""
    if not SAMPLE.is_file():
        pytest.skip("no imagenet-sample in ../shared/data")
    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(SAMPLE) as tar:
        files = sorted(member.name for member in tar if member.isfile())
        tar.extractall(folder, [tar.getmember(files[i]) for i in (0, 400, 800)], filter="data")
    images = load_test("imagefolder", folder, image_size=224)
    x, y = images.batch(torch.arange(3))
    return ImageSet(x, y, tuple(PurePosixPath(name).parent.name for name in files), "photos")


@pytest.mark.parametrize(
    "network",
    ["resnet50", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet152", "wrn50-2", "wrn101-2"))],
)
def test_a_batch_of_photos_under_pgd_10(network: str, photos: ImageSet, tmp_path: Path) -> None:
    config = recipe(f"imagenet-freeat-he-{network}")
    model = build_model(config, photos).eval()
    with frozen(model) as classify, torch.no_grad():
        labels = classify(photos.pixels).argmax(1)
    labels[0] = (labels[0] + 1) % 1000
    pgd_10 = [
        spec for spec in attacks_of("table4", SuiteContext(threat=config.threat, scale=10.0)) if spec.name == "PGD-10"
    ]
    path = tmp_path / "ledger.sqlite"
    result = evaluate(model, replace(photos, labels=labels), threat=config.threat, suite=pgd_10, ledger=path)
    assert (result.clean.k, result.clean.n) == (2, 3)
    assert result.identity["model"]["scale"] == 10.0 and result.identity["data"]["shape"] == [3, 224, 224]
    with Ledger.read(path) as book:
        assert [cell.status for cell in book.cells(CLEAN)] == ["fooled", "resisted", "resisted"]
        first, *attacked = book.cells("PGD-10")
    assert first.status == "not_run" and result.row("PGD-10").forwards >= len(attacked)
    for cell in attacked:
        assert cell.distance is not None and 1 / 255 < cell.distance <= 4 / 255 + 1e-6
        assert (cell.status == "fooled") == (cell.prediction != labels[cell.example]), cell
