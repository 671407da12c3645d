"""The paper's four networks, as the recipes of Table 4 train them: 1,000 classes at 224 pixels, FreeAT with HE."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from advsphere.classifier import find_head
from advsphere.data import ImageSet, load
from advsphere.data.crops import ResizedCrops
from advsphere.data.encoded import EncodedImages
from advsphere.hypersphere import HypersphereHead
from advsphere.recipes import recipe
from advsphere.rng import Rng
from advsphere.runs.build import assemble
from advsphere.training import Hooks, Stopped, Trainer
from tests.training.tiny import stopping_after

UNPACK = Path(__file__).parents[2] / "shared" / "data" / "unpack.py"
NETWORKS = [
    "resnet50",
    pytest.param("resnet152", marks=pytest.mark.slow),
    pytest.param("wrn50-2", marks=pytest.mark.slow),
    pytest.param("wrn101-2", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_of_freeat_on_the_sphere_at_224_pixels(network: str, tmp_path: Path) -> None:
    """Two images, one replay: the weights move, the perturbation is a whole step, the loss is about that of chance."""
    config = recipe(f"imagenet-freeat-he-{network}")
    noise = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(noise, torch.tensor([7, 993]), tuple(map(str, range(1000))))
    parts = assemble(config, images)
    head = parts.model.get_submodule(find_head(parts.model))
    assert isinstance(head, HypersphereHead) and head.weight.shape[0] == 1000 and float(head.scale) == 10.0
    hooks = Hooks(before_step=parts.before_step, shift=parts.shift, stop=stopping_after(1))
    trainer = Trainer(
        parts.model, config.objective, parts.criterion, images, settings=config.training, folder=tmp_path, hooks=hooks
    )
    before = {name: p.detach().clone() for name, p in parts.model.named_parameters()}
    with pytest.raises(Stopped):
        trainer.fit()
    assert all(p.isfinite().all() for p in parts.model.parameters())
    moved = [name for name, p in parts.model.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) == len(before)
    delta = trainer.gradient.carried()
    assert delta is not None and delta.shape == noise.shape
    # A whole step of eps in every pixel, but where the box is in the way or the gradient is zero.
    assert delta.abs().max().item() == pytest.approx(4 / 255, abs=1e-6)
    assert (delta.abs() > 3.99 / 255).float().mean() > 0.9
    # s (cos - m) against 999 others: by chance cos is about 0 for all, so the loss is ln(1 + 999 e^(s m)).
    assert float(trainer.sums[0] / trainer.sums[1]) == pytest.approx(math.log(1 + 999 * math.exp(2.0)), abs=1.5)


@pytest.mark.skipif(not UNPACK.exists(), reason="no photos in ../shared/data")
def test_photos_are_seen_as_the_recipe_says(tmp_path: Path) -> None:
    """One photo of each of the 1,000 classes, cropped at random for training, at the centre for testing."""
    subprocess.run([sys.executable, UNPACK, "imagenet-sample", tmp_path / "photos"], check=True, capture_output=True)
    (tmp_path / "photos" / "val").rename(tmp_path / "photos" / "train")
    settings = replace(recipe("imagenet-freeat").data, root=tmp_path / "photos")
    data = load(settings.name, settings.root, image_size=settings.image_size, resize=settings.resize, crops=True)
    assert isinstance(data.train, EncodedImages) and len(data.train) == 900 and len(data.test) == 100
    assert len(data.train.classes) == 1000 and data.train.shape == (3, 224, 224)
    area = recipe("imagenet-freeat").training.augment.min_area
    assert area is not None
    index = torch.arange(0, 900, 90)
    varied, _ = data.train.stored(index, ResizedCrops.of(Rng(0, index), area))
    centre, y = data.train.batch(index)
    assert varied.shape == centre.shape == (10, 3, 224, 224) and y.tolist() == data.train.labels[index].tolist()
    differs = (varied / 255 - centre).abs().flatten(1).mean(1)
    assert bool((differs > 0.005).all()), "each is another part of the photo"
    assert 0.3 < float(centre.mean()) < 0.6 and float(centre.std()) > 0.2
