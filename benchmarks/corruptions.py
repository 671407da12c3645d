"""Corruptions beside the published generators: do they agree, and how much faster are they?

The generators are those of hendrycks/robustness (make_cifar_c.py, make_tinyimagenet_c.py, make_imagenet_c.py), run as
they are but for what newer libraries broke: numpy.float_, numpy.fromstring, scipy.ndimage.interpolation and
skimage's `multichannel`. They need scikit-image, opencv-python, wand and ImageMagick's library beside the packages of
this project.

    git clone https://github.com/hendrycks/robustness
    python benchmarks/corruptions.py robustness images.npy --n 1000        # agreement, a table in Markdown
    python benchmarks/corruptions.py robustness images.npy --n 100 --speed

images.npy: (N, S, S, 3) uint8 with S of 32, 64 or 224. Ours is timed in batches of all n images, the reference image by
image as it is made; both with the threads that OMP_NUM_THREADS allows.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from same_draws import same_draws

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
    """The same images under ours; frost: a folder with the published textures."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    draws = Draws(0, torch.arange(len(images)))
    return corrupt(images, name, severity, draws=draws, frost_folder=frost).permute(0, 2, 3, 1).numpy()


def agreement(published: Published, pixels: Pixels, names: list[str]) -> Iterator[str]:
    """Rows of a table: values that are equal and that are at most 1 apart, of a deterministic corruption or with the
    same draws; the mean absolute change of the clean image and the PSNR, of theirs with their own draws and of ours.
    """
    yield "| corruption | equal, % | within 1, % | largest | change, theirs | ours | PSNR, theirs | ours |"
    yield "|---|" + "---:|" * 7
    for name in names:
        rows = [_compared(published, pixels, name, severity) for severity in SEVERITIES]
        equal, near, largest, *means = zip(*rows, strict=True)
        cells = [f"{100 * statistics.fmean(part):.2f}" for part in (equal, near)] if equal[0] is not None else ["", ""]
        cells += ["" if largest[0] is None else f"{max(largest):.0f}"]
        cells += [f"{statistics.fmean(part):.2f}" for part in means]
        yield f"| {name} | " + " | ".join(cells) + " |"


def _compared(published: Published, pixels: Pixels, name: str, severity: int) -> tuple[Any, ...]:
    clean = pixels.astype(np.int16)
    images = [Image.fromarray(p) for p in pixels]
    theirs = np.stack([published(image, name, severity) for image in images]).astype(np.int16)
    mine = ours(pixels, name, severity).astype(np.int16)
    apart: Any = None
    if name not in RANDOM:
        apart = np.abs(theirs - mine)
    elif same_draws(name, 0, severity, pixels.shape[1]) is not None:
        alike = []
        for number, image in enumerate(images):
            with published.drawing(**(same_draws(name, number, severity, pixels.shape[1]) or {})):
                alike.append(published(image, name, severity))
        original = ours(pixels, name, severity, published.folder) if name == "frost" else mine
        apart = np.abs(np.stack(alike).astype(np.int16) - original)
    agreed = (None, None, None) if apart is None else ((apart == 0).mean(), (apart <= 1).mean(), apart.max())
    changes = [np.abs(v - clean).mean() for v in (theirs, mine)]
    return *agreed, *changes, psnr(theirs, pixels), psnr(mine, pixels)


def save(published: Published, pixels: Pixels, names: list[str], folder: Path) -> None:
    """Their images as CIFAR-10-C lays them out, but for the labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        done = [published(Image.fromarray(p), name, severity) for severity in SEVERITIES for p in pixels]
        np.save(folder / f"{name}.npy", np.stack(done))


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
        theirs = statistics.fmean(_seconds(partial(_each, published, few, name, s), 1) / len(few) for s in SEVERITIES)
        mine = statistics.fmean(_seconds(partial(ours, pixels, name, s), 3) / len(pixels) for s in SEVERITIES)
        ratios.append(theirs / mine)
        yield f"| {name} | {1e6 * theirs:,.0f} | {1e6 * mine:,.0f} | {ratios[-1]:.1f} |"
    main = ratios[: len([n for n in names if n in CORRUPTIONS])]
    for label, part in (("geometric mean of the 15", main), ("geometric mean of all", ratios)):
        yield f"| {label} | | | {statistics.geometric_mean(part):.1f} |" if part else ""


def _each(published: Published, images: list[Image.Image], name: str, severity: int) -> None:
    for image in images:
        published(image, name, severity)


def _seconds(work: Callable[[], Any], times: int) -> float:
    """The median, after one call that is not counted. With one thread, seconds of the processor: other programs on the
    machine then count for less.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    work()
    taken = []
    for _ in range(times):
        began = clock()
        work()
        taken.append(clock() - began)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of hendrycks/robustness")
    parser.add_argument("images", type=Path, help="(N, S, S, 3) uint8, .npy")
    parser.add_argument("--n", type=int, default=100, help="how many of the images")
    parser.add_argument("--speed", action="store_true", help="time, instead of comparing")
    parser.add_argument("--save", type=Path, help="write the reference's images there, and nothing else")
    parser.add_argument("--only", nargs="*", default=[*CORRUPTIONS, *EXTRA], help="some of the corruptions")
    options = parser.parse_args()
    pixels = np.load(options.images)[: options.n]
    published = Published(options.checkout.resolve(), pixels.shape[1])
    print(f"{len(pixels)} images of {pixels.shape[1]} pixels, {torch.get_num_threads()} threads\n")
    if options.save:
        return save(published, pixels, options.only, options.save)
    for line in (speed if options.speed else agreement)(published, pixels, options.only):
        print(line, flush=True)


if __name__ == "__main__":
    main()
