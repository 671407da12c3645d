"""The embedded digits as a folder of colour images, so that what needs such a folder can be tried anywhere."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from advsphere.data import load
from advsphere.files import write_atomically

PHOTOS, _TEST, _SIDE = 240, 40, 32


def digits_as_photos(folder: Path) -> Path:
    """Write the first digits as train/<class>/ and val/<class>/, enlarged and in three equal colours; returns the
    folder. What is there already is kept.
    """
    done = folder / "complete"
    if not done.exists():
        data = load("digits")
        for part, images in (("train", data.train.first(PHOTOS)), ("val", data.test.first(_TEST))):
            pixels, labels = images.batch(torch.arange(len(images)))
            for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
                path = folder / part / f"digit-{label}" / f"{number:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(_png(image))
        write_atomically(done, b"")
    return folder


def _png(image: Tensor) -> bytes:
    """(1, H, W) in [0, 1] as a file."""
    out, grey = io.BytesIO(), Image.fromarray((255 * image[0]).round().byte().numpy())
    grey.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()
