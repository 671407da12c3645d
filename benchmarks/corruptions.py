"""Corruptions beside the published generators: do they agree, and how much faster are they?

The generators are those of hendrycks/robustness (make_cifar_c.py, make_tinyimagenet_c.py, make_imagenet_c.py), run as
they are but for what newer libraries broke: numpy.float_, numpy.fromstring, scipy.ndimage.interpolation, and `multichannel`
of skimage. They need scikit-image, opencv-python, wand and ImageMagick's library beside the packages of this project.

    git clone https://github.com/hendrycks/robustness
    python benchmarks/corruptions.py robustness images.npy --n 1000        # agreement, a table in Markdown
    python benchmarks/corruptions.py robustness images.npy --n 100 --speed

images.npy: (N, S, S, 3) uint8 with S of 32, 64 or 224. Ours is timed in batches of all n images, the reference image by
image as it is made; both with the threads that OMP_NUM_THREADS allows.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from advsphere.data.corruptions import CORRUPTIONS, EXTRA, SEVERITIES, corrupt
from advsphere.draws import Draws

GENERATORS = {32: "make_cifar_c.py", 64: "make_tinyimagenet_c.py", 224: "make_imagenet_c.py"}
RANDOM = {
    "gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog",
    "elastic_transform", "speckle_noise", "spatter",
}  # fmt: skip
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Published:
    """The functions of one published generator, called as the generator calls them."""

    def __init__(self, checkout: Path, side: int) -> None:
        self.folder = checkout / "ImageNet-C" / "create_c"
        source = (self.folder / GENERATORS[side]).read_text()
        source = source[source.index("# /////////////// Distortion Helpers") :]
        for end in ("# /////////////// Further Setup", "import collections"):
            source = source.split(end)[0]
        source = source.replace("from scipy.ndimage.interpolation import", "from scipy.ndimage import")
        source = source.replace("np.float_)", "np.float64)").replace("np.fromstring", "np.frombuffer")
        self.names: dict[str, Any] = {"np": np}
        exec(compile(source, GENERATORS[side], "exec"), self.names)
        self.names["gaussian"] = _gaussian_with_multichannel(self.names["gaussian"])
        self.names["cv2"].setNumThreads(torch.get_num_threads())

    def __call__(self, image: Image.Image, name: str, severity: int) -> Pixels:
        with contextlib.chdir(self.folder), warnings.catch_warnings():  # frost's files are named without a folder
            warnings.simplefilter("ignore")
            return np.uint8(self.names[name](image, severity))  # type: ignore[return-value]

    @contextlib.contextmanager
    def drawing(self, **functions: Callable[..., Any]) -> Iterator[None]:
        """With functions of one's own in the place of those of numpy.random."""
        own = SimpleNamespace(**{k: getattr(np, k) for k in dir(np) if not k.startswith("__")})
        own.random = SimpleNamespace(**functions)
        self.names["np"] = own
        try:
            yield
        finally:
            self.names["np"] = np


def _gaussian_with_multichannel(gaussian: Callable[..., Any]) -> Callable[..., Any]:
    def patched(image: Any, sigma: float, multichannel: bool = False, **keywords: Any) -> Any:
        return gaussian(image, sigma=sigma, channel_axis=-1 if multichannel else None, **keywords)

    return patched


def ours(pixels: Pixels, name: str, severity: int, frost: Path | None = None) -> Pixels:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    draws = Draws(0, torch.arange(len(images)))
    return corrupt(images, name, severity, draws=draws, frost_folder=frost).permute(0, 2, 3, 1).numpy()


def agreement(published: Published, pixels: Pixels, names: list[str]) -> Iterator[str]:
    """Rows of a table: over all severities, how far apart the pixels are, or how far from the clean image on average."""
    yield "| corruption | severity | equal, % | within 1, % | largest | change, ref | change, ours | PSNR, ref | PSNR, ours |"
    yield "|---|" + "---:|" * 8
    frost = published.folder
    for name in names:
        for severity in SEVERITIES:
            a = np.stack([published(Image.fromarray(p), name, severity) for p in pixels]).astype(np.int16)
            for label, b in _variants(name, pixels, severity, frost):
                apart = np.abs(a - b.astype(np.int16))
                numbers = [f"{100 * (apart <= d).mean():.3f}" for d in (0, 1)] + [str(apart.max())]
                cells = numbers if name not in RANDOM else ["", "", ""]
                means = [f"{np.abs(v - pixels.astype(np.int16)).mean():.2f}" for v in (a, b.astype(np.int16))]
                noise = [f"{psnr(v, pixels):.2f}" for v in (a, b)]
                yield f"| {label} | {severity} | " + " | ".join([*cells, *means, *noise]) + " |"


def _variants(name: str, pixels: Pixels, severity: int, frost: Path) -> Iterator[tuple[str, Pixels]]:
    yield name, ours(pixels, name, severity)
    if name == "frost":
        yield "frost, published textures", ours(pixels, name, severity, frost)


def psnr(a: Any, b: Any) -> float:
    """The mean over images, in dB; an unchanged image counts as 60."""
    error = ((a.astype(np.float64) - b) ** 2).mean((1, 2, 3))
    return float(np.where(error > 0, 10 * np.log10(255**2 / np.maximum(error, 1e-9)), 60).clip(max=60).mean())


def speed(published: Published, pixels: Pixels, names: list[str]) -> Iterator[str]:
    """Rows of a table: microseconds for an image, the mean over severities, and the ratio; then its geometric mean."""
    yield "| corruption | reference, us | ours, us | ratio |"
    yield "|---|---:|---:|---:|"
    ratios = []
    few = [Image.fromarray(p) for p in pixels[: max(1, len(pixels) // 10)]]
    for name in names:
        reference = sum(_seconds(lambda s=s: [published(p, name, s) for p in few], 1) for s in SEVERITIES) / len(few) / 5
        mine = sum(_seconds(lambda s=s: ours(pixels, name, s), 3) for s in SEVERITIES) / len(pixels) / 5
        ratios.append(reference / mine)
        yield f"| {name} | {1e6 * reference:,.0f} | {1e6 * mine:,.0f} | {ratios[-1]:.1f} |"
    main = ratios[: len([n for n in names if n in CORRUPTIONS])]
    for label, part in (("geometric mean of the 15", main), ("geometric mean of all", ratios)):
        yield f"| {label} | | | {statistics.geometric_mean(part):.1f} |" if part else ""


def _seconds(work: Callable[[], Any], times: int) -> float:
    """The median, after one call that is not counted."""
    work()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of hendrycks/robustness")
    parser.add_argument("images", type=Path, help="(N, S, S, 3) uint8, .npy")
    parser.add_argument("--n", type=int, default=100, help="how many of the images")
    parser.add_argument("--speed", action="store_true", help="time, instead of comparing")
    parser.add_argument("--only", nargs="*", default=[*CORRUPTIONS, *EXTRA], help="some of the corruptions")
    options = parser.parse_args()
    pixels = np.load(options.images)[: options.n]
    published = Published(options.checkout.resolve(), pixels.shape[1])
    print(f"{len(pixels)} images of {pixels.shape[1]} pixels, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    for line in (speed if options.speed else agreement)(published, pixels, options.only):
        print(line, flush=True)


if __name__ == "__main__":
    main()
