"""Training on image files and archives: however they lie and are decoded, and wherever it stopped, the same bits."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advsphere import provenance
from advsphere.data import Augment
from advsphere.recipes import recipe
from advsphere.runs.config import Config
from advsphere.runs.train import train
from advsphere.training import Stopped
from tests.training.tiny import assert_same_run, stopping_after


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Forty photos of two classes as files and, in the same order, as shards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(provenance, "commit", lambda: "0123456789ab")
    rng = np.random.default_rng(0)
    files, shards = tmp_path / "files", tmp_path / "shards"
    (shards / "train").mkdir(parents=True)
    (shards / "classes.txt").write_text("a\nb\n")
    for part in ("train", "val"):
        (shards / part).mkdir(exist_ok=True)
        for label, name in enumerate("ab"):
            with tarfile.open(shards / part / f"{name}.tar", "w") as tar:
                for i in range(20):
                    coarse, buffer = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8), io.BytesIO()
                    Image.fromarray(coarse).resize((30 + i, 40 - i), Image.Resampling.BICUBIC).save(buffer, "jpeg")
                    path = files / part / name / f"{i:02}.jpg"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(buffer.getvalue())
                    for suffix, content in (("jpg", buffer.getvalue()), ("cls", str(label).encode())):
                        member = tarfile.TarInfo(f"{i:02}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    return files, shards


def few_photos(root: Path, workers: int) -> Config:
    """Two epochs of four batches of FreeAT with two replays, on random crops of 16 pixels."""
    config = recipe("folder-fastat")
    free = replace(recipe("digits-freeat").objective, repeats=2)  # type: ignore[call-arg]
    training = replace(
        config.training, epochs=2, batch_size=8, workers=workers, augment=Augment(min_area=0.3, flip=True)
    )
    return replace(
        config,
        data=replace(config.data, root=root, image_size=16, resize=18, validation=8),
        model=replace(config.model, name="small-cnn"),
        objective=free,
        training=training,
    )


def test_files_or_shards_stopped_or_not(places: tuple[Path, Path], tmp_path: Path) -> None:
    files, shards = places
    train(few_photos(files, 0), tmp_path / "whole")
    stops = 0
    for place, workers in ((shards, 2), (files, 1), (shards, 0)):
        try:
            train(
                few_photos(place, workers),
                tmp_path / "pieces",
                resume=True,
                stop=stopping_after(5 if stops < 2 else 99),
            )
        except Stopped:
            stops += 1
    assert stops == 2
    assert_same_run(tmp_path / "whole", tmp_path / "pieces")
